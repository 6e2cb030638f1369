/** Attention over the cache, and the parts of its derivatives. */

import { isHalf } from "../../../spec/dtype.ts";
import type { Node, NodeOf } from "../../graph/graph.ts";
import { attention, type AttentionOptions } from "../../kernels/attention.ts";
import {
  attentionSum,
  keyGrad,
  queryGrad,
} from "../../kernels/attention_backward.ts";
import { elementwiseGrid } from "../../../spec/kernel/elementwise.ts";
import { attentionGrid } from "../../tuning/queries.ts";
import { addLaunch, type Lowering, sizeOf } from "./context.ts";
import { rowMajorBuffer } from "./elementwise.ts";
import { storageFor } from "./storage.ts";
import { tokenCount } from "./tokens.ts";

/** Options shared by the three kernels of an attention shape. */
function attentionOptions(
  lowering: Lowering,
  node: NodeOf<"attention"> | NodeOf<"attentionSum"> | NodeOf<"attentionGrad">,
) {
  const { scale, window, chunk, shared, sinks } = node.params;
  const { token, head, dim, valueDim, kvHead, context } = node.params;
  const size = (axis: string) => lowering.placed.axes[axis]!.size;
  const what = "of" in node.params ? `_${node.params.of}` : "";
  return {
    name: `${node.primitive}${what}_${size(head)}x${size(dim)}`,
    heads: size(head),
    kvHeads: kvHead === undefined ? 1 : size(kvHead),
    dim: size(dim),
    valueDim: size(valueDim),
    context: size(context),
    shared,
    scale,
    sinks,
    ...(window === undefined ? {} : { window }),
    ...(chunk === undefined ? {} : { chunk }),
    tokens: tokenCount(lowering, [token]),
  } satisfies AttentionOptions;
}

/** Buffers of operands by binding, without absent operands. */
function operandBuffers(
  lowering: Lowering,
  operands: {
    readonly [binding: string]:
      | readonly [Node, axes: readonly string[]]
      | false
      | undefined;
  },
): { [binding: string]: string } {
  return Object.fromEntries(
    Object.entries(operands).flatMap(([name, operand]) =>
      operand ? [[name, rowMajorBuffer(lowering, ...operand)]] : []
    ),
  );
}

/** One launch. The keys and values of a head are read one after another. */
export function lowerAttention(
  lowering: Lowering,
  node: NodeOf<"attention">,
): void {
  const [q, keys, values, sequence, position, ...more] = node
    .inputs as [Node, Node, Node, Node, Node, ...Node[]];
  const { token, head, dim, shared } = node.params;
  const sinks = node.params.sinks && more.shift();
  const [pages] = more;
  const { storages } = lowering.values;
  const { dtype: stored } = storages.get(keys)!;
  const options: AttentionOptions = {
    ...attentionOptions(lowering, node),
    ...isHalf(stored) ? { stored } : {},
    ...pages
      ? { pages: { size: lowering.placed.axes[keys.axes[1]!]!.size } }
      : {},
    queries: lowering.options.tuning.attention ?? 1,
  };
  // 16-bit caches are read in their stored dtype.
  const caches = isHalf(stored)
    ? {
      keys: storages.get(keys)!.buffer,
      values: storages.get(values)!.buffer,
    }
    : operandBuffers(lowering, {
      keys: [keys, keys.axes],
      values: !shared && [values, values.axes],
    });
  const bindings = operandBuffers(lowering, {
    q: [q, [token, head, dim]],
    sequence: [sequence, [token]],
    position: [position, [token]],
    sinks: sinks && [sinks, [head]],
    pages: pages && [pages, pages.axes],
  });
  addLaunch(lowering, node, attention(options), {
    bindings: { ...caches, ...bindings, y: storageFor(lowering, node).buffer },
    workgroups: attentionGrid(options, sizeOf(lowering, [token])),
  });
}

/** The axes of a cache with its heads, if any, last. */
function headsInnermost(
  { axes }: Node,
  kvHead: string | undefined,
): readonly string[] {
  return kvHead === undefined
    ? axes
    : [...axes.filter((axis) => axis !== kvHead), kvHead];
}

/** The log-sum-exp of a query's scores, for all heads. */
export function lowerAttentionSum(
  lowering: Lowering,
  node: NodeOf<"attentionSum">,
): void {
  const [q, keys, sequence, position, sinks] = node
    .inputs as [Node, Node, Node, Node, Node?];
  const { token, head, dim, kvHead } = node.params;
  const options = attentionOptions(lowering, node);
  const bindings = operandBuffers(lowering, {
    q: [q, [token, dim, head]],
    keys: [keys, headsInnermost(keys, kvHead)],
    sequence: [sequence, [token]],
    position: [position, [token]],
    sinks: sinks && [sinks, [head]],
  });
  addLaunch(lowering, node, attentionSum(options), {
    bindings: { ...bindings, y: storageFor(lowering, node).buffer },
    workgroups: elementwiseGrid(sizeOf(lowering, [token, head])),
  });
}

/** The cotangent of queries, keys or values. */
export function lowerAttentionGrad(
  lowering: Lowering,
  node: NodeOf<"attentionGrad">,
): void {
  const [q, keys, values, place, dy, statistics] = node
    .inputs as [Node, Node, Node, Node, Node, Node];
  const { token, head, dim, valueDim, kvHead, shared, of } = node.params;
  const options = attentionOptions(lowering, node);
  const kernel = of === "query" ? queryGrad(options) : keyGrad(options, of);
  const bindings = operandBuffers(lowering, {
    q: [q, [token, dim, head]],
    keys: [keys, headsInnermost(keys, kvHead)],
    values: !shared && [values, headsInnermost(values, kvHead)],
    place: [place, [token]],
    dy: [dy, [token, valueDim, head]],
    statistics: [statistics, statistics.axes],
  });
  const heads = of === "query" ? head : kvHead;
  const rows = heads === undefined ? [token] : [token, heads];
  addLaunch(lowering, node, kernel, {
    bindings: { ...bindings, y: storageFor(lowering, node).buffer },
    workgroups: elementwiseGrid(sizeOf(lowering, rows)),
  });
}
