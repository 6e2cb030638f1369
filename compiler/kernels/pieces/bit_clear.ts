/** Bits of numbers. */

import { binary, eq, u32 } from "../../../spec/kernel/build.ts";
import type { Expr } from "../../../spec/kernel/tree.ts";

/** Whether bit `level` of a u32 is 0. */
export function bitClear(number: Expr, level: number): Expr {
  return eq(binary("and", number, u32(2 ** level)), u32(0));
}
