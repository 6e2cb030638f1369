/** Number of queries per workgroup of attention, which share loads of keys and values. */

import type { HalfDType } from "../../spec/dtype.ts";
import { foldGrid, type Grid, GRID_LIMIT } from "../../spec/kernel/make.ts";
import type { Size } from "../../spec/size.ts";

/** Keys per block, and invocations per team of a workgroup. */
export const KEY_BLOCK = 32;

/** Queries of a workgroup: a number of heads with the same key head, and a number of tokens. */
export interface QueryTile {
  readonly heads: number;
  readonly tokens: number;
  /** Teams of lanes that share a block of keys. More than 1 only for one token. Default: 1. */
  readonly teams?: number;
}

/** Parameters of the queries of a workgroup. */
export interface QueryShape {
  readonly heads: number;
  readonly kvHeads: number;
  readonly dim: number;
  /** Elements of a value. Default: `dim`. */
  readonly valueDim?: number;
  /** Maximum number of queries per workgroup. Default: 1. */
  readonly queries?: number;
  /** The keys that each token attends to are given, or there is a second cache. A workgroup then has one token. */
  readonly selected?: number;
  readonly entries?: number;
  /** The given keys are blocks of this many positions. */
  readonly selectedBlock?: number;
}

/**
 * Maximum number of result elements that a lane sums at once, over all queries of a workgroup; more on wide devices,
 * which have more registers.
 */
const MAX_SUMS = 32, WIDE_SUMS = 64;

/** Heads come first: heads of one token always share keys. */
export function queryTile(o: QueryShape, sums = MAX_SUMS): QueryTile {
  const { heads, kvHeads, dim, valueDim = dim } = o;
  const group = heads / kvHeads;
  const fit = Math.floor(sums / Math.ceil(valueDim / KEY_BLOCK));
  const queries = Math.max(1, Math.min(o.queries ?? 1, fit));
  let shared = Math.min(group, queries);
  while (group % shared !== 0) shared--;
  const given = o.selected ?? o.entries;
  const tokens = given === undefined ? Math.floor(queries / shared) : 1;
  return { heads: shared, tokens };
}

/** The grid of `attention`: workgroups per head, and per token or group of tokens. */
export function attentionGrid(o: QueryShape, tokens: Size): Grid {
  const tile = queryTile(o);
  return [
    o.heads / tile.heads,
    ...foldGrid(
      tile.tokens === 1 ? tokens : { ceilDiv: [tokens, tile.tokens] },
    ),
  ];
}

/** A cache with split attention. */
export interface KeySpan extends QueryShape {
  /** Positions of the cache. */
  readonly context: number;
  /** Positions that a token sees: the last ones, or those of its chunk. Default: all. */
  readonly window?: number | undefined;
  readonly chunk?: number | undefined;
  /** Set if ranks share the positions; blocks are then those of the rank. */
  readonly shard?: unknown;
  /** Storage dtype of the cache. Default: f32. */
  readonly stored?: "f32" | HalfDType;
}

/** Whether the first key block of a token depends on its position. */
export function isWindowed(
  { window, chunk, shard }: Pick<KeySpan, "window" | "chunk" | "shard">,
): boolean {
  return (window ?? chunk) !== undefined && shard === undefined;
}

/** Maximum number of key blocks that a token sees. */
export function keyBlocks(
  o:
    & Omit<KeySpan, keyof QueryShape>
    & Pick<KeySpan, "selected" | "selectedBlock">,
): number {
  const { context, selected = context, window = context, chunk = context } = o;
  const { selectedBlock = 1 } = o;
  const all = Math.ceil(
    Math.min(context, selected * selectedBlock) / KEY_BLOCK,
  );
  if (!isWindowed(o)) return all;
  // A window that starts within a block sees a part of one more.
  return Math.min(all, Math.ceil(Math.min(window, chunk) / KEY_BLOCK) + 1);
}

/** Words that a lane of a wide device loads at once, so that loads are in flight while it has no other work. */
export const WORDS_AT_ONCE = 16;

/** Lanes of a workgroup that merges blocks of keys: a dimension of the values each, as far as possible. */
export function mergeLanes(width: number): number {
  return width >= 256 ? 256 : width >= 128 ? 128 : 64;
}

/** Minimum number of key blocks for which splitting pays for the second launch. */
const MIN_BLOCKS = 4;

/** Maximum bytes of the block sums, on devices that can bind them. */
const MAX_BYTES = 2 ** 29;

/**
 * Maximum tokens of a step with split attention, at most `tokens`. 0 if the context is short or block sums are too
 * large.
 */
export function splitTokensOf(
  o: KeySpan,
  { tokens, maxBinding }: {
    readonly tokens: number;
    /** Maximum bytes of a binding. */
    readonly maxBinding: number;
  },
): number {
  const blocks = keyBlocks(o);
  // The blocks of a second cache follow those of the first. The number of the first differs between tokens.
  if (blocks < MIN_BLOCKS || o.entries !== undefined) return 0;
  // A workgroup per block, in one dimension of the grid.
  if (blocks > GRID_LIMIT) return 0;
  const each = 4 * o.heads * blocks * Math.max(2, o.valueDim ?? o.dim);
  return Math.min(
    tokens,
    Math.floor(Math.min(MAX_BYTES, maxBinding) / each),
  );
}

/** Teams of a workgroup that shares a block of keys. */
const TEAMS = 4;

/** Number of workgroups that fill a wide device with one team each. */
const MANY_GROUPS = 2048;

/**
 * Number of workgroups with teams below which a workgroup has fewer heads: the latency of its instructions then takes
 * longer than loading keys and values again.
 */
const FEW_GROUPS = 512;

/** Maximum words of workgroup memory for the block sums of teams. */
const MAX_SUM_WORDS = 3072;

/**
 * The queries of a workgroup with one block of keys: a few heads of one token that read the same keys. If workgroups
 * are few and keys and values long, teams sum different blocks of a score and different dimensions of values.
 */
export function splitTile(o: KeySpan): QueryTile {
  const { dim, valueDim = dim, stored = "f32" } = o;
  const headsOf = (queries: number) =>
    queryTile({ ...o, queries }, WIDE_SUMS).heads;
  const heads = headsOf(4);
  if (o.heads / heads * keyBlocks(o) >= MANY_GROUPS) {
    return { heads, tokens: 1 };
  }
  const lanes = TEAMS * KEY_BLOCK;
  // Every lane has dimensions of values: two of 16 bits, which share a word.
  const fits = dim % KEY_BLOCK === 0 && lanes <= dim &&
    heads * dim <= MAX_SUM_WORDS &&
    (stored === "f32" ? lanes <= valueDim : valueDim % (2 * lanes) === 0);
  if (!fits) return { heads: headsOf(2), tokens: 1 };
  const isFew = o.heads / heads * keyBlocks(o) < FEW_GROUPS;
  return { heads: isFew ? headsOf(2) : heads, tokens: 1, teams: TEAMS };
}

/** The grids of `attentionParts` and `attentionMerge`. */
export function splitGrids(
  o: KeySpan,
  tokens: Size,
): { readonly parts: Grid; readonly merge: Grid } {
  return {
    parts: [o.heads / splitTile(o).heads, tokens, keyBlocks(o)],
    merge: [o.heads, tokens, 1],
  };
}
