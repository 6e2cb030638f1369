/** Small launches of the generators of attention and its gradients, at sizes around those where kernels differ. */

import { attention } from "../../compiler/kernels/attention/attention.ts";
import { attentionMatrices } from "../../compiler/kernels/attention/matrices.ts";
import {
  NEW_SQUARES,
  type NewToken,
  type NewVector,
} from "../../compiler/kernels/attention/new_token.ts";
import {
  mergeContract,
  mergeContractGroups,
  MERGED_HEAD,
  MERGED_TOKEN,
} from "../../compiler/kernels/attention/merge_contract.ts";
import {
  attentionMerge,
  attentionParts,
  attentionResult,
} from "../../compiler/kernels/attention/split.ts";
import {
  attentionGrid,
  matrixQueries,
  matrixQueriesGrid,
} from "../../compiler/tuning/mod.ts";
import {
  KEY_BLOCK,
  keyBlocks,
  splitGrids,
  splitTile,
  WORDS_AT_ONCE,
} from "../../compiler/tuning/queries.ts";
import {
  attentionSum,
  type BackwardOptions,
  keyGrad,
  queryGrad,
} from "../../compiler/kernels/attention/backward.ts";
import { rowsGrid } from "../../compiler/kernels/rows.ts";
import {
  scoreBlocks,
  scoreBlocksGrid,
} from "../../compiler/kernels/attention/score_blocks.ts";
import {
  scoreKeys,
  scoreKeysGrid,
  selectKeys,
} from "../../compiler/kernels/attention/select_keys.ts";
import type { AttentionOptions } from "../../compiler/kernels/attention/block.ts";
import {
  add,
  let_,
  load,
  local,
  mul,
  store,
  u32,
} from "../../spec/kernel/build.ts";
import { range } from "../../spec/range.ts";
import { elementwiseGrid } from "../../spec/kernel/elementwise.ts";
import { bindings, lengthAt, wgsl } from "../../compiler/kernels/kernel.ts";
import { product } from "./generator_sums.ts";
import type { Launch } from "./launch_faults.ts";
import { waves } from "./waves.ts";

const name = "kernel";

/** Positions of selected keys, [token, 3]: its own and the first two earlier ones. -1: no key. */
function selectedOf(batch: (typeof BATCHES)[number]): number[] {
  return batch.flatMap(([, position]) =>
    position === 0 ? [0, -1, -1] : [position, 0, position > 1 ? 1 : -1]
  );
}

/** Options of a list of keys, and the lists of a batch of tokens. */
function listOf(
  batch: (typeof BATCHES)[number],
  listed: Listed,
  kvHeads: number,
) {
  if (listed === "positions") {
    return { options: { selected: 3 }, lists: selectedOf(batch) };
  }
  // The blocks of each key head: all up to that of the token, or only that one for odd heads.
  const size = listed;
  const count = Math.ceil(CONTEXT / size);
  const lists = batch.flatMap(([, position]) =>
    Array.from({ length: kvHeads }, (_, head) => {
      const last = Math.floor(position / size);
      const blocks = Array.from({ length: last + 1 }, (_, b) => b)
        .filter((b) => head % 2 === 0 || b === last);
      return [...blocks, ...new Array<number>(count).fill(-1)].slice(0, count);
    }).flat()
  );
  const options = {
    selected: count,
    selectedBlock: size,
    selectedPerHead: true,
  };
  return { options, lists };
}

/** Batches of [sequence, position] of tokens: two sequences in a cache of four positions. */
export const BATCHES: readonly (readonly (readonly [number, number])[])[] = [
  [],
  [[0, 0]],
  [[1, 3]],
  [[1, 0], [1, 1], [1, 2]],
  [[0, 2], [0, 3], [1, 0], [1, 1], [1, 2]],
  [[0, 3], [1, 0]],
];

/**
 * Contents of a cache after the last of these tokens: vectors of a width, by default [sequence, context, head]. NaN:
 * unwritten.
 */
function cache(
  batch: (typeof BATCHES)[number],
  width: number,
  { heads = 1, indexOf = (entry, head) => entry * heads + head }: {
    readonly heads?: number;
    readonly indexOf?: (entry: number, head: number) => number;
  } = {},
): number[] {
  const x = new Array<number>(ROWS * heads * width).fill(NaN);
  for (const [sequence, position] of batch) {
    for (let cell = 0; cell < (position + 1) * heads; cell++) {
      const entry = sequence * CONTEXT + Math.floor(cell / heads);
      const start = indexOf(entry, cell % heads) * width;
      for (let i = 0; i < width; i++) x[start + i] = Math.sin(start + i);
    }
  }
  return x;
}

export const CONTEXT = 4;
/** Rows of the cache of two sequences. */
const ROWS = 2 * CONTEXT;

/** Lists of positions, or of blocks of this many positions. */
type Listed = "positions" | number;

/**
 * Options that kernels of attention differ by: [query heads, key heads], [key width, value width], mask, and others.
 */
interface Variant {
  readonly heads: readonly [number, number];
  readonly dims: readonly [number, number];
  readonly sees: { readonly window?: number; readonly chunk?: number };
  readonly shared: boolean;
  readonly sinks: boolean;
  readonly listed: Listed | undefined;
  readonly entries: boolean;
}

const ATTENTION: { readonly [K in keyof Variant]: readonly Variant[K][] } = {
  heads: [[1, 1], [2, 1], [4, 2]],
  dims: [[1, 1], [3, 2], [33, 33], [32, 32]],
  sees: [{}, { window: 2 }, { chunk: 2 }, { window: 3, chunk: 2 }],
  shared: [false, true],
  sinks: [false, true],
  listed: [undefined, "positions", 3, KEY_BLOCK],
  entries: [false, true],
};

export function* ofAttention(): Generator<Launch> {
  let c = 0;
  for (const [n, batch] of BATCHES.entries()) {
    for (
      const {
        heads: [heads, kvHeads],
        dims: [dim, valueDim],
        sees,
        listed,
        entries,
        ...o
      } of product(ATTENTION)
    ) {
      if (listed && !entries && (sees.window || sees.chunk)) continue;
      if (entries && (!o.shared || kvHeads > 1 || sees.chunk)) continue;
      if (entries && typeof listed === "number") continue;
      const list = listed && listOf(batch, listed, kvHeads);
      // Wide heads only with many tokens; sinks only with both masks; shared values only without a mask.
      if (dim > 3 && n !== 4) continue;
      if (o.sinks && !listed && !(sees.window && sees.chunk)) continue;
      if (o.shared && !entries && (sees.window || sees.chunk)) continue;
      // Over the batches, each variant has every number of queries, paged and not.
      c++;
      const some = heads === 1 ? [1, 6] : [1, 4, 6];
      const queries = some[(c + Math.floor(n / 2)) % some.length]!;
      const paged = (c + n) % 2 === 1;
      const headMajor = kvHeads > 1 && Math.floor((c + n) / 2) % 2 === 1;
      const options = {
        name,
        heads,
        kvHeads,
        dim,
        valueDim,
        ...sees,
        ...o,
        context: CONTEXT,
        scale: 0.5,
        tokens: lengthAt(0),
        queries,
        headMajor,
        ...list ? list.options : {},
        ...entries ? { entries: CONTEXT } : {},
        ...dim === 32 ? { atOnce: WORDS_AT_ONCE } : {},
      };
      const pages = [3, 1, 0, 2];
      const size = paged ? 2 : CONTEXT;
      const indexOf = (entry: number, head: number) => {
        const block = Math.floor(entry / size);
        const [page, within] = [paged ? pages[block]! : block, entry % size];
        return headMajor
          ? (page * kvHeads + head) * size + within
          : (page * size + within) * kvHeads + head;
      };
      const layout = { heads: kvHeads, indexOf };
      yield {
        kernel: () =>
          attention({ ...options, ...paged ? { pages: { size: 2 } } : {} }),
        grid: attentionGrid(options, batch.length),
        reads: {
          q: waves(batch.length * heads * dim),
          keys: cache(batch, dim, layout),
          values: cache(batch, valueDim, layout),
          pages,
          ...list ? { selected: list.lists } : {},
          entries: cache(batch, dim),
          last: batch.map(([, position]) => position - 1),
          sinks: waves(heads),
          lengths: [batch.length],
          sequence: batch.map(([sequence]) => sequence),
          position: batch.map(([, position]) => position),
        },
        stores: { y: batch.length * heads * valueDim },
      };
    }
  }
  yield* onRanks();
}

export function* ofAttentionMatrices(): Generator<Launch> {
  for (const [n, batch] of BATCHES.entries()) {
    const paged = n % 2 === 1 ? { pages: { size: 2 } } : {};
    const options = {
      name,
      heads: 4,
      kvHeads: 2,
      dim: 16,
      valueDim: 32,
      ...ATTENTION.sees[n % 4],
      sinks: n % 3 === 0,
      context: CONTEXT,
      scale: 0.5,
      tokens: lengthAt(0),
    };
    const tile = matrixQueries(options, n % 2 === 0 ? 1 << 15 : 3 << 14)!;
    const { heads, kvHeads, dim, valueDim } = options;
    yield {
      kernel: () => attentionMatrices({ ...options, ...paged }, tile),
      grid: matrixQueriesGrid(options, { tile, tokens: batch.length }),
      reads: {
        q: waves(batch.length * heads * dim),
        keys: waves(ROWS * kvHeads * dim),
        values: waves(ROWS * kvHeads * valueDim),
        pages: [3, 1, 0, 2],
        sinks: waves(heads),
        lengths: [batch.length],
        sequence: batch.map(([sequence]) => sequence),
        position: batch.map(([, position]) => position),
      },
      stores: { y: batch.length * heads * valueDim },
    };
  }
}

/** Attention to the keys of one of several ranks that shard positions. */
function* onRanks(): Generator<Launch> {
  let c = 0;
  for (const { options, positions } of splits()) {
    const { heads, kvHeads, dim, valueDim = dim, context, shard } = options;
    if (!shard || dim > 3 && positions.length < 3) continue;
    const tiled = { ...options, queries: [1, 4, 6][c++ % 3]! };
    const paged = c % 2 > 0 ? { pages: { size: KEY_BLOCK } } : {};
    yield {
      kernel: () => attention({ ...tiled, ...paged }),
      grid: attentionGrid(tiled, positions.length),
      reads: {
        q: waves(positions.length * heads * dim),
        keys: waves(context * kvHeads * dim),
        values: waves(context * kvHeads * valueDim),
        pages: [2, 0, 1],
        sinks: waves(heads),
        sequence: positions.map(() => 0),
        position: positions,
        lengths: [positions.length],
        ...shardReads(options, positions.length),
      },
      stores: resultsOf(options, positions.length),
    };
  }
}

function* backward(
  make: (o: BackwardOptions) => ReturnType<Launch["kernel"]>,
  storedOf: (
    o: BackwardOptions,
    rows: { readonly tokens: number; readonly written: readonly number[] },
  ) => {
    readonly threads: number;
    readonly y: Launch["stores"][string];
  },
): Generator<Launch> {
  for (const batch of BATCHES) {
    for (
      const {
        heads: [heads, kvHeads],
        dims: [dim, valueDim],
        sees,
        listed,
        entries,
        ...o
      } of product(ATTENTION)
    ) {
      if ((entries || listed) && (sees.window || sees.chunk)) continue;
      if (entries && (o.sinks || !o.shared || kvHeads > 1)) continue;
      if (entries && typeof listed === "number") continue;
      const list = listed && listOf(batch, listed, kvHeads);
      if (dim > 3 && (o.sinks || heads === 2 || sees.chunk)) continue;
      const options: BackwardOptions = {
        name,
        heads,
        kvHeads,
        dim,
        valueDim,
        ...sees,
        ...o,
        context: CONTEXT,
        scale: 0.5,
        tokens: lengthAt(0),
        ...list ? list.options : {},
        ...entries ? { sparse: true, rows: u32(ROWS) } : {},
      };
      const entryOf = batch.map(([s, p]) => s * CONTEXT + p);
      const all = Array.from({ length: ROWS }, (_, i) => i);
      const { threads, y } = storedOf(options, {
        tokens: batch.length,
        written: entries ? all : entryOf,
      });
      yield {
        kernel: () => make(options),
        grid: elementwiseGrid(threads),
        reads: {
          q: waves(batch.length * heads * dim),
          keys: cache(batch, kvHeads * dim),
          values: cache(batch, kvHeads * valueDim),
          dy: waves(batch.length * heads * valueDim),
          statistics: waves(batch.length * heads * 2),
          entryOf: entries
            ? batch.map(([s, p]) => s * (CONTEXT + 1) + p)
            : entryOf,
          ...list ? { selected: list.lists } : {},
          sinks: waves(heads),
          lengths: [batch.length],
          sequence: batch.map(([sequence]) => sequence),
          position: batch.map(([, position]) => position - Number(entries)),
        },
        stores: { y },
      };
    }
  }
}

export const ofAttentionSum = (): Generator<Launch> =>
  backward(attentionSum, ({ heads }, { tokens }) => ({
    threads: tokens * heads,
    y: tokens * heads,
  }));

export const ofQueryGrad = (): Generator<Launch> =>
  backward(queryGrad, ({ heads, dim }, { tokens }) => ({
    threads: tokens * heads,
    y: tokens * heads * dim,
  }));

export function* ofKeyGrad(): Generator<Launch> {
  for (const part of ["keys", "values"] as const) {
    yield* backward(
      (o) => keyGrad(o, part),
      ({ kvHeads, ...o }, { written }) => {
        const width = kvHeads * (part === "keys" ? o.dim : o.valueDim);
        return {
          threads: written.length * kvHeads,
          // Entries that no token wrote stay unchanged.
          y: written.flatMap((entry) =>
            Array.from({ length: width }, (_, i) => entry * width + i)
          ),
        };
      },
    );
  }
}

export function* ofScoreKeys(): Generator<Launch> {
  for (const [n, batch] of BATCHES.entries()) {
    for (const heads of [1, 2, 6, 8]) {
      for (const dim of [1, 3, 33]) {
        const paged = (n + heads) % 2 === 1;
        const pages = [3, 1, 0, 2];
        const options = {
          name,
          heads,
          dim,
          context: CONTEXT,
          tokens: lengthAt(0),
          ...paged ? { pages: { size: 2 } } : {},
        };
        const indexOf = (entry: number) =>
          paged ? pages[Math.floor(entry / 2)]! * 2 + entry % 2 : entry;
        yield {
          kernel: () => scoreKeys(options),
          grid: scoreKeysGrid(options, batch.length),
          reads: {
            query: waves(batch.length * heads * dim),
            weights: waves(batch.length * heads),
            keys: cache(batch, dim, { indexOf }),
            pages,
            lengths: [batch.length],
            sequence: batch.map(([sequence]) => sequence),
            last: batch.map(([, position]) => position),
          },
          // Only scores of visible keys.
          stores: {
            scores: batch.flatMap(([, position], token) =>
              Array.from(
                { length: position + 1 },
                (_, c) => token * CONTEXT + c,
              )
            ),
          },
        };
      }
    }
  }
}

export function* ofSelectKeys(): Generator<Launch> {
  for (const context of [4, 40, 300]) {
    for (const k of [1, 3, 33]) {
      const last = [-1, 0, 2, 3, context - 2, context - 1];
      for (const blocks of [undefined, { heads: 2, size: 3 }]) {
        const { heads, size } = blocks ?? { heads: 1, size: 1 };
        const rows = last.length * heads;
        const options = { name, context, k, ...blocks ? { blocks } : {} };
        yield {
          kernel: () => selectKeys({ ...options, tokens: lengthAt(0) }),
          grid: rowsGrid(rows),
          reads: {
            // Includes equal scores.
            scores: waves(rows * context).map((x) => Math.round(4 * x)),
            last: last.map((position) => position * size),
            lengths: [last.length],
          },
          stores: { selected: rows * k },
        };
      }
    }
  }
}

/** Scores of blocks, and the choice among them. */
export function* ofScoreBlocks(): Generator<Launch> {
  for (const [n, batch] of BATCHES.entries()) {
    for (const heads of [1, 2, 6]) {
      for (const block of [1, 3, 33]) {
        const paged = (n + heads) % 2 === 1;
        const pages = [3, 1, 0, 2];
        const dim = 3;
        const options = {
          name,
          heads,
          dim,
          block,
          first: n % 2,
          local: heads % 2,
          k: 1,
          context: CONTEXT,
          tokens: lengthAt(0),
          ...paged ? { pages: { size: 2 } } : {},
        };
        const indexOf = (entry: number) =>
          paged ? pages[Math.floor(entry / 2)]! * 2 + entry % 2 : entry;
        const blocks = Math.ceil(CONTEXT / block);
        yield {
          kernel: () => scoreBlocks(options),
          grid: scoreBlocksGrid(options, batch.length),
          reads: {
            query: waves(batch.length * heads * dim),
            keys: cache(batch, dim, { indexOf }),
            pages,
            lengths: [batch.length],
            sequence: batch.map(([sequence]) => sequence),
            last: batch.map(([, position]) => position),
          },
          // Only scores of tokens that see more blocks than they choose.
          stores: {
            scores: batch.flatMap(([, position], token) => {
              const last = Math.floor(position / block);
              return last === 0 ? [] : Array.from(
                { length: heads * (last + 1) },
                (_, i) =>
                  (token * heads + Math.floor(i / (last + 1))) * blocks +
                  i % (last + 1),
              );
            }),
          },
        };
      }
    }
  }
}

/** The first rank of sharded positions, and a later one. */
const [FIRST, LATER] = [
  { start: 1, continues: false },
  { start: 1, continues: true },
] as const;

/** First positions of ranks, and sums of earlier ranks. */
function shardReads(
  { heads, dim, valueDim = dim }: AttentionOptions,
  tokens: number,
): Launch["reads"] {
  return { parts: [0, 32], sumsBefore: waves(tokens * heads * (valueDim + 2)) };
}

/** Results of the tokens, or partial sums if ranks shard positions. */
function resultsOf(
  { heads, dim, valueDim = dim, shard }: AttentionOptions,
  tokens: number,
): Launch["stores"] {
  return shard
    ? { sumsAfter: tokens * heads * (valueDim + 2) }
    : { y: tokens * heads * valueDim };
}

/** Attention to a cache of three key blocks, with the blocks that each token sees. */
function* splits(): Generator<{
  readonly options: AttentionOptions;
  readonly positions: readonly number[];
  /** Indices [token, head, block] of visible blocks. */
  readonly visible: readonly number[];
}> {
  const rankOf = [[0, 70, undefined], [32, 96, FIRST], [
    32,
    96,
    LATER,
  ]] as const;
  const all = [[], [0], [69], [31, 32, 33], [63, 64, 1]];
  for (const [n, local] of all.entries()) {
    for (
      const { heads: [heads, kvHeads], dims, sees, ...o } of product(ATTENTION)
    ) {
      // Teams share keys of 128 elements.
      const [dim, valueDim] = dims[0] === 32 && n % 2 > 0 ? [128, 128] : dims;
      // Variants cover all forms of a rank; the last token sees no key of a later rank.
      const [begin, context, shard] =
        rankOf[(n + heads + dim + (sees.window ?? 0) + Number(o.sinks)) % 3]!;
      const positions = local.map((p) => p === 1 ? p : p + begin);
      // Attention over entries, and the selection of keys, are never split.
      if (o.entries || o.listed || o.shared && valueDim > dim) continue;
      const options = {
        name,
        heads,
        kvHeads,
        dim,
        valueDim,
        ...sees,
        shared: o.shared,
        sinks: o.sinks,
        context,
        scale: 0.5,
        tokens: lengthAt(0),
        ...shard ? { shard } : {},
      };
      const blocks = keyBlocks(options);
      const visible = positions.flatMap((position, token) => {
        const { window = Infinity, chunk = Infinity } = sees;
        const first = Math.max(
          0,
          position + 1 - window,
          chunk === Infinity ? 0 : Math.floor(position / chunk) * chunk,
        );
        // Without a shard, blocks are numbered from the first that the token sees.
        const start = shard ? begin : first - first % KEY_BLOCK;
        return Array.from(
          { length: heads },
          (_, head) =>
            Array.from({ length: blocks }, (_, block) => block)
              .filter((block) =>
                start + block * KEY_BLOCK <= position &&
                start + (block + 1) * KEY_BLOCK > first
              )
              .map((block) => (token * heads + head) * blocks + block),
        ).flat();
      });
      yield { options, positions, visible };
    }
  }
}

/** Indices of all elements of `rows` of length `width`. */
function elementsOf(rows: readonly number[], width: number): number[] {
  return rows.flatMap((row) =>
    Array.from({ length: width }, (_, i) => row * width + i)
  );
}

/** Queries and keys of one token, with norms or without, that the kernel computes from its projections. */
function* ofNewToken(): Generator<Launch> {
  for (const epsilon of [undefined, 1e-6]) {
    const options = {
      name: "attention",
      heads: 4,
      kvHeads: 2,
      dim: epsilon === undefined ? 64 : 128,
      context: 128,
      scale: 0.5,
      tokens: lengthAt(0),
      atOnce: 16,
    };
    const { heads, kvHeads, dim, context } = options;
    const vectorOf = (x: string): NewVector => ({
      block: NEW_SQUARES.map((name, n) =>
        wgsl`let ${name} = ${x}[new_head * ${dim} + (new_first + ${n})];`
      ),
      element: [
        let_(
          "new_element",
          load(
            x,
            add(
              mul(local("new_head", "u32"), u32(dim)),
              local("new_d", "u32"),
            ),
          ),
        ),
      ],
    });
    const token: NewToken = {
      bindings: bindings({
        x: "f32 [head, dim]",
        x_keys: "f32 [kvHead, dim]",
        values: "f32 [sequence, context, kvHead, dim]",
        sequence: "i32 [token]",
        position: "i32 [token]",
      }, { keys: "f32 [sequence, context, kvHead, dim]" }),
      ...epsilon === undefined ? {} : { epsilon },
      query: vectorOf("x"),
      key: vectorOf("x_keys"),
      store: wgsl`
        keys[(u32(position[0]) * ${kvHeads} + new_head) * ${dim} + new_d] = new_element;`,
    };
    const position = 70;
    const seen = elementsOf(
      Array.from(
        { length: heads },
        (_, h) => Array.from({ length: 3 }, (_, b) => h * 4 + b),
      ).flat(),
      1,
    );
    yield {
      kernel: () => attentionParts(options, splitTile(options), token),
      grid: splitGrids(options, 1).parts,
      reads: {
        x: waves(heads * dim),
        x_keys: waves(kvHeads * dim),
        keys: waves(context * kvHeads * dim),
        values: waves(context * kvHeads * dim),
        sequence: [0],
        position: [position],
        lengths: [1],
      },
      stores: {
        keys: elementsOf([position], kvHeads * dim),
        tops: elementsOf(seen, 2),
        sums: elementsOf(seen, dim),
      },
    };
  }
}

export function* ofAttentionParts(): Generator<Launch> {
  yield* ofNewToken();
  for (const { options, positions, visible } of splits()) {
    const { heads, kvHeads, dim, valueDim = dim, context } = options;
    yield {
      kernel: () => attentionParts(options, splitTile(options)),
      grid: splitGrids(options, positions.length).parts,
      reads: {
        q: waves(positions.length * heads * dim),
        keys: waves(context * kvHeads * dim),
        values: waves(context * kvHeads * valueDim),
        sequence: positions.map(() => 0),
        position: positions,
        lengths: [positions.length],
        ...shardReads(options, positions.length),
      },
      stores: {
        tops: elementsOf(visible, 2),
        sums: elementsOf(visible, valueDim),
      },
    };
  }
}

export function* ofAttentionMerge(): Generator<Launch> {
  for (const { options, positions, visible } of splits()) {
    const { heads, dim, valueDim = dim } = options;
    const tokens = positions.length;
    const rows = tokens * heads * keyBlocks(options);
    const written = (width: number) => {
      const x = new Array<number>(rows * width).fill(NaN);
      for (const i of elementsOf(visible, width)) x[i] = Math.sin(i);
      return x;
    };
    yield {
      kernel: () => attentionMerge(options),
      grid: splitGrids(options, positions.length).merge,
      reads: {
        tops: written(2),
        sums: written(valueDim),
        position: positions,
        sinks: waves(heads),
        lengths: [tokens],
        ...shardReads(options, tokens),
      },
      stores: resultsOf(options, tokens),
    };
  }
}

/** No, one and two tokens, with one block of keys and several; 3 and 65 columns. */
export function* ofMergeContract(): Generator<Launch> {
  for (const columns of [3, 65]) {
    for (const positions of [[], [0], [40, 70]]) {
      const tokens = positions.length;
      const [heads, width] = [2, 256];
      const options: AttentionOptions = {
        name,
        heads,
        kvHeads: 1,
        dim: 288,
        valueDim: width,
        shared: true,
        context: 128,
        scale: 0.5,
        tokens: lengthAt(0),
      };
      const blocks = keyBlocks(options);
      const known = positions.flatMap((position, token) =>
        range(heads).flatMap((head) =>
          range(Math.floor(position / KEY_BLOCK) + 1).map((block) =>
            (token * heads + head) * blocks + block
          )
        )
      );
      const written = (width: number) => {
        const x = new Array<number>(tokens * heads * blocks * width).fill(NaN);
        for (const i of elementsOf(known, width)) x[i] = Math.sin(i);
        return x;
      };
      yield {
        kernel: () =>
          mergeContract({
            name,
            attention: options,
            columns,
            segments: 4,
            bindings: bindings({ w: "f32" }, { y: "f32" }),
            right: (column, k) =>
              load(
                "w",
                add(
                  mul(
                    add(mul(MERGED_HEAD, u32(columns)), column),
                    u32(width),
                  ),
                  k,
                ),
              ),
            epilogue: (column, value) => [
              store(
                "y",
                add(
                  mul(
                    add(mul(MERGED_TOKEN, u32(heads)), MERGED_HEAD),
                    u32(columns),
                  ),
                  column,
                ),
                value,
              ),
            ],
          }),
        grid: [heads, tokens, mergeContractGroups({ columns })],
        reads: {
          tops: written(2),
          sums: written(width),
          position: positions,
          w: waves(heads * columns * width),
          lengths: [tokens],
        },
        stores: { y: tokens * heads * columns },
      };
    }
  }
}

export function* ofAttentionResult(): Generator<Launch> {
  for (const { options, positions: { length } } of splits()) {
    const { heads, dim, valueDim = dim } = options;
    yield {
      kernel: () => attentionResult(options),
      grid: elementwiseGrid(length * heads * valueDim),
      reads: {
        sumsAfter: waves(length * heads * (valueDim + 2)),
        lengths: [length],
      },
      stores: { y: length * heads * valueDim },
    };
  }
}
