/** Cross-entropy, the loss of language models. */

import { ModelError } from "../../spec/errors.ts";
import { expr } from "../../spec/kernel/resolve.ts";
import { messages as say, words } from "../graph/messages.ts";
import { builderContext, NodeBuilder } from "../graph/node_builder.ts";
import { sameAxes } from "../graph/operands.ts";
import {
  axisOf,
  refuse,
  siteOf,
  type Tensor,
  traceOf,
  wrap,
} from "./tensor.ts";
import type { Axis, Without } from "./types.ts";

/** Options of `crossEntropy`. */
export interface CrossEntropyOptions<K extends string> {
  /** The axis of the classes, such as the vocabulary. */
  readonly over: K;
  /** Label of ignored tokens. Default: -100. */
  readonly ignore?: number;
}

/**
 * The mean of `-log softmax(logits)[label]` over all tokens that are not ignored; 0 if there are none. Probabilities
 * are never stored: it uses `logSumExp` and the logit of the label.
 *
 * Axes: none; `labels` has the axes of `logits` without `over`. Dtype: "f32"; labels are "i32". Defaults: `ignore`
 * -100. Errors: an axis that the logits do not have; labels with other axes; at run time, a label out of range.
 * Gradient: by `logits`, `softmax(logits)` minus 1 at the label, divided by the number of counted tokens. Sharding:
 * along the token axes: each rank sums its tokens, and the sums are reduced. `over` is replicated.
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
  options: CrossEntropyOptions<K>,
): Tensor<"", "f32"> {
  const { ignore = -100 } = options;
  const trace = traceOf([logits, labels], crossEntropy);
  const site = siteOf(trace, crossEntropy);
  const { span } = site;
  const over = axisOf(options.over, [logits], trace);
  const [x, label] = [logits.node, labels.node];
  if (!x.axes.includes(over)) {
    const error = new ModelError(say.axis("crossEntropy", x.axes, over), span);
    return refuse(error, [logits], []);
  }
  const rest = x.axes.filter((axis) => axis !== over);
  if (!sameAxes(label.axes, rest) || label.dtype !== "i32") {
    const error = new ModelError(
      `Cannot compute the crossEntropy of '${
        words(x.axes)
      }' with labels ${label.dtype}[${words(label.axes)}]: expected i32[${
        words(rest)
      }]`,
      span,
    );
    return refuse(error, [logits, labels], []);
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
  const losses = b.map(
    (t, o, c) => expr`(${t} - ${o}) * ${c}`,
    total,
    chosen,
    counts,
  );
  const mean = b.map(
    (sum, n) => expr`${sum} / max(${n}, 1)`,
    b.total(losses),
    b.total(counts),
  );
  return wrap(mean, trace);
}
