/** A condition that many results have. */

import { and, if_, lt } from "../../../spec/kernel/build.ts";
import type { Expr, Stmt } from "../../../spec/kernel/tree.ts";

/** A u32, and the end that it must be below. */
type Bound = readonly [value: Expr, end: Expr];

/** Statements where values are below their ends. */
export function whereBelow(
  [[value, end], ...others]: readonly [Bound, ...Bound[]],
  then: readonly Stmt[],
): Stmt {
  return if_(and(lt(value, end), ...others.map((b) => lt(...b))), then);
}
