/** A balanced binary tree of sums as text, whose items come one after another. See spec/numerics.md. */

import { type Hole, type KernelText, wgsl } from "../../../spec/kernel/text.ts";
import { unrolled } from "./unrolled.ts";

/** Items that are added as a balanced tree, one after another: each is in the totals when it is added. */
export interface SumTree {
  /** Declares what waits beside the totals. */
  readonly declare: KernelText;
  /** Adds item `index`, which is in the totals; the last item completes them where there is a power of two. */
  add(index: Hole): KernelText;
  /** After the last item: the totals are complete. */
  readonly finish: KernelText;
}

/**
 * The balanced tree over `count` items (`treeSplit`) as a binary counter: of the items so far, the sum of 2^j of them waits
 * for the next 2^j where bit j of their number is set. `totals` are f32 variables, or registers such as `sum[r]`.
 */
export function sumTree(
  totals: readonly string[],
  count: number,
  indices?: KernelText,
): SumTree {
  const levels = Math.ceil(Math.log2(count));
  const all = Array.from({ length: levels }, (_, level) => level);
  const each = (text: (total: string) => KernelText) =>
    wgsl`${totals.map((total) => unrolled(indices, text(total)))}`;
  const addWaiting = (level: number) =>
    each((total) => wgsl`${total} = ${total}_${level} + ${total};`);
  const carry = (index: Hole, level: number): KernelText =>
    level === levels ? wgsl`` : wgsl`
      if ((${index} & ${2 ** level}) == 0) {
        ${each((total) => wgsl`${total}_${level} = ${total};`)}
      } else {
        ${addWaiting(level)}
        ${carry(index, level + 1)}
      }`;
  const rest = all.filter((level) => (count >> level) & 1);
  return {
    declare: wgsl`${
      all.map((level) => each((total) => wgsl`var ${total}_${level} = 0.0;`))
    }`,
    add: (index) => carry(index, 0),
    // The last item that waits is still in the totals.
    finish: wgsl`${rest.slice(1).map(addWaiting)}`,
  };
}
