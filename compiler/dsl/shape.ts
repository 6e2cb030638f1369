/** Ops that move or rename elements without changing them. */

import { type DType, DTYPES } from "../../spec/dtype.ts";
import { ModelError } from "../../spec/errors.ts";
import { choices } from "../graph/messages.ts";
import { callSite } from "../../spec/call_site.ts";
import { apply, names, refuse, type Tensor, traceOf } from "./tensor.ts";
import type {
  Axis,
  CanConcat,
  CanMerge,
  CanName,
  CanTranspose,
  Merged,
  Renamed,
} from "./types.ts";

/**
 * `x` with axis `from` renamed to `to`. A name that the model does not declare gets the length of `from`.
 *
 * Axes: those of `x`, renamed. Dtype: any. Errors: an axis that `x` does not have; a name that `x` already has; a name
 * with another length. Gradient: the inverse renaming. Sharding: that of `x`, under the new name.
 *
 * @example
 * ```ts
 * const square = model({ token: 1, embed: 2 }, (m) => {
 *   const x = m.input("x", "token embed");
 *   return { y: dot(x, rename(x, "token", "other"), "embed") };
 * });
 * console.assert(trace(square).outputs.y?.axes.join(" ") === "token other");
 * ```
 */
export function rename<
  A extends string,
  D extends DType,
  const F extends Axis<A>,
  const T extends string,
>(
  x: Tensor<A, D>,
  from: F,
  to: CanName<NoInfer<A>, T, "rename">,
): Tensor<Renamed<A, F, T>, D> {
  return apply(rename, "rename", [x], { from, to });
}

/**
 * `x` with one axis split into several, row-major: the last of `into` varies fastest.
 *
 * Axes: those of `x`, with `into` (`"head headDim"`) instead of `axis`. Dtype: any. Errors: an axis that `x` does not
 * have; a name that `x` already has; sizes with another product. Gradient: `merge`. Sharding: the first of `into` that
 * is longer than 1 has the sharding of `axis`; sends nothing.
 *
 * @example
 * ```ts
 * const heads = model({ embed: 4, head: 2, headDim: 2 }, (m) => ({
 *   y: split(m.input("x", "embed"), "embed", "head headDim"),
 * }));
 * console.assert(trace(heads).outputs.y?.axes.join(" ") === "head headDim");
 * ```
 */
export function split<
  A extends string,
  D extends DType,
  const F extends Axis<A>,
  const T extends string,
>(
  x: Tensor<A, D>,
  axis: F,
  into: CanName<NoInfer<A>, T, "split">,
): Tensor<Renamed<A, F, T>, D> {
  return apply(split, "split", [x], { axis, into: names(into) });
}

/**
 * `x` with adjacent axes merged into one: the inverse of `split`.
 *
 * Axes: those of `x`, with `to` instead of `axes` (`"head headDim"`). Dtype: any. Errors: axes that are not adjacent in
 * this order; a name that `x` already has; a size other than the product. Gradient: `split`. Sharding: `to` has the
 * sharding of the first of `axes` that is longer than 1; the others are replicated.
 *
 * @example
 * ```ts
 * const flat = model({ embed: 4, head: 2, headDim: 2 }, (m) => ({
 *   y: merge(m.input("x", "head headDim"), "head headDim", "embed"),
 * }));
 * console.assert(trace(flat).outputs.y?.axes.join(" ") === "embed");
 * ```
 */
export function merge<
  A extends string,
  D extends DType,
  const F extends string,
  const T extends string,
>(
  x: Tensor<A, D>,
  axes: CanMerge<NoInfer<A>, F>,
  to: CanName<NoInfer<A>, T, "merge">,
): Tensor<Merged<A, F, T>, D> {
  return apply(merge, "merge", [x], { axes: names(axes), to });
}

/**
 * The elements `start`, `start + step`, … of `axis`. Their number is the length of `to`.
 *
 * Axes: those of `x`, with `to` instead of `axis`. Dtype: any. Errors: an axis that `x` does not have; a name that `x`
 * already has; elements past the end. Gradient: 0 for the other elements. Sharding: along all axes except `axis`, which
 * is replicated.
 *
 * @example
 * ```ts
 * const tail = model({ n: 3, rest: 2 }, (m) => ({ y: slice(m.input("x", "n"), "n", 1, "rest") }));
 * const { outputs } = evaluate(trace(tail), { inputs: { x: [1, 2, 3] } });
 * console.assert(String(outputs.y?.data) === "2,3");
 * ```
 */
export function slice<
  A extends string,
  D extends DType,
  const F extends Axis<A>,
  const T extends string,
>(
  x: Tensor<A, D>,
  axis: F,
  start: number,
  to: CanName<NoInfer<A>, T, "slice">,
  step = 1,
): Tensor<Renamed<A, F, T>, D> {
  return apply(slice, "slice", [x], { axis, start, step, to });
}

/**
 * `a` and `b` concatenated along `axis` into axis `to`. `b` has the axes of `a`, except that its axis in place of
 * `axis` may have another name.
 *
 * Axes: those of `a`, with `to` instead of `axis`. Dtype: both equal, any. Errors: an axis that `a` does not have;
 * operands that differ in other axes; a size that is not the sum; dtypes differ. Gradient: its slices. Sharding: along
 * all axes except `axis`, which is replicated.
 *
 * @example
 * ```ts
 * const both = model({ left: 1, right: 2, all: 3 }, (m) => ({
 *   y: concat(m.input("a", "left"), m.input("b", "right"), "left", "all"),
 * }));
 * const { outputs } = evaluate(trace(both), { inputs: { a: [1], b: [2, 3] } });
 * console.assert(String(outputs.y?.data) === "1,2,3");
 * ```
 */
export function concat<
  A extends string,
  B extends string,
  D extends DType,
  const F extends Axis<A>,
  const T extends string,
>(
  a: Tensor<A, D>,
  b: CanConcat<NoInfer<A>, B, NoInfer<F>, Tensor<B, NoInfer<D>>>,
  axis: F,
  to: CanName<NoInfer<A>, T, "concat">,
): Tensor<Renamed<A, F, T>, D> {
  const other = b as unknown as Tensor;
  traceOf([a, other], concat);
  const at = names(a.axes).indexOf(axis);
  return apply(concat, "concat", [a, other], {
    axes: [axis, other.node.axes[at] ?? axis],
    to,
  });
}

/**
 * `x` with its axes in another order.
 *
 * Axes: `to`. Dtype: any. Errors: `to` has other axes than `x`. Gradient: transposed back. Sharding: that of `x` along
 * every axis; sends nothing.
 *
 * @example
 * ```ts
 * const transposed = model({ row: 2, column: 2 }, (m) => ({
 *   y: transpose(m.input("x", "row column"), "column row"),
 * }));
 * const { outputs } = evaluate(trace(transposed), { inputs: { x: [1, 2, 3, 4] } });
 * console.assert(String(outputs.y?.data) === "1,3,2,4");
 * ```
 */
export function transpose<
  A extends string,
  D extends DType,
  const T extends string,
>(
  x: Tensor<A, D>,
  to: CanTranspose<NoInfer<A>, T>,
): Tensor<T, D> {
  return apply(transpose, "transpose", [x], {}, {
    axes: names(to),
    dtype: "f32",
  });
}

/**
 * `x` in another dtype. Casts to integers round towards zero, casts to f16 to nearest.
 *
 * Axes: those of `x`. Dtype: `to`. Errors: an unknown dtype. Gradient: cast back; none between integers. Sharding:
 * that of `x` along every axis; sends nothing.
 *
 * @example
 * ```ts
 * const whole = model({ n: 2 }, (m) => ({ y: cast(m.input("x", "n"), "i32") }));
 * const { outputs } = evaluate(trace(whole), { inputs: { x: [1.7, -1.7] } });
 * console.assert(String(outputs.y?.data) === "1,-1");
 * ```
 */
export function cast<A extends string, const T extends DType>(
  x: Tensor<A>,
  to: T,
): Tensor<A, T> {
  if (!DTYPES.includes(to)) {
    const error = new ModelError(
      `Cannot cast '${x.axes}' to '${to}': expected ${choices(DTYPES)}`,
      callSite(cast),
    );
    return refuse(error, [x]);
  }
  return apply(cast, "cast", [x], {}, { axes: [], dtype: to });
}
