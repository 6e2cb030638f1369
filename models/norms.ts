/** Norms without a gain. */

import {
  add,
  div,
  mean,
  mul,
  sqrt,
  sum,
  type Tensor,
} from "../compiler/mod.ts";

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

/** x / sqrt(sum(x²) + 1e-6) along an axis: queries and keys of delta rules, as in flash-linear-attention. */
export function unitNorm<A extends string>(
  x: Tensor<A, "f32">,
  axis: string,
): Tensor<A, "f32"> {
  const any = x as Tensor as Tensor<"row axis", "f32">;
  const square = sum(mul(any, any), axis as "axis");
  return div(any, sqrt(add(square, 1e-6))) as Tensor as Tensor<A, "f32">;
}
