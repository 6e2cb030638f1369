/** Attention over the cache, the parts of its derivatives, and the selection of keys. */

import { isHalf } from "../../../spec/dtype.ts";
import type { Node, NodeOf } from "../../graph/graph.ts";
import { attention } from "../../kernels/attention.ts";
import type { AttentionOptions } from "../../kernels/attention_block.ts";
import {
  attentionSum,
  keyGrad,
  queryGrad,
} from "../../kernels/attention_backward.ts";
import { elementwiseGrid } from "../../../spec/kernel/elementwise.ts";
import {
  attentionGrid,
  keyBlocks,
  splitGrids,
  splitTile,
  splitTokensOf,
} from "../../tuning/queries.ts";
import {
  attentionMerge,
  attentionParts,
} from "../../kernels/attention_split.ts";
import { localBound } from "../../sharding/lengths.ts";
import type { Size } from "../../../spec/size.ts";
import { rowsGrid } from "../../kernels/rows.ts";
import {
  scoreKeys,
  scoreKeysGrid,
  selectKeys,
} from "../../kernels/select_keys.ts";
import {
  addLaunch,
  addScratch,
  amendBuffer,
  type Lowering,
  sizeOf,
} from "./context.ts";
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
  const { selected, entries } = node.params;
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
    ...(selected === undefined ? {} : { selected: size(selected) }),
    ...(entries === undefined ? {} : { entries: size(entries) }),
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

/** One launch, or where tokens are few and the tuning splits keys, two. */
export function lowerAttention(
  lowering: Lowering,
  node: NodeOf<"attention">,
): void {
  const [q, keys, values, sequence, position, ...more] = node
    .inputs as [Node, Node, Node, Node, Node, ...Node[]];
  const { token, head, dim, shared } = node.params;
  const sinks = node.params.sinks && more.shift();
  const selected = node.params.selected !== undefined && more.shift();
  const entries = node.params.entries !== undefined && more.shift();
  const last = entries && !selected && more.shift();
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
  const { tuning, maxBinding } = lowering.options;
  const splitTokens = splitTokensOf(options, {
    tokens: tuning.splitKeys ?? 0,
    maxBinding,
  });
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
    selected: selected && [selected, selected.axes],
    entries: entries && [entries, entries.axes],
    last: last && [last, [token]],
    pages: pages && [pages, pages.axes],
  });
  const { buffer: y } = storageFor(lowering, node);
  const tokens = sizeOf(lowering, [token]);
  const operands = { ...caches, ...bindings };
  if (splitTokens === 0) {
    addLaunch(lowering, node, attention(options), {
      bindings: { ...operands, y },
      workgroups: attentionGrid(options, tokens),
    });
    return;
  }
  const max = Math.max(...localBound(lowering.placed, token));
  const isFixed = typeof tokens === "number";
  lowerSplit(lowering, node, {
    options,
    max: Math.min(max, splitTokens),
    tokens: isFixed || max <= splitTokens
      ? tokens
      : { upTo: [tokens, splitTokens, tokens] },
    bindings: { ...operands, y },
  });
  // Tokens that there cannot be have no launch.
  if (max <= splitTokens) return;
  amendBuffer(lowering, y, { writers: 2 });
  addLaunch(lowering, node, attention(options), {
    bindings: { ...operands, y },
    workgroups: attentionGrid(options, {
      above: [tokens, splitTokens, tokens],
    }),
  });
}

/** Attention split over blocks of keys, whose sums a second launch merges. */
function lowerSplit(
  lowering: Lowering,
  node: NodeOf<"attention">,
  { options, max, tokens, bindings }: {
    readonly options: AttentionOptions;
    /** Maximum number of tokens. */
    readonly max: number;
    readonly tokens: Size;
    readonly bindings: { readonly [binding: string]: string };
  },
): void {
  const { head, valueDim } = node.params;
  const blocks = [
    { axis: "split token", size: max },
    head,
    { axis: "key block", size: keyBlocks(options) },
  ];
  const parts = {
    tops: addScratch(lowering, "tops", "f32", [
      ...blocks,
      { axis: "top, sum", size: 2 },
    ]),
    sums: addScratch(lowering, "sums", "f32", [...blocks, valueDim]),
  };
  const grids = splitGrids(options, tokens);
  const kernels = [
    [attentionParts(options, splitTile(options)), grids.parts],
    [attentionMerge(options), grids.merge],
  ] as const;
  for (const [kernel, workgroups] of kernels) {
    addLaunch(lowering, node, kernel, {
      bindings: { ...bindings, ...parts },
      workgroups,
    });
  }
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
  const [q, keys, sequence, position, ...more] = node
    .inputs as [Node, Node, Node, Node, ...Node[]];
  const { token, head, dim, kvHead } = node.params;
  const sinks = node.params.sinks && more.shift();
  const [selected] = more;
  const options = attentionOptions(lowering, node);
  const bindings = operandBuffers(lowering, {
    q: [q, [token, dim, head]],
    keys: [keys, headsInnermost(keys, kvHead)],
    sequence: [sequence, [token]],
    position: [position, [token]],
    sinks: sinks && [sinks, [head]],
    selected: selected && [selected, selected.axes],
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
  const [q, keys, values, entry, dy, statistics, selected] = node
    .inputs as [Node, Node, Node, Node, Node, Node, Node?];
  const { token, head, dim, valueDim, kvHead, shared, of } = node.params;
  const options = attentionOptions(lowering, node);
  const kernel = of === "query" ? queryGrad(options) : keyGrad(options, of);
  const bindings = operandBuffers(lowering, {
    q: [q, [token, dim, head]],
    keys: [keys, headsInnermost(keys, kvHead)],
    values: !shared && [values, headsInnermost(values, kvHead)],
    entryOf: [entry, [token]],
    dy: [dy, [token, valueDim, head]],
    statistics: [statistics, statistics.axes],
    selected: selected && [selected, selected.axes],
  });
  const heads = of === "query" ? head : kvHead;
  const rows = heads === undefined ? [token] : [token, heads];
  addLaunch(lowering, node, kernel, {
    bindings: { ...bindings, y: storageFor(lowering, node).buffer },
    workgroups: elementwiseGrid(sizeOf(lowering, rows)),
  });
}

/** Two launches: scores of all keys that a token sees, and the best of them. */
export function lowerSelectKeys(
  lowering: Lowering,
  node: NodeOf<"selectKeys">,
): void {
  const [query, weights, keys, sequence, last, pages] = node
    .inputs as [Node, Node, Node, Node, Node, Node?];
  const { token, head, dim, context, k } = node.params;
  const size = (axis: string) => lowering.placed.axes[axis]!.size;
  const { buffer, dtype: stored } = lowering.values.storages.get(keys)!;
  const common = {
    context: size(context),
    tokens: tokenCount(lowering, [token]),
  };
  const options = {
    ...common,
    name: `scoreKeys_${size(head)}x${size(dim)}`,
    heads: size(head),
    dim: size(dim),
    ...isHalf(stored) ? { stored } : {},
    ...pages ? { pages: { size: size(keys.axes[1]!) } } : {},
  };
  const scores = addScratch(lowering, "scores", "f32", [token, context]);
  const tokens = sizeOf(lowering, [token]);
  const at = operandBuffers(lowering, { last: [last, [token]] });
  addLaunch(lowering, node, scoreKeys(options), {
    bindings: {
      ...operandBuffers(lowering, {
        query: [query, [token, head, dim]],
        weights: [weights, [token, head]],
        sequence: [sequence, [token]],
        pages: pages && [pages, pages.axes],
        keys: !isHalf(stored) && [keys, keys.axes],
      }),
      ...isHalf(stored) ? { keys: buffer } : {},
      ...at,
      scores,
    },
    workgroups: scoreKeysGrid(options, tokens),
  });
  addLaunch(
    lowering,
    node,
    selectKeys({ ...common, name: `selectKeys_${k}`, k }),
    {
      bindings: {
        ...at,
        scores,
        selected: storageFor(lowering, node).buffer,
      },
      workgroups: rowsGrid(tokens),
    },
  );
}
