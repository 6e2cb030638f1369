/** The contract's sum as text: blocks of 32 consecutive indices, block sums added in order. See spec/numerics.md. */

import {
  type Hole,
  type KernelText,
  type Statements,
  wgsl,
} from "../../../spec/kernel/text.ts";
import { SUM_BLOCK } from "../sum.ts";

/** Sums over one index. */
export interface BlockedSumOptions {
  /** How many indices: a number, or a u32. */
  readonly length: Hole;
  /** Name of the index, and prefix of the names that the loop needs. Default `k`. */
  readonly over?: string;
}

/**
 * Declares the f32 variables `totals` and sums into them. For each index, `add` adds to the sum of the block at hand, which
 * for the total `dot` is called `dot_block`.
 */
export function blockedSum(
  totals: string | readonly string[],
  { length, over: k = "k" }: BlockedSumOptions,
  add: Statements,
): KernelText {
  const all = typeof totals === "string" ? [totals] : totals;
  const declared = all.map((total) => wgsl`var ${total} = 0.0;`);
  if (length === 0) return wgsl`${declared}`;
  const known = typeof length === "number";
  /** The block of indices from `start` below `end`. */
  const block = (start: KernelText, end: Hole) =>
    wgsl`
      ${all.map((total) => wgsl`var ${total}_block = 0.0;`)}
      for (var ${k} = ${start}; ${k} < ${end}; ${k}++) {
        ${add}
      }
      // Also for a single block: 0 + block is the contract's, and differs from block where that is -0.
      ${all.map((total) => wgsl`${total} += ${total}_block;`)}`;
  if (known && length <= SUM_BLOCK) {
    return wgsl`${declared} ${block(wgsl`0u`, length)}`;
  }
  const start = wgsl`${k}_block`;
  const next = wgsl`${k}_block + ${SUM_BLOCK}`;
  const end = known && length % SUM_BLOCK === 0
    ? next
    : wgsl`min(${next}, ${length})`;
  return wgsl`
    ${declared}
    for (var ${k}_block = 0u; ${k}_block < ${length}; ${k}_block += ${SUM_BLOCK}) {
      ${block(start, end)}
    }`;
}
