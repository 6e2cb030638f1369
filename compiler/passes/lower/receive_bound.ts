/** How many rows a rank can receive by a routing, or of a chunk of one. */

import { groupRanks, type Mesh } from "../../../spec/mesh.ts";
import { mapRanks, type PerRank, perRank } from "../../../spec/per_rank.ts";
import type { Size } from "../../../spec/size.ts";
import { groupBound } from "../../sharding/lengths.ts";
import { routeOf, type SentRows } from "./assign.ts";
import { type Lowering, sizeOf } from "./context.ts";

/** What is known of received rows before a run. */
export interface ReceivedRows {
  readonly sent: SentRows;
  readonly chunk: number;
  /** Experts of the chunk, and the most that a rank has. */
  readonly experts: PerRank;
  readonly maxExperts: number;
  /** Rows at most, and the host's bound at run time. */
  readonly bound: PerRank;
  readonly size: Size;
  /** The same of tokens, each once. */
  readonly tokenBound: PerRank;
  readonly tokenSize: Size;
}

/** The rows that come by a routing for the experts of a chunk. */
export function receivedRows(
  lowering: Lowering,
  sent: SentRows,
  chunk: number,
): ReceivedRows {
  const { placed } = lowering;
  const { tokens, rule: { topK } } = routeOf(sent).params;
  // What a rank has of all tokens comes from nowhere else.
  const over = sent.node.params.localOnly ? [] : sent.over;
  const ranges = sent.chunks[chunk]!;
  const held = ranges.map(([first, end]) => end - first);
  const experts = heldPerRank(placed.mesh, sent.over, held);
  const maxExperts = Math.max(...held);
  const tokenBound = tokens.reduce(
    (n, axis) => n * groupBound(placed, axis, over),
    1,
  );
  const tokenSize = sizeOf(lowering, tokens, over);
  return {
    sent,
    chunk,
    experts,
    maxExperts,
    tokenBound,
    tokenSize,
    bound: ranges.length === 1
      ? sent.bound
      : mapRanks([experts], ([n]) => tokenBound * Math.min(topK, n!)),
    size: { mul: [tokenSize, Math.min(topK, maxExperts)] },
  };
}

/** What each rank has of what is listed by its group rank. */
function heldPerRank(
  mesh: Mesh,
  over: readonly string[],
  held: readonly number[],
): PerRank {
  return held.every((n) => n === held[0])
    ? held[0]!
    : perRank(groupRanks(mesh, over).map((place) => held[place]!));
}
