/** Lengths for kernels that bind the counts buffer under its own name. */

import { mul, u32 } from "../../../spec/kernel/build.ts";
import type { Expr } from "../../../spec/kernel/tree.ts";
import { lengthAt } from "../../kernels/kernel.ts";
import { planAxis } from "../../sharding/lengths.ts";
import type { Lowering } from "./context.ts";

/** The number of tokens of a rank: the product of lengths. */
export function tokenCount(lowering: Lowering, axes: readonly string[]): Expr {
  const { placed } = lowering;
  return axes.reduce<Expr>((product, axis) => {
    const { dynamic, size } = placed.axes[axis]!;
    const slot = placed.counts.indexOf(planAxis(placed, axis));
    return mul(product, dynamic ? lengthAt(slot) : u32(size));
  }, u32(1));
}
