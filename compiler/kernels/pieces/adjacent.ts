/** Adjacent elements of a row that are loaded at once. */

import type { Expr, Stmt } from "../kernel.ts";

/** Elements that are loaded at once. */
export const ADJACENT = 4;

/**
 * Declares `ADJACENT` elements of the row that starts at `base` as `names`. Index i of the first is a multiple of their
 * number.
 */
export type LoadAdjacent = (
  base: Expr,
  i: Expr,
  names: readonly string[],
) => readonly Stmt[];
