/** Activation checkpointing: blocks that the backward pass recomputes. */

import { makeNode } from "../graph/make_node.ts";
import { siteOf, type Tensor, traceOf, wrap } from "./tensor.ts";

/**
 * Returns `block(x)`. A training step saves only `x` and the result and recomputes the block for its gradients
 * (activation checkpointing): less memory, more work. Recomputed values have the same bits. Choices of experts and
 * dispatched or combined values are saved, so nothing is sent twice. It has no effect without gradients.
 *
 * Axes, dtype: those of the result of `block`. Errors: the result of `block` is a tensor of another model. Gradient:
 * that of `block`. Sharding: that of `block`.
 *
 * @example
 * ```ts
 * const block = model({ row: 2, n: 2 }, (m) => ({
 *   y: recompute(m.input("x", "row n"), (x) => sum(tanh(x), "n")),
 * }));
 * const { outputs } = evaluate(trace(block), { inputs: { x: [0, 0, 1, -1] } });
 * console.assert(String(outputs.y?.data) === "0,0");
 * ```
 */
export function recompute<T extends Tensor, R extends Tensor>(
  x: T,
  block: (x: T) => R,
): R {
  const trace = traceOf([x], recompute);
  const site = siteOf(trace, recompute);
  const number = trace.blocks.length;
  trace.blocks.push(x.node);
  const enter = makeNode(
    "optimizationBarrier",
    [x.node],
    { block: number, end: "in" },
    site,
  );
  const y = block(wrap(enter, trace) as Tensor as T);
  traceOf([x, y], recompute);
  const leave = makeNode(
    "optimizationBarrier",
    [y.node],
    { block: number, end: "out" },
    site,
  );
  return wrap(leave, trace) as Tensor as R;
}
