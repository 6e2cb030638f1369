/** How many queries a workgroup of attention takes, which load keys and values once. */

import { foldGrid, type Grid } from "../../spec/kernel/make.ts";
import type { Size } from "../../spec/size.ts";

/** Keys in a block; also the invocations of a workgroup. */
export const KEY_BLOCK = 32;

/** Queries of a workgroup: so many heads, which read the same keys, of so many tokens. */
export interface QueryTile {
  readonly heads: number;
  readonly tokens: number;
}

/** What the queries of a workgroup depend on. */
export interface QueryShape {
  readonly heads: number;
  readonly kvHeads: number;
  readonly dim: number;
  /** Elements of a value; default `dim`. */
  readonly valueDim?: number;
  /** Queries of a workgroup, at most. Default: 1. */
  readonly queries?: number;
  /** Keys that each token attends to, where they are given: then a workgroup has one token. */
  readonly selected?: number;
}

/** Elements of results that a lane sums at once, of all queries of a workgroup. */
const MOST_SUMS = 32;

/** Heads first: those of one token always read the same keys. */
export function queryTile(o: QueryShape): QueryTile {
  const { heads, kvHeads, dim, valueDim = dim } = o;
  const group = heads / kvHeads;
  const fit = Math.floor(MOST_SUMS / Math.ceil(valueDim / KEY_BLOCK));
  const queries = Math.max(1, Math.min(o.queries ?? 1, fit));
  let shared = Math.min(group, queries);
  while (group % shared !== 0) shared--;
  const tokens = o.selected === undefined ? Math.floor(queries / shared) : 1;
  return { heads: shared, tokens };
}

/** The grid of `attention`: workgroups for the heads, and for each token or so many. */
export function attentionGrid(o: QueryShape, tokens: Size): Grid {
  const tile = queryTile(o);
  return [
    o.heads / tile.heads,
    ...foldGrid(
      tile.tokens === 1 ? tokens : { ceilDiv: [tokens, tile.tokens] },
    ),
  ];
}
