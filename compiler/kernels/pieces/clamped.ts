/** Indices that may be past the end. */

import { min, sub, u32 } from "../../../spec/kernel/build.ts";
import type { Expr } from "../../../spec/kernel/tree.ts";

/** A u32 index, or the last one below `end`: what is past it is read there, and not used. */
export function clamped(index: Expr, end: Expr): Expr {
  return min(index, sub(end, u32(1)));
}
