/** Number of queries per workgroup of attention, which share loads of keys and values. */

import { foldGrid, type Grid } from "../../spec/kernel/make.ts";
import type { Size } from "../../spec/size.ts";

/** Keys per block, and invocations per workgroup. */
export const KEY_BLOCK = 32;

/** Queries of a workgroup: a number of heads with the same key head, and a number of tokens. */
export interface QueryTile {
  readonly heads: number;
  readonly tokens: number;
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
  /** Keys that each token attends to, where they are given, and entries of a second cache: then a workgroup has one token. */
  readonly selected?: number;
  readonly entries?: number;
}

/** Maximum number of result elements that a lane sums at once, over all queries of a workgroup. */
const MOST_SUMS = 32;

/** Heads first: those of one token always share keys. */
export function queryTile(o: QueryShape): QueryTile {
  const { heads, kvHeads, dim, valueDim = dim } = o;
  const group = heads / kvHeads;
  const fit = Math.floor(MOST_SUMS / Math.ceil(valueDim / KEY_BLOCK));
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
