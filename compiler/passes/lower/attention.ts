/** Attention over the cache, and the parts of its derivatives. */

import { type HalfDType, isHalf } from "../../../spec/dtype.ts";
import type { Node, NodeOf } from "../../graph/graph.ts";
import { attention } from "../../kernels/attention/attention.ts";
import { attentionMatrices } from "../../kernels/attention/matrices.ts";
import type { AttentionOptions } from "../../kernels/attention/block.ts";
import {
  attentionSum,
  type BackwardOptions,
  keyGrad,
  queryGrad,
} from "../../kernels/attention/backward.ts";
import { elementwiseGrid } from "../../../spec/kernel/elementwise.ts";
import {
  type MatrixQueries,
  matrixQueries,
  matrixQueriesGrid,
} from "../../tuning/attention_matrices.ts";
import { FEW_ROWS } from "../../tuning/matrices.ts";
import {
  attentionGrid,
  keyBlocks,
  splitGrids,
  splitTile,
  splitTokensOf,
  WORDS_AT_ONCE,
} from "../../tuning/queries.ts";
import {
  attentionMerge,
  attentionParts,
  attentionResult,
} from "../../kernels/attention/split.ts";
import { localBound } from "../../sharding/lengths.ts";
import { type Grid, kernelFrom } from "../../../spec/kernel/make.ts";
import { EXACT } from "../../../spec/numerics.ts";
import type { Size } from "../../../spec/size.ts";
import { groupSizeOf, type RankSet } from "../../../spec/mesh.ts";
import {
  addLaunch,
  addScratch,
  amendBuffer,
  fixedProduct,
  type Lowering,
  partIndex,
  PARTS,
  sizeOf,
} from "./context.ts";
import { rowMajorBuffer } from "./elementwise.ts";
import { forRows } from "./matmul/inline_norms.ts";
import { lowerNewToken } from "./new_token.ts";
import { addReceived, addSend } from "./collectives/send.ts";
import { isPlain, storageFor } from "./storage.ts";
import { tokenCount } from "./tokens.ts";

/** Options shared by the three kernels of an attention shape. */
function attentionOptions(
  lowering: Lowering,
  node: NodeOf<"attention"> | NodeOf<"attentionSum"> | NodeOf<"attentionGrad">,
) {
  const { scale, window, chunk, shared, sinks } = node.params;
  const { token, head, dim, valueDim, kvHead, context } = node.params;
  const { selected, entries, selectedBlock, selectedPerHead } = node.params;
  const sparse = "sparse" in node.params && node.params.sparse === true;
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
    ...(selectedBlock === undefined ? {} : { selectedBlock }),
    ...(selectedPerHead ? { selectedPerHead } : {}),
    ...(entries === undefined ? {} : { entries: size(entries) }),
    sparse,
    tokens: tokenCount(lowering, [token]),
  } satisfies AttentionOptions & BackwardOptions;
}

/** Buffers of operands by binding, without absent operands. */
export function operandBuffers(
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
  const gathered = more.at(-1)?.primitive === "keyTable" && more.splice(-3);
  const sinks = node.params.sinks && more.shift();
  const selected = node.params.selected !== undefined && more.shift();
  const entries = node.params.entries !== undefined && more.shift();
  const last = entries && !selected && more.shift();
  const [pages] = more;
  const { storages } = lowering.values;
  const { tuning, maxBinding } = lowering.options;
  const { dtype: stored } = storages.get(keys)!;
  const { cacheAxes } = lowering.model;
  const sinksOf = sinks ? storages.get(sinks) : undefined;
  // Sinks of heads are read in their stored dtype.
  const isRead = sinksOf && isPlain(sinksOf) && isHalf(sinksOf.dtype);
  const options: AttentionOptions = {
    ...attentionOptions(lowering, node),
    ...isHalf(stored) ? { stored } : {},
    ...isRead ? { sinksStored: sinksOf.dtype as HalfDType } : {},
    ...pages
      ? { pages: { size: lowering.placed.axes[keys.axes[1]!]!.size } }
      : {},
    headMajor: cacheAxes.has(keys.inputs[0]!),
    queries: tuning.attention ?? 1,
    ...tuning.wideRows ? { atOnce: WORDS_AT_ONCE } : {},
  };
  const splitTokens = splitTokensOf(options, {
    tokens: tuning.splitKeys ?? 0,
    maxBinding,
  });
  const axesOf = ({ axes, inputs: [state] }: Node) =>
    cacheAxes.get(state!) ?? axes;
  // 16-bit caches are read in their stored dtype.
  const cachesOf = (keys: Node, values: Node) =>
    isHalf(stored)
      ? {
        keys: storages.get(keys)!.buffer,
        values: storages.get(values)!.buffer,
      }
      : operandBuffers(lowering, {
        keys: [keys, axesOf(keys)],
        values: !shared && [values, axesOf(values)],
      });
  const bindings = operandBuffers(lowering, {
    q: [q, [token, head, dim]],
    sequence: [sequence, [token]],
    position: [position, [token]],
    sinks: sinks && !isRead && [sinks, [head]],
    selected: selected && [selected, selected.axes],
    entries: entries && [entries, entries.axes],
    last: last && [last, [token]],
    pages: pages && [pages, pages.axes],
  });
  const { buffer: y } = storageFor(lowering, node);
  const operands = {
    ...cachesOf(keys, values),
    ...bindings,
    ...isRead ? { sinks: sinksOf.buffer } : {},
  };
  if (gathered) {
    const [keys, values, table] = gathered as [Node, Node, NodeOf<"keyTable">];
    const tokens = sizeOf(lowering, [table.params.gathered]);
    const { total: context } = lowering.placed.axes[node.params.context]!;
    const pages = { size: EXACT.block };
    addSums(lowering, node, {
      options: { ...options, context, pages },
      tokens,
      split: undefined,
      operands: {
        ...operands,
        ...cachesOf(keys, values),
        pages: storages.get(table)!.buffer,
        y,
      },
    }, y);
    amendBuffer(lowering, y, { writers: 2 });
    lowerShards(lowering, node, {
      options,
      splitTokens,
      operands,
      y,
      tokens: table.params.relayed,
    });
    return;
  }
  const tokens = sizeOf(lowering, [token]);
  const split = splitTokens > 0
    ? addParts(lowering, node, { options, splitTokens, operands, tokens })
    : undefined;
  const { operands: dtype, maxShared } = lowering.options;
  const max = Math.max(...localBound(lowering.placed, token));
  addSums(lowering, node, {
    options,
    split,
    tile: dtype === "f16" && max > FEW_ROWS
      ? matrixQueries(options, maxShared)
      : undefined,
    operands: { ...operands, y },
    tokens,
  }, y);
}

/** An attention, the buffers of its operands, by binding, and the number of tokens. */
interface Attended {
  readonly options: AttentionOptions;
  readonly operands: { readonly [binding: string]: string };
  readonly tokens: Size;
}

/** Sums of blocks of keys, if tokens are few. */
interface SplitKeys {
  readonly bindings: { readonly tops: string; readonly sums: string };
  readonly grid: Grid;
  /** Number of tokens above which keys are not split. Undefined: there are never more. */
  readonly upTo: number | undefined;
}

/** Launches the sums of each block of keys. */
function addParts(
  lowering: Lowering,
  node: NodeOf<"attention">,
  { options, splitTokens, operands, tokens }: Attended & {
    readonly splitTokens: number;
  },
): SplitKeys {
  const { token, head, valueDim } = node.params;
  const max = Math.max(...localBound(lowering.placed, token));
  const isFixed = typeof tokens === "number";
  const few: Size = isFixed || max <= splitTokens
    ? tokens
    : { upTo: [tokens, splitTokens, tokens] };
  const blocks = [
    { axis: "split token", size: Math.min(max, splitTokens) },
    head,
    { axis: "key block", size: keyBlocks(options) },
  ];
  const bindings = {
    tops: addScratch(lowering, "tops", "f32", [
      ...blocks,
      { axis: "top, sum", size: 2 },
    ]),
    sums: addScratch(lowering, "sums", "f32", [...blocks, valueDim]),
  };
  const isApart = lowerNewToken(lowering, node, {
    options,
    operands,
    sums: bindings,
    tokens,
  });
  const more = isApart ? forRows(few, { rows: tokens }).more : few;
  addLaunch(
    lowering,
    node,
    kernelFrom(attentionParts, options, splitTile(options)),
    {
      bindings: { ...operands, ...bindings },
      workgroups: splitGrids(options, more).parts,
    },
  );
  const upTo = max <= splitTokens ? undefined : splitTokens;
  return { bindings, grid: splitGrids(options, few).merge, upTo };
}

/**
 * Launches the merge of split keys, and for more tokens, or without a split, attention in one launch; for many tokens,
 * attention with 16-bit operands.
 */
function addSums(
  lowering: Lowering,
  node: NodeOf<"attention">,
  { options, split, tile, operands, tokens }: Attended & {
    readonly split: SplitKeys | undefined;
    /** The queries of a workgroup with 16-bit operands, if many tokens have them. */
    readonly tile?: MatrixQueries | undefined;
  },
  result: string,
): void {
  if (split) {
    addLaunch(lowering, node, kernelFrom(attentionMerge, options), {
      bindings: { ...operands, ...split.bindings },
      workgroups: split.grid,
    });
    if (!options.shard) {
      lowering.values.merges.set(node, {
        options,
        launch: lowering.draft.steps.at(-1)!,
        bindings: mergedOperands(operands, split.bindings),
        tokens,
        few: split.grid[1],
        upTo: split.upTo,
      });
    }
    // Tokens that there cannot be have no launch.
    if (split.upTo === undefined) return;
  }
  const writers = 1 + (split ? 1 : 0) + (tile ? 1 : 0);
  if (writers > 1) amendBuffer(lowering, result, { writers });
  const more: Size = split ? { above: [tokens, split.upTo!, tokens] } : tokens;
  addLaunch(lowering, node, kernelFrom(attention, options), {
    bindings: operands,
    workgroups: attentionGrid(
      options,
      tile ? { upTo: [tokens, FEW_ROWS, more] } : more,
    ),
  });
  if (!tile) return;
  const many: Size = { above: [tokens, FEW_ROWS, tokens] };
  addLaunch(lowering, node, kernelFrom(attentionMatrices, options, tile), {
    bindings: operands,
    workgroups: matrixQueriesGrid(options, { tile, tokens: many }),
  });
}

/** The operands of a merge without its result. */
function mergedOperands(
  { y: _, ...operands }: Attended["operands"],
  sums: SplitKeys["bindings"],
): Attended["operands"] {
  return { ...operands, ...sums };
}

/**
 * Attention of all tokens on each rank to the keys on that rank. The running sums are sent from rank to rank, so that
 * blocks of keys are merged in order. The last rank sends the sums of all keys to the others.
 */
function lowerShards(
  lowering: Lowering,
  node: NodeOf<"attention">,
  { options: of, splitTokens, operands, y, tokens: token }:
    & Omit<Attended, "tokens">
    & {
      readonly splitTokens: number;
      readonly y: string;
      /** The axis of these tokens. */
      readonly tokens: string;
    },
): void {
  const { progress, placed } = lowering;
  const { context, head, valueDim } = node.params;
  const { over } = placed.axes[context]!;
  const last = groupSizeOf(placed.mesh, over) - 1;
  const { ranks } = progress;
  const at = (...coordinates: number[]): RankSet => ({
    ...ranks === "all" ? {} : ranks,
    [over[0]!]: coordinates,
  });
  const width = placed.axes[valueDim]!.size + 2;
  const sumsAfter = addScratch(lowering, "running sums", "f32", [
    token,
    head,
    { axis: "values, top, sum", size: width },
  ]);
  const sumsBefore = addReceived(lowering, "previous sums", sumsAfter);
  const total = addReceived(lowering, "total sums", sumsAfter);
  const tokens = sizeOf(lowering, [token]);
  const send = (from: number, to: number, into: string) =>
    addSend(lowering, node, {
      ranks: at(...[from, to].sort((a, b) => a - b)),
      over,
      stages: [from, to],
      from: sumsAfter,
      to: into,
      bytes: 4 * width * fixedProduct(lowering, node, [head]),
      rows: token,
    });
  const start = partIndex(lowering, context, "start");
  const optionsOf = (rank: number): AttentionOptions => ({
    ...of,
    shard: { start, continues: rank > 0 },
  });
  const buffers = { ...operands, parts: PARTS, sumsBefore, sumsAfter };
  const split = splitTokens > 0
    ? addParts(lowering, node, {
      options: optionsOf(0),
      splitTokens,
      operands: buffers,
      tokens,
    })
    : undefined;
  for (let rank = 0; rank <= last; rank++) {
    progress.ranks = at(rank);
    const options = optionsOf(rank);
    addSums(
      lowering,
      node,
      { options, split, operands: buffers, tokens },
      sumsAfter,
    );
    if (rank < last) send(rank, rank + 1, sumsBefore);
  }
  for (let rank = 0; rank < last; rank++) send(last, rank, total);
  const others = Array.from({ length: last }, (_, rank) => rank);
  for (
    const [coordinates, sums] of [[others, total], [[last], sumsAfter]] as const
  ) {
    progress.ranks = at(...coordinates);
    addLaunch(lowering, node, attentionResult(of), {
      bindings: { sumsAfter: sums, y },
      workgroups: elementwiseGrid(sizeOf(lowering, [token, head, valueDim])),
    });
  }
  progress.ranks = ranks;
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
  // The rows of the result: tokens, or all rows of a cache that only some of them wrote.
  const written = of !== "query" && options.sparse
    ? keys.axes.slice(0, 2)
    : [token];
  const kernel = of === "query"
    ? queryGrad(options)
    : keyGrad({ ...options, rows: tokenCount(lowering, written) }, of);
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
  const rows = heads === undefined ? written : [...written, heads];
  addLaunch(lowering, node, kernel, {
    bindings: { ...bindings, y: storageFor(lowering, node).buffer },
    workgroups: elementwiseGrid(sizeOf(lowering, rows)),
  });
}
