/** Contractions: sums of products over shared axes. */

import { shortAxis } from "../../spec/axis_name.ts";
import type { DType } from "../../spec/dtype.ts";
import { ModelError } from "../../spec/errors.ts";
import { messages as say, without } from "../graph/messages.ts";
import { mul } from "./arithmetic.ts";
import { makeNode } from "../graph/make_node.ts";
import { callSite } from "../../spec/call_site.ts";
import {
  apply,
  axisOf,
  names,
  refuse,
  siteOf,
  type Tensor,
  traceOf,
  wrap,
} from "./tensor.ts";
import type { CanDot, CanEinsum, Dot, EinsumOut, Float } from "./types.ts";

/**
 * Multiplies `a` and `b` and sums over the axis `over`, or over several (`"head headDim"`). Other shared axes are batch
 * axes. Axes are found by name, so their order does not matter.
 *
 * Axes: those of `a` without `over`, then those of `b` that `a` does not have. Dtype: both equal, "f32" or "f16"; sums
 * are in f32. Errors: an axis that one operand does not have; dtypes differ. Gradient: `dot` with the other operand
 * over the axes that only it has. Sharding: along every axis. If `over` is sharded, each rank has a partial sum, and
 * the result is reduced before its use (all-reduce or reduce-scatter).
 *
 * @example
 * ```ts
 * const linear = model({ token: 1, embed: 2, ffn: 3 }, (m) => ({
 *   y: dot(m.input("x", "token embed"), m.param("w", "ffn embed"), "embed"),
 * }));
 * const { outputs } = evaluate(trace(linear), {
 *   inputs: { x: [1, 2] },
 *   params: { w: [1, 0, 0, 1, 1, 1] },
 * });
 * console.assert(String(outputs.y?.data) === "1,2,3");
 * ```
 */
export function dot<
  A extends string,
  B extends string,
  D extends Float,
  const K extends string,
>(
  a: Tensor<A, D>,
  b: Tensor<B, NoInfer<D>>,
  over: CanDot<A, B, K>,
): Tensor<Dot<A, B, K>, D> {
  return apply(dot, "dot", [a, b], { over: names(over) });
}

/**
 * A product of two tensors with all axes written out: `"token embed, embed ffn -> token ffn"`. Axes missing from the
 * output are summed.
 *
 * Axes: those after `->`, in that order. Dtype: both equal, "f32" or "f16". Errors: a spec that differs from the
 * operands' axes; an output axis that neither operand has; no summed axis and no operand with all axes; dtypes differ.
 * Gradient: as `dot`. Sharding: as `dot`.
 *
 * @example
 * ```ts
 * const outer = model({ row: 2, k: 1, column: 2 }, (m) => ({
 *   y: einsum("row k, k column -> column row", m.input("a", "row k"), m.input("b", "k column")),
 * }));
 * const { outputs } = evaluate(trace(outer), { inputs: { a: [1, 2], b: [3, 4] } });
 * console.assert(String(outputs.y?.data) === "3,6,4,8");
 * ```
 */
export function einsum<
  const S extends string,
  A extends string,
  B extends string,
  D extends Float,
>(
  spec: CanEinsum<S, NoInfer<A>, NoInfer<B>>,
  a: Tensor<A, D>,
  b: Tensor<B, NoInfer<D>>,
): Tensor<EinsumOut<S>, D> {
  const trace = traceOf([a, b], einsum);
  const site = siteOf(trace, einsum);
  const parsed = parseSpec(spec, a, b);
  if (parsed instanceof ModelError) return refuse(parsed, [a, b]);
  const output = parsed.map((axis) => axisOf(axis, [a, b], trace));
  let [left, right] = [a.node, b.node];
  for (const axis of without(left.axes, [...right.axes, ...output])) {
    left = makeNode("reduce", [left], { kind: "sum", over: axis }, site);
  }
  for (const axis of without(right.axes, [...left.axes, ...output])) {
    right = makeNode("reduce", [right], { kind: "sum", over: axis }, site);
  }
  const over = left.axes.filter((axis) =>
    right.axes.includes(axis) && !output.includes(axis)
  );
  const product = over.length > 0
    ? makeNode("dot", [left, right], { over }, site)
    : mul(wrap<string, DType>(left, trace), wrap<string, DType>(right, trace))
      .node;
  if (product.axes.join(" ") === output.join(" ")) return wrap(product, trace);
  return wrap(
    makeNode("transpose", [product], {}, {
      ...site,
      given: { axes: output, dtype: product.dtype },
    }),
    trace,
  );
}

/** Returns the output axes after checking the spec against the operands. */
function parseSpec(
  spec: string,
  a: Tensor,
  b: Tensor,
): readonly string[] | ModelError {
  const [left, right] = [a.node.axes, b.node.axes];
  const wrong = (message: string) => new ModelError(message, callSite(einsum));
  const arrow = spec.indexOf(" -> ");
  if (arrow < 0) return wrong(say.einsumSpec(spec, left, right));
  if (spec.slice(0, arrow) !== `${a.axes}, ${b.axes}`) {
    return wrong(say.einsumOperands(spec, left, right));
  }
  const output = names(spec.slice(arrow + 4));
  const lost = without(output, [...left, ...right].map(shortAxis));
  return lost.length > 0 ? wrong(say.einsumOutput(spec, lost)) : output;
}
