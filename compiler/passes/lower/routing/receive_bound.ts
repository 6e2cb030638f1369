/** Maximum number of rows that a rank can receive for a routing, or for a chunk. */

import { groupRanks, type Mesh } from "../../../../spec/mesh.ts";
import { mapRanks, type PerRank, perRank } from "../../../../spec/per_rank.ts";
import type { Size } from "../../../../spec/size.ts";
import { groupBound } from "../../../sharding/lengths.ts";
import { routeOf, type SentRows } from "./assign.ts";
import { type Lowering, sizeOf } from "../context.ts";

/** Facts about received rows before a run. */
export interface ReceivedRows {
  readonly sent: SentRows;
  readonly chunk: number;
  /** Number of experts of the chunk, and the maximum on a rank. */
  readonly experts: PerRank;
  readonly maxExperts: number;
  /** Maximum number of rows, and the host's bound at run time. */
  readonly bound: PerRank;
  readonly size: Size;
  /** The same for deduplicated tokens. */
  readonly tokenBound: PerRank;
  readonly tokenSize: Size;
}

/** The received rows of a routing for the experts of a chunk. */
export function receivedRows(
  lowering: Lowering,
  sent: SentRows,
  chunk: number,
): ReceivedRows {
  const { placed } = lowering;
  const { tokens, rule: { topK } } = routeOf(sent).params;
  // Tokens that are replicated in the group are not received.
  const over = sent.node.params.localOnly
    ? []
    : [...sent.within?.over ?? [], ...sent.over];
  const ranges = sent.chunks[chunk]!;
  const held = ranges.map(([first, end]) => end - first);
  const experts = heldPerRank(placed.mesh, sent.over, held);
  const maxExperts = Math.max(...held);
  const tokenBound = tokens.reduce(
    (n, axis) => n * groupBound(placed, axis, over),
    1,
  );
  const tokenSize = sizeOf(lowering, tokens, over);
  const bound = ranges.length === 1
    ? sent.bound
    : mapRanks([experts], ([n]) => tokenBound * Math.min(topK, n!));
  const size = { mul: [tokenSize, Math.min(topK, maxExperts)] };
  const { roundRows } = sent;
  return {
    sent,
    chunk,
    experts,
    maxExperts,
    tokenBound,
    tokenSize,
    bound: roundRows === undefined
      ? bound
      : mapRanks([bound], ([rows]) => Math.min(rows!, roundRows)),
    size: roundRows === undefined ? size : { min: [size, roundRows] },
  };
}

/** Values per rank from a list by group rank. */
function heldPerRank(
  mesh: Mesh,
  over: readonly string[],
  held: readonly number[],
): PerRank {
  return held.every((n) => n === held[0])
    ? held[0]!
    : perRank(groupRanks(mesh, over).map((groupRank) => held[groupRank]!));
}
