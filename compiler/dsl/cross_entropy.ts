/** Log-probabilities of labels, and cross-entropy, the loss of language models. */

import { ModelError } from "../../spec/errors.ts";
import { expr } from "../../spec/kernel/text/resolve.ts";
import type { Node } from "../graph/graph.ts";
import { messages as say, words } from "../graph/messages.ts";
import {
  builderContext,
  NodeBuilder,
} from "../graph/gradients/node_builder.ts";
import { sameAxes } from "../graph/operands.ts";
import {
  axisOf,
  type Op,
  opName,
  refuse,
  siteOf,
  type Tensor,
  traceOf,
  wrap,
} from "./tensor.ts";
import type { Axis, Without } from "./types.ts";

/** Options of `logProbabilities`. */
export interface LabelOptions<K extends string> {
  /** The axis of the classes, such as the vocabulary. */
  readonly over: K;
  /** Label of ignored tokens. Default: -100. */
  readonly ignore?: number;
}

/** Options of `crossEntropy`. */
export interface CrossEntropyOptions<A extends string, K extends string>
  extends LabelOptions<K> {
  /** Weight of each token in the mean. Default: 1. */
  readonly weights?: Tensor<Without<A, NoInfer<K>>, "f32">;
}

/**
 * The mean of `-log softmax(logits)[label]` over all tokens that are not ignored; 0 if there are none. With `weights`,
 * the weighted mean. Probabilities are never stored: it uses `logSumExp` and the logit of the label.
 *
 * Axes: none; `labels` has the axes of `logits` without `over`. Dtype: "f32"; labels are "i32". Defaults: `ignore`
 * -100. Errors: an axis that the logits do not have; labels or weights with other axes; at run time, a label out of
 * range. Gradient: by `logits`, `softmax(logits)` minus 1 at the label, divided by the number of counted tokens.
 * Sharding: along the token axes: each rank sums its tokens, and the sums are reduced. `over` is replicated.
 *
 * @example
 * ```ts
 * const even = model({ token: 2, vocab: 4 }, (m) => {
 *   const labels = m.input("labels", "token", { dtype: "i32" });
 *   return { loss: crossEntropy(m.input("logits", "token vocab"), labels, { over: "vocab" }) };
 * });
 * const { outputs } = evaluate(trace(even), {
 *   inputs: { logits: [0, 0, 0, 0, 9, 9, 9, 9], labels: [3, -100] },
 * });
 * console.assert(outputs.loss?.data[0] === Math.fround(Math.log(4)));
 * ```
 */
export function crossEntropy<A extends string, const K extends Axis<A>>(
  logits: Tensor<A, "f32">,
  labels: Tensor<Without<A, NoInfer<K>>, "i32">,
  options: CrossEntropyOptions<A, K>,
): Tensor<"", "f32"> {
  const found = rowsOfLabels(crossEntropy, logits, [
    labels,
    ...options.weights ? [options.weights] : [],
  ], options);
  if ("refused" in found) return refuse(found.refused, [logits, labels], []);
  const { b, total, chosen } = found;
  const { weights } = options;
  if (weights && !sameAxes(weights.node.axes, labels.node.axes)) {
    const error = new ModelError(
      `Cannot weigh labels '${words(labels.node.axes)}' by weights '${
        words(weights.node.axes)
      }': expected the same axes`,
      b.origin.span,
    );
    return refuse(error, [logits, labels, weights], []);
  }
  const counts = weights
    ? b.map((c, w) => expr`${c} * ${w}`, found.counts, weights.node)
    : found.counts;
  const losses = b.map(
    (t, o, c) => expr`(${t} - ${o}) * ${c}`,
    total,
    chosen,
    counts,
  );
  const mean = b.map(
    weights
      ? (sum, n) => expr`${sum} / select(${n}, 1.0, ${n} == 0.0)`
      : (sum, n) => expr`${sum} / max(${n}, 1)`,
    b.total(losses),
    b.total(counts),
  );
  return wrap(mean, logits.trace);
}

/**
 * The log-probability of each token's label: `logits[label] - logSumExp(logits)`; 0 for ignored tokens. It has the bits
 * of the log-probabilities that `generate --logprobs` reports for the same logits. Losses of sampled tokens, such as
 * policy gradients, are functions of it.
 *
 * Axes: those of `labels`, which has the axes of `logits` without `over`. Dtype: "f32"; labels are "i32". Defaults:
 * `ignore` -100. Errors: as `crossEntropy`. Gradient: by `logits`, 1 at the label minus `softmax(logits)`. Sharding:
 * along the token axes. `over` is replicated.
 *
 * @example
 * ```ts
 * const even = model({ token: 2, vocab: 4 }, (m) => {
 *   const labels = m.input("labels", "token", { dtype: "i32" });
 *   const logits = m.input("logits", "token vocab");
 *   return { y: logProbabilities(logits, labels, { over: "vocab" }) };
 * });
 * const { outputs } = evaluate(trace(even), {
 *   inputs: { logits: [0, 0, 0, 0, 9, 9, 9, 9], labels: [3, -100] },
 * });
 * console.assert(outputs.y?.data[0] === Math.fround(-Math.log(4)) && outputs.y.data[1] === 0);
 * ```
 */
export function logProbabilities<A extends string, const K extends Axis<A>>(
  logits: Tensor<A, "f32">,
  labels: Tensor<Without<A, NoInfer<K>>, "i32">,
  options: LabelOptions<K>,
): Tensor<Without<A, NoInfer<K>>, "f32"> {
  const found = rowsOfLabels(logProbabilities, logits, [labels], options);
  if ("refused" in found) {
    return refuse(found.refused, [logits, labels], labels.node.axes);
  }
  const { b, total, chosen, counts } = found;
  const rows = b.map(
    (o, t, c) => expr`select(0.0, ${o} - ${t}, ${c} > 0.0)`,
    chosen,
    total,
    counts,
  );
  return wrap(rows, logits.trace);
}

/** Per token: the log-sum-exp of its logits, the logit of its label, and whether the label counts. */
interface RowsOfLabels {
  readonly b: NodeBuilder;
  readonly total: Node;
  readonly chosen: Node;
  /** 1 for counted tokens, 0 for ignored ones, in f32. */
  readonly counts: Node;
}

function rowsOfLabels(
  op: Op,
  logits: Tensor,
  [labels, ...others]: readonly [Tensor, ...Tensor[]],
  { over: name, ignore = -100 }: LabelOptions<string>,
): RowsOfLabels | { readonly refused: ModelError } {
  const trace = traceOf([logits, labels, ...others], op);
  const site = siteOf(trace, op);
  const over = axisOf(name, [logits], trace);
  const [x, label] = [logits.node, labels.node];
  if (!x.axes.includes(over)) {
    const refused = new ModelError(
      say.axis(opName(op), x.axes, over),
      site.span,
    );
    return { refused };
  }
  const rest = x.axes.filter((axis) => axis !== over);
  if (!sameAxes(label.axes, rest) || label.dtype !== "i32") {
    return {
      refused: new ModelError(
        `Cannot compute the ${opName(op)} of '${
          words(x.axes)
        }' with labels ${label.dtype}[${words(label.axes)}]: expected i32[${
          words(rest)
        }]`,
        site.span,
      ),
    };
  }
  const b = new NodeBuilder(builderContext(trace.axes, []), site);
  const counts = b.cast(
    b.map((l) => expr`select(1i, 0i, ${l} == ${ignore})`, label),
    "f32",
  );
  const known = b.map(
    (l) => expr`select(${l}, 0, ${l} == ${ignore})`,
    label,
  );
  const total = b.make("logSumExp", [x], { over });
  const chosen = b.make("embedding", [x, known], { over });
  return { b, total, chosen, counts };
}
