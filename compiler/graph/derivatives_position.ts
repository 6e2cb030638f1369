/** Derivatives of attention and its cache. Cache entries of earlier runs are constants. */

import { expr } from "../../spec/kernel/resolve.ts";
import { ModelError } from "../../spec/errors.ts";
import type { Cotangents, DerivativeInput } from "./derivatives.ts";
import type { Node } from "./graph.ts";
import type { NodeBuilder } from "./node_builder.ts";

/** The cotangent of each token is that of the cache entry that it wrote. */
export function cacheWriteDerivative(
  { node, dy, b }: DerivativeInput<"cacheWrite">,
): Cotangents {
  const [, , sequence, position] = node.inputs as [Node, Node, Node, Node];
  const [sequences, context] = node.axes as [string, string];
  return [
    () => {
      throw new ModelError(
        `Cannot differentiate a cache that is written twice in a run. Use separate states for each attention`,
        node.span,
      );
    },
    () => {
      const entry = `${sequences}_${context}`;
      const entries = b.make("merge", [dy], {
        axes: [sequences, context],
        to: entry,
      });
      const entryIndex = entryIndexOf(b, context, sequence, position);
      return b.make("embedding", [entries, entryIndex], { over: entry });
    },
  ];
}

/** The index of each token in a cache whose sequences and positions are one axis. */
function entryIndexOf(
  b: NodeBuilder,
  context: string,
  sequence: Node,
  position: Node,
): Node {
  const length = b.context.axes[context]!.size;
  return b.map((s, p) => expr`${s} * ${length} + ${p}`, sequence, position);
}

/** Backward pass through the softmax, whose sums are recomputed from queries and keys. */
export function attentionDerivative(
  { node, dy, b }: DerivativeInput<"attention">,
): Cotangents {
  const [q, keys, values, sequence, position, ...more] = node.inputs as [
    Node,
    Node,
    Node,
    Node,
    Node,
    ...Node[],
  ];
  const { params } = node;
  if (params.entries !== undefined) {
    return node.inputs.map(() => () => {
      throw new ModelError(
        "Cannot differentiate attention to entries of a second cache: it is built for inference only",
        node.span,
      );
    });
  }
  const sinks = params.sinks ? more[0] : undefined;
  const selected = more.slice(sinks ? 1 : 0);
  const sum = b.make(
    "attentionSum",
    [q, keys, sequence, position, ...more],
    params,
  );
  const product = b.make("reduce", [
    b.map((y, d) => expr`${y} * ${d}`, node, dy),
  ], { kind: "sum", over: params.valueDim });
  const entryIndex = entryIndexOf(b, params.context, sequence, position);
  // Joins the two numbers of a head, so that a rank with some of the heads has both numbers of each.
  const beside = (x: Node, start: number) =>
    b.make("dilate", [x], {
      axis: params.head,
      start,
      step: 2,
      to: `${params.head}_statistics`,
    });
  const statistics = b.add(beside(sum, 0), beside(product, 1));
  const of = (what: "query" | "keys" | "values") => () =>
    b.make(
      "attentionGrad",
      [q, keys, values, entryIndex, dy, statistics, ...selected],
      { ...params, of: what },
    );
  const ofSinks = () =>
    b.sumTo(
      b.map(
        (total, p, sink) => expr`-(exp(${sink} - ${total}) * ${p})`,
        sum,
        product,
        sinks!,
      ),
      sinks!.axes,
    );
  return [
    of("query"),
    of("keys"),
    params.shared ? undefined : of("values"),
    undefined,
    undefined,
    sinks ? ofSinks : undefined,
  ];
}
