/** Derivatives of attention and its cache. Cache entries of earlier runs are constants. */

import { expr } from "../../../spec/kernel/text/resolve.ts";
import { ModelError } from "../../../spec/errors.ts";
import type { Cotangents, DerivativeInput } from "./derivatives.ts";
import type { AttentionPart } from "../attention_params.ts";
import type { Node } from "../graph.ts";
import type { NodeBuilder } from "./node_builder.ts";

/** The cotangent of each token is that of the cache entry that it wrote; 0 if it wrote none. */
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
      const at = (position: Node) =>
        b.make("embedding", [
          entries,
          entryIndexOf(b, context, sequence, position),
        ], { over: entry });
      if (!node.params.sparse) return at(position);
      const first = b.map((p) => expr`max(${p}, 0)`, position);
      const wrote = b.map((p) => expr`min(max(${p} + 1, 0), 1)`, position);
      return b.map(
        (d, one) => expr`${d} * ${one}`,
        at(first),
        b.cast(wrote, dy.dtype),
      );
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

/** A cache that an attention reads: operands of `attentionSum` and `attentionGrad`. */
interface ReadCache {
  readonly keys: Node;
  readonly values: Node;
  /** The position of each token, or its last entry. */
  readonly last: Node;
  /** Index of each token, as `attentionGrad` reads it. */
  readonly index: Node;
  readonly sinks: readonly Node[];
  readonly selected: readonly Node[];
  readonly params: AttentionPart;
}

/** The caches that an attention reads: keys, and entries of a second cache if there is one. */
function cachesOf(
  { node, b }: DerivativeInput<"attention">,
): readonly ReadCache[] {
  const [, keys, values, sequence, position, ...more] = node.inputs as [
    Node,
    Node,
    Node,
    Node,
    Node,
    ...Node[],
  ];
  const { entries: context, ...params } = node.params;
  const sinks = params.sinks ? [more.shift()!] : [];
  const selected = params.selected === undefined ? [] : [more.shift()!];
  const ofKeys = {
    keys,
    values,
    last: position,
    index: entryIndexOf(b, params.context, sequence, position),
    sinks,
  };
  if (context === undefined) return [{ ...ofKeys, selected, params }];
  const [entries, upTo] = more as [Node, Node?];
  const { selected: _, ...visible } = params;
  const { window: __, chunk: ___, ...unlimited } = params;
  // With selected entries, only the sequence of the index is used.
  const last = upTo ?? b.constant(-1, position);
  const size = b.context.axes[context]!.size;
  return [{ ...ofKeys, selected: [], params: visible }, {
    keys: entries,
    values: entries,
    last,
    index: b.map(
      (s, p) => expr`${s} * ${size + 1} + (${p} + 1)`,
      sequence,
      last,
    ),
    sinks: [],
    selected,
    params: { ...unlimited, context, sinks: false, sparse: true },
  }];
}

/**
 * Backward pass through the softmax, whose sums are recomputed from queries and keys. The sum over two caches is the
 * log-sum-exp of their sums.
 */
export function attentionDerivative(
  input: DerivativeInput<"attention">,
): Cotangents {
  const { node, dy, b } = input;
  const [q, , , sequence] = node.inputs as [Node, Node, Node, Node];
  const { params } = node;
  const caches = cachesOf(input);
  const sum = caches.map(({ keys, last, sinks, selected, params }) => {
    const operands = [q, keys, sequence, last, ...sinks, ...selected];
    return b.make("attentionSum", operands, params);
  }).reduce((x, y) =>
    b.map(
      (x, y) => {
        const [low, high] = [expr`min(${x}, ${y})`, expr`max(${x}, ${y})`];
        return expr`${high} + log(1.0 + exp(${low} - ${high}))`;
      },
      x,
      y,
    )
  );
  const product = b.make("reduce", [
    b.map((y, d) => expr`${y} * ${d}`, node, dy),
  ], { kind: "sum", over: params.valueDim });
  // Joins the two numbers of a head, so that a rank with some of the heads has both numbers of each.
  const beside = (x: Node, start: number) =>
    b.make("dilate", [x], {
      axis: params.head,
      start,
      step: 2,
      to: `${params.head}_statistics`,
    });
  const statistics = b.add(beside(sum, 0), beside(product, 1));
  const gradient = (
    of: "query" | "keys" | "values",
    { keys, values, index, selected, params }: ReadCache,
  ) => {
    const operands = [q, keys, values, index, dy, statistics, ...selected];
    return b.make("attentionGrad", operands, { ...params, of });
  };
  const ofSinks = () => {
    const [sinks] = caches[0]!.sinks;
    return b.sumTo(
      b.map(
        (total, p, sink) => expr`-(exp(${sink} - ${total}) * ${p})`,
        sum,
        product,
        sinks!,
      ),
      sinks!.axes,
    );
  };
  const [ofKeys, ofEntries] = caches as [ReadCache, ReadCache?];
  return [
    () =>
      caches.map((cache) => gradient("query", cache))
        .reduce((x, y) => b.add(x, y)),
    () => gradient("keys", ofKeys),
    params.shared ? undefined : () => gradient("values", ofKeys),
    undefined,
    undefined,
    ...params.sinks ? [ofSinks] : [],
    ...params.selected === undefined ? [] : [undefined],
    ...ofEntries ? [() => gradient("keys", ofEntries)] : [],
  ];
}
