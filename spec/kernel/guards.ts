/** Guards of results and loads, constructed instead of parsed, because kernels contain many of them. */

import { and, binary, eq, if_, lt, min, sub, u32 } from "./build.ts";
import type { Expr, Stmt } from "./tree.ts";

/** Whether bit `level` of a u32 is 0. */
export function bitClear(number: Expr, level: number): Expr {
  return eq(binary("and", number, u32(2 ** level)), u32(0));
}

/** A u32 index clamped to the last one below `end`: the value loaded past the end is not used. */
export function clamped(index: Expr, end: Expr): Expr {
  return min(index, sub(end, u32(1)));
}

/** A value and its end. */
type Bound = readonly [value: Expr, end: Expr];

/** Executes `then` if each value is below its end. */
export function whereBelow(
  bounds: readonly [Bound, ...Bound[]],
  then: readonly Stmt[],
): Stmt {
  const tests = bounds.map((bound) => lt(...bound));
  return if_(tests.reduce((a, b) => and(a, b)), then);
}
