/** Reductions of one axis. */

import { apply, names, type Tensor } from "./tensor.ts";
import type { Axis, CanGain, Float, Without } from "./types.ts";

/**
 * The sum of `x` over `axis`.
 *
 * Axes: those of `x` without `axis`. Dtype: "f32" or "f16"; sums are in f32. Errors: an axis that `x` does not have.
 * Gradient: 1. Sharding: along all axes except `axis`, which is replicated.
 *
 * @example
 * ```ts
 * const total = model({ row: 2, n: 2 }, (m) => ({ y: sum(m.input("x", "row n"), "n") }));
 * const { outputs } = evaluate(trace(total), { inputs: { x: [1, 2, 3, 4] } });
 * console.assert(String(outputs.y?.data) === "3,7");
 * ```
 */
export function sum<A extends string, D extends Float, const K extends Axis<A>>(
  x: Tensor<A, D>,
  axis: K,
): Tensor<Without<A, K>, D> {
  return apply(sum, "reduce", [x], { kind: "sum", over: axis });
}

/**
 * The maximum of `x` along `axis`.
 *
 * Axes: those of `x` without `axis`. Dtype: "f32" or "f16". Errors: an axis that `x` does not have. Gradient: 1 at the
 * maximum, divided evenly among equal elements. Sharding: along all axes except `axis`, which is replicated.
 *
 * @example
 * ```ts
 * const top = model({ row: 2, n: 2 }, (m) => ({ y: max(m.input("x", "row n"), "n") }));
 * const { outputs } = evaluate(trace(top), { inputs: { x: [1, 2, 4, 3] } });
 * console.assert(String(outputs.y?.data) === "2,4");
 * ```
 */
export function max<A extends string, D extends Float, const K extends Axis<A>>(
  x: Tensor<A, D>,
  axis: K,
): Tensor<Without<A, K>, D> {
  return apply(max, "reduce", [x], { kind: "max", over: axis });
}

/**
 * The mean of `x` over `axis`.
 *
 * Axes: those of `x` without `axis`. Dtype: "f32" or "f16". Errors: an axis that `x` does not have. Gradient: 1 divided
 * by the length of `axis`. Sharding: along all axes except `axis`, which is replicated.
 *
 * @example
 * ```ts
 * const middle = model({ row: 2, n: 2 }, (m) => ({ y: mean(m.input("x", "row n"), "n") }));
 * const { outputs } = evaluate(trace(middle), { inputs: { x: [1, 2, 3, 5] } });
 * console.assert(String(outputs.y?.data) === "1.5,4");
 * ```
 */
export function mean<
  A extends string,
  D extends Float,
  const K extends Axis<A>,
>(
  x: Tensor<A, D>,
  axis: K,
): Tensor<Without<A, K>, D> {
  return apply(mean, "reduce", [x], { kind: "mean", over: axis });
}

/**
 * The softmax of `x` along `axis`.
 *
 * Axes: those of `x`. Dtype: "f32" or "f16". Errors: an axis that `x` does not have. Gradient: `y · (dy - sum(y ·
 * dy))`. Sharding: along all axes except `axis`, which is replicated.
 *
 * @example
 * ```ts
 * const even = model({ n: 2 }, (m) => ({ y: softmax(m.input("x", "n"), "n") }));
 * const { outputs } = evaluate(trace(even), { inputs: { x: [7, 7] } });
 * console.assert(String(outputs.y?.data) === "0.5,0.5");
 * ```
 */
export function softmax<A extends string, D extends Float>(
  x: Tensor<A, D>,
  axis: Axis<NoInfer<A>>,
): Tensor<A, D> {
  return apply(softmax, "softmax", [x], { over: axis });
}

/**
 * The logarithm of the sum of `exp(x)` along `axis`.
 *
 * Axes: those of `x` without `axis`. Dtype: "f32" or "f16"; sums are in f32. Errors: an axis that `x` does not have.
 * Gradient: `softmax(x)`. Sharding: along all axes except `axis`, which is replicated.
 *
 * @example
 * ```ts
 * const sure = model({ n: 2 }, (m) => ({ y: logSumExp(m.input("x", "n"), "n") }));
 * const { outputs } = evaluate(trace(sure), { inputs: { x: [1000, -1000] } });
 * console.assert(outputs.y?.data[0] === 1000);
 * ```
 */
export function logSumExp<
  A extends string,
  D extends Float,
  const K extends Axis<A>,
>(
  x: Tensor<A, D>,
  axis: K,
): Tensor<Without<A, K>, D> {
  return apply(logSumExp, "logSumExp", [x], { over: axis });
}

/** Options of `rmsNorm`. */
export interface RmsNormOptions {
  /** Added to the mean of squares. Default: 1e-5. */
  readonly epsilon?: number;
}

/**
 * `gain * x / sqrt(mean(x²) + epsilon)`, the mean along `axis`.
 *
 * Axes: those of `x`; `gain` has only `axis`. Dtype: both equal, "f32" or "f16". Defaults: `epsilon` 1e-5. Errors: an
 * axis that `x` does not have; a gain with other axes; dtypes differ. Gradient: by `x` and `gain`. Sharding: along all
 * axes except `axis`, which is replicated.
 *
 * @example
 * ```ts
 * const norm = model({ n: 2 }, (m) => ({
 *   y: rmsNorm(m.input("x", "n"), m.param("gain", "n"), "n", { epsilon: 0 }),
 * }));
 * const { outputs } = evaluate(trace(norm), {
 *   inputs: { x: [3, 3] },
 *   params: { gain: [1, 2] },
 * });
 * console.assert(String(outputs.y?.data) === "1,2");
 * ```
 */
export function rmsNorm<
  A extends string,
  D extends Float,
  G extends string,
  const K extends Axis<A>,
>(
  x: Tensor<A, D>,
  gain: CanGain<
    { op: "rmsNorm"; gain: G },
    NoInfer<A>,
    NoInfer<K>,
    Tensor<G, NoInfer<D>>
  >,
  axis: K,
  options?: RmsNormOptions,
): Tensor<A, D> {
  return apply(rmsNorm, "rmsNorm", [x, gain as unknown as Tensor], {
    over: names(axis).join(" "),
    epsilon: options?.epsilon ?? 1e-5,
  });
}
