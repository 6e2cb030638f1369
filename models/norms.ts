/** Norms without a gain. */

import { add, div, mean, mul, sqrt, type Tensor } from "../compiler/mod.ts";

/** x / sqrt(mean(x²) + epsilon) along an axis. */
export function plainNorm<A extends string>(
  x: Tensor<A, "f32">,
  axis: string,
  epsilon: number,
): Tensor<A, "f32"> {
  const any = x as Tensor as Tensor<"row axis", "f32">;
  const square = mean(mul(any, any), axis as "axis");
  return div(any, sqrt(add(square, epsilon))) as Tensor as Tensor<A, "f32">;
}
