/** What guards results and loads, built and not read: there are many of them in a kernel. */

import { and, binary, eq, if_, lt, min, sub, u32 } from "./build.ts";
import type { Expr, Stmt } from "./tree.ts";

/** Whether bit `level` of a u32 is 0. */
export function bitClear(number: Expr, level: number): Expr {
  return eq(binary("and", number, u32(2 ** level)), u32(0));
}

/** A u32 index, or the last one below `end`: what is past it is read there, and not used. */
export function clamped(index: Expr, end: Expr): Expr {
  return min(index, sub(end, u32(1)));
}

/** A value and its end. */
type Bound = readonly [value: Expr, end: Expr];

/** Run `then` where each value is below its end. */
export function whereBelow(
  bounds: readonly [Bound, ...Bound[]],
  then: readonly Stmt[],
): Stmt {
  const tests = bounds.map((bound) => lt(...bound));
  return if_(tests.reduce((a, b) => and(a, b)), then);
}
