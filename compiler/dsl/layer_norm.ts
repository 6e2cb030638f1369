/** Layer normalization, composed of sums and elementwise functions. */

import { expr } from "../../spec/kernel/text/resolve.ts";
import {
  builderContext,
  NodeBuilder,
} from "../graph/gradients/node_builder.ts";
import { ModelError } from "../../spec/errors.ts";
import { messages as say } from "../graph/messages.ts";
import { wantFloat } from "./scalar_map.ts";
import {
  axisOf,
  refuse,
  siteOf,
  type Tensor,
  traceOf,
  wrap,
} from "./tensor.ts";
import type { Axis, CanGain, Float } from "./types.ts";

/** Options of `layerNorm`. */
export interface LayerNormOptions<B> {
  /** Added to the result. Default: none. It has the axis of the gain. */
  readonly bias?: B;
  /** Added to the variance. Default: 1e-5, as in PyTorch. */
  readonly epsilon?: number;
}

/**
 * `gain * (x - mean(x)) / sqrt(variance(x) + epsilon) + bias`, with mean and population variance along `axis`. Sums are
 * in f32.
 *
 * Axes: those of `x`; `gain` and `bias` have only `axis`. Dtype: all equal, "f32" or "f16". Defaults: no `bias`;
 * `epsilon` 1e-5. Errors: an axis that `x` does not have; a gain or bias with other axes; dtypes differ. Gradient: by
 * `x`, `gain` and `bias`. Sharding: along all axes except `axis`, which is replicated.
 *
 * @example
 * ```ts
 * const norm = model({ n: 2 }, (m) => ({
 *   y: layerNorm(m.input("x", "n"), m.param("gain", "n"), "n", { bias: m.param("bias", "n"), epsilon: 0 }),
 * }));
 * const { outputs } = evaluate(trace(norm), {
 *   inputs: { x: [1, 5] },
 *   params: { gain: [1, 2], bias: [0, 10] },
 * });
 * console.assert(String(outputs.y?.data) === "-1,12");
 * ```
 */
export function layerNorm<
  A extends string,
  D extends Float,
  G extends string,
  const K extends Axis<A>,
>(
  x: Tensor<A, D>,
  gain: CanGain<
    { op: "layerNorm"; gain: G },
    NoInfer<A>,
    NoInfer<K>,
    Tensor<G, NoInfer<D>>
  >,
  axis: K,
  options: LayerNormOptions<Tensor<NoInfer<K>, NoInfer<D>>> = {},
): Tensor<A, D> {
  const scale = gain as unknown as Tensor;
  const { bias, epsilon = 1e-5 } = options;
  const operands = [x, scale, ...bias ? [bias] : []];
  const trace = traceOf(operands, layerNorm);
  wantFloat(layerNorm, operands);
  const site = siteOf(trace, layerNorm);
  const over = axisOf(axis, [x], trace);
  const fail = (message: string): Tensor<A, D> =>
    refuse(new ModelError(message, site.span), [x, scale]);
  const { axes: all } = x.node;
  if (!all.includes(over)) return fail(say.axis("layerNorm", all, over));
  for (const { node, dtype, axes } of operands.slice(1)) {
    if (node.axes.length !== 1 || node.axes[0] !== over) {
      const made = { op: "layerNorm", gain: node.axes };
      return fail(say.gain(all, over, made));
    }
    if (dtype !== x.dtype) {
      return fail(say.dtype("layerNorm", [axes], dtype, x.dtype));
    }
  }
  const b = new NodeBuilder(builderContext(trace.axes, []), site);
  const value = b.cast(x.node, "f32");
  const meanOf = (node: Tensor["node"]) =>
    b.make("reduce", [node], { kind: "mean", over });
  const centred = b.map((v, m) => expr`${v} - ${m}`, value, meanOf(value));
  const variance = meanOf(b.map((v) => expr`${v} * ${v}`, centred));
  const normed = b.map(
    (v, s, g) => expr`${v} / sqrt(${s} + ${epsilon}) * ${g}`,
    centred,
    variance,
    b.cast(scale.node, "f32"),
  );
  const result = bias
    ? b.map((v, w) => expr`${v} + ${w}`, normed, b.cast(bias.node, "f32"))
    : normed;
  return wrap(b.cast(result, x.dtype), trace);
}
