/** Tiles of attention with 16-bit operands. */

import { foldGrid, type Grid } from "../../spec/kernel/make.ts";
import { MATRIX_SIZE } from "../../spec/kernel/matrices.ts";
import type { Size } from "../../spec/size.ts";
import { operandStride } from "./matrices.ts";
import type { KeySpan, QueryTile } from "./queries.ts";

/**
 * Queries of a workgroup; keys of a block, whose scores are in memory at a time; and the dimensions of queries and
 * keys, or the keys of values, that are in memory at a time.
 */
export const ATTENTION_TILE = {
  queries: 64,
  keys: 64,
  depth: MATRIX_SIZE,
} as const;

/** Words of the left operand in memory: of a panel of queries, or of weights of keys. */
export const LEFT_ELEMENTS = ATTENTION_TILE.queries *
  operandStride(ATTENTION_TILE.depth);

/** Words of a row of scores in workgroup memory: lanes with different rows use different banks. */
export const SCORE_STRIDE = ATTENTION_TILE.keys + 4;

/** An attention that may have 16-bit operands. */
export interface MatrixAttention extends KeySpan {
  /** Values are the first elements of the keys. */
  readonly shared?: boolean;
}

/** The lanes of a workgroup, and the elements of values that are multiplied at a time. */
export interface ValueParts {
  readonly lanes: number;
  readonly width: number;
}

/** Most elements of all values of 128 lanes, which keep their sums in registers. */
const MAX_SUMS = 256;

/** The parts of values. Undefined: they are not equally long. */
export function valueParts(
  { dim, valueDim = dim, shared = false }: MatrixAttention,
): ValueParts | undefined {
  // Vectors of keys and of values of one binding are equally long.
  const lanes = shared || valueDim > MAX_SUMS ? 256 : 128;
  // Each lane loads a vector of four elements of values.
  const each = lanes / 4;
  for (let width = lanes; width > 0; width -= each) {
    if (valueDim % width === 0) return { lanes, width };
  }
  return undefined;
}

/** Words of the right operand in memory: of a panel of blocks of keys, or of a part of one of values. */
export function rightElements(blocks: number, { width }: ValueParts): number {
  const { keys, depth } = ATTENTION_TILE;
  return Math.max(
    blocks * keys * operandStride(depth),
    depth * operandStride(width),
  );
}

/**
 * Queries of a workgroup, and blocks of keys that they are multiplied by at once: each query is loaded once for all.
 */
export interface MatrixQueries extends QueryTile {
  readonly blocks: number;
}

/**
 * The queries of a workgroup: heads with the same key head, and tokens. Undefined if the operands have 32 bits
 * (`spec/numerics.md` lists the cases).
 */
export function matrixQueries(
  o: MatrixAttention,
  memory: number,
): MatrixQueries | undefined {
  const { heads, kvHeads, dim } = o;
  const { queries } = ATTENTION_TILE;
  const parts = valueParts(o);
  const isSupported = dim % MATRIX_SIZE === 0 && o.selected === undefined &&
    o.entries === undefined && o.shard === undefined;
  if (!parts || !isSupported) return undefined;
  const words = (blocks: number) =>
    queries * (SCORE_STRIDE + 1) + LEFT_ELEMENTS +
    rightElements(blocks, parts) + parts.lanes;
  // Devices with less memory keep 32-bit operands for usual dimensions: 16 bits were not compared on them.
  const choices = dim % (2 * MATRIX_SIZE) === 0 ? [2] : [2, 1];
  const blocks = choices.find((count) => 4 * words(count) <= memory);
  if (blocks === undefined) return undefined;
  const group = heads / kvHeads;
  let shared = Math.min(group, queries);
  while (group % shared !== 0 || queries % shared !== 0) shared--;
  return { heads: shared, tokens: queries / shared, blocks };
}

/** The grid for a number of tokens. */
export function matrixQueriesGrid(
  { heads }: MatrixAttention,
  { tile, tokens }: { readonly tile: QueryTile; readonly tokens: Size },
): Grid {
  return [heads / tile.heads, ...foldGrid({ ceilDiv: [tokens, tile.tokens] })];
}
