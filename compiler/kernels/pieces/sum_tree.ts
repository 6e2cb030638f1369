/** A balanced binary tree of sums over sequential items. See spec/numerics.md. */

import { add } from "../../../spec/kernel/build.ts";
import { bitClear } from "../../../spec/kernel/guards.ts";
import { type Statements, wgsl } from "../../../spec/kernel/text/text.ts";
import type { Expr, Stmt } from "../../../spec/kernel/tree.ts";
import {
  declareEach,
  type Register,
  setEach,
} from "../../../spec/kernel/registers.ts";

/** Adds sequential items as a balanced tree. Each item is in the totals when it is added. */
export interface SumTree {
  /** Declares the partial sums besides the totals. */
  readonly declare: readonly Stmt[];
  /**
   * Adds item `index`, which is in the totals. If the number of items is a power of two, the last one completes them,
   * and `then` follows.
   */
  add(index: Expr, then?: Statements): Statements;
  /** After the last item: the totals are complete. */
  readonly finish: readonly Stmt[];
}

/**
 * The balanced tree over `count` items (`treeSplit`) as a binary counter: the sum of 2^j items waits for the next 2^j
 * if bit j of the number of items so far is set. The totals are variables of the kernel.
 */
export function sumTree(totals: readonly Register[], count: number): SumTree {
  const levels = Math.ceil(Math.log2(count));
  const all = Array.from({ length: levels }, (_, level) => level);
  const addWaiting = (level: number) =>
    setEach(totals, "", (of) => add(of(`_${level}`), of("")));
  const carry = (index: Expr, level: number, then: Statements): Statements =>
    level === levels ? then : wgsl`
      if (${bitClear(index, level)}) {
        ${setEach(totals, `_${level}`, (of) => of(""))}
      } else {
        ${addWaiting(level)}
        ${carry(index, level + 1, then)}
      }`;
  const rest = all.filter((level) => (count >> level) & 1);
  return {
    declare: all.flatMap((level) => declareEach(totals, `_${level}`)),
    add: (index, then = []) => carry(index, 0, then),
    // The last waiting item is still in the totals.
    finish: rest.slice(1).flatMap(addWaiting),
  };
}
