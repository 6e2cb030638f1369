/** Blocks whose values are not kept for gradients. */

import { makeNode } from "../graph/make_node.ts";
import { siteOf, type Tensor, traceOf, wrap } from "./tensor.ts";

/**
 * What `block` makes of `x`. A step of training computes it a second time for the gradients, instead of keeping what is
 * inside: less memory, more work. What is computed again has the same bits. Choices of experts, and what was dispatched or
 * combined inside, are kept, so nothing is sent twice. Nothing changes where no gradients are asked for.
 *
 * Axes, dtype: those of what `block` returns. Errors: what `block` returns is a tensor of another model. Gradient:
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
