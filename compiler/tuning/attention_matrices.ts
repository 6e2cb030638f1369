/** Tiles of attention with 16-bit operands. */

import { foldGrid, type Grid } from "../../spec/kernel/make.ts";
import { MATRIX_SIZE } from "../../spec/kernel/matrices.ts";
import type { Size } from "../../spec/size.ts";
import type { KeySpan, QueryTile } from "./queries.ts";

/** Lanes, queries and keys of a workgroup, and the indices of a product in memory at a time. */
export const ATTENTION_TILE = {
  lanes: 128,
  queries: 64,
  keys: 64,
  depth: MATRIX_SIZE,
} as const;

/** Words of a row of scores in workgroup memory: lanes with different rows use different banks. */
export const SCORE_STRIDE = ATTENTION_TILE.keys + 4;

/** An attention that may have 16-bit operands. */
export interface MatrixAttention extends KeySpan {
  /** Values are the first elements of the keys. */
  readonly shared?: boolean;
}

/** Elements of the right operand in memory: of a panel of keys, or of one of values. */
export function rightElements(
  { dim, valueDim = dim }: MatrixAttention,
): number {
  return ATTENTION_TILE.depth * Math.max(ATTENTION_TILE.keys, valueDim);
}

/**
 * The queries of a workgroup: heads with the same key head, and tokens. Undefined if the operands have 32 bits
 * (`spec/numerics.md` lists the cases).
 */
export function matrixQueries(
  o: MatrixAttention,
  memory: number,
): QueryTile | undefined {
  const { heads, kvHeads, dim, valueDim = dim } = o;
  const { queries, lanes, depth } = ATTENTION_TILE;
  const words = queries * (SCORE_STRIDE + depth) + rightElements(o) + lanes;
  const isSupported = dim % depth === 0 && valueDim % (2 * depth) === 0 &&
    !o.shared && o.selected === undefined && o.entries === undefined &&
    o.shard === undefined;
  if (!isSupported || 4 * words > memory) return undefined;
  const group = heads / kvHeads;
  let shared = Math.min(group, queries);
  while (group % shared !== 0 || queries % shared !== 0) shared--;
  return { heads: shared, tokens: queries / shared };
}

/** The grid for a number of tokens. */
export function matrixQueriesGrid(
  { heads }: MatrixAttention,
  { tile, tokens }: { readonly tile: QueryTile; readonly tokens: Size },
): Grid {
  return [heads / tile.heads, ...foldGrid({ ceilDiv: [tokens, tile.tokens] })];
}
