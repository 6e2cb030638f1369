/** Exchanges of rows: to the ranks of their experts, and back. */

import { groupSizeOf } from "../../../../spec/mesh.ts";
import type { StepPart } from "../../../../spec/plan/plan.ts";
import type { Node, NodeOf } from "../../../graph/graph.ts";
import { countsPerRankOf, partOf, sentBy } from "./assign.ts";
import {
  about,
  addScratch,
  amendBuffer,
  freshName,
  type Lowering,
  type Storage,
} from "../context.ts";
import { rowMajorStorage } from "../elementwise.ts";
import { restAxes } from "../index_space.ts";
import { type ReceivedRows, receivedRows } from "./receive_bound.ts";
import { lowerDecoded, sentRows } from "../collectives/round.ts";
import { markUnreduced } from "../storage.ts";

/** Exchange of rows of `words` words from one buffer to another on the destination ranks. */
export interface Exchange {
  readonly from: string;
  readonly to: string;
  readonly words: number;
  readonly direction: "forward" | "back";
  /** Rows are deduplicated tokens. */
  readonly once?: boolean;
  /** Starts an asynchronous exchange with this name. */
  readonly handle?: string;
  readonly part?: StepPart;
}

/** Adds the exchange of the rows of a chunk. */
export function emitExchange(
  lowering: Lowering,
  node: Node,
  rows: ReceivedRows,
  what: Exchange,
): void {
  const { from, to, words, direction, handle, part } = what;
  const { over, groupRank, chunks, splits, countsAll, roundRows } = rows.sent;
  const countsPerRank = countsPerRankOf(rows.sent);
  const groupSize = groupSizeOf(lowering.placed.mesh, over);
  // For tokens, one count per rank and chunk, after the counts of experts.
  const count = chunks.length;
  const ends = Array.from(
    { length: groupSize + 1 },
    (_, p) => splits.at(-1)! + p * count,
  );
  const { once } = what;
  const experts = once
    ? ends.slice(0, -1).map((first) =>
      [first + rows.chunk, first + rows.chunk + 1] as const
    )
    : chunks[rows.chunk]!;
  const receivedCounts = addScratch(
    lowering,
    `receivedCounts ${direction}`,
    "u32",
    [{
      axis: "groupRank",
      size: groupSize,
    }],
  );
  lowering.draft.steps.push({
    op: "allToAll",
    ranks: lowering.progress.ranks,
    over,
    direction,
    from,
    to,
    rowBytes: words * 4,
    counts: countsAll,
    splits: once ? ends : splits,
    ...countsPerRank === splits.at(-1) ? {} : { countsPerRank },
    ...count > 1 ? { experts } : {},
    ...roundRows === undefined ? {} : { inRounds: true },
    groupRank,
    receivedCounts,
    pairRows: once ? rows.tokenSize : rows.size,
    ...handle === undefined ? {} : { handle },
    ...about(lowering, node, part),
  });
}

/** Sends rows to the ranks of their experts, or back. Asynchronous if there are several chunks. */
export function lowerAllToAll(
  lowering: Lowering,
  node: NodeOf<"allToAll">,
): void {
  const [value, counts, before] = node.inputs as [Node, Node, Node?];
  const { direction, once, chunk } = node.params;
  const sent = sentBy(lowering, counts);
  const rows = receivedRows(lowering, sent, chunk);
  const [expert, slot, ...rest] = node.axes;
  const { words, dtype, axes, wire } = sentRows(lowering, node, value);
  const forward = direction === "forward";
  const arriving = once ? rows.tokenBound : rows.bound;
  const buffer = before
    ? lowering.values.storages.get(before)!.buffer
    : addScratch(
      lowering,
      forward ? "received" : "returned",
      dtype,
      [
        {
          axis: `${expert} ${slot}`,
          size: forward ? arriving : once ? sent.tokens!.bound : sent.bound,
          dynamic: true,
        },
        ...axes,
      ],
    );
  markUnreduced(lowering, node, buffer);
  const count = sent.chunks.length;
  if (!forward && !before && count > 1) {
    amendBuffer(lowering, buffer, { writers: count });
  }
  const op = forward ? "dispatch" : "combine";
  emitExchange(lowering, node, rows, {
    from: lowering.values.storages.get(value)!.buffer,
    to: buffer,
    words,
    direction,
    once,
    part: partOf(sent, "exchange", op),
    ...count > 1
      ? {
        handle: freshName(
          lowering,
          `${op} ${sent.number} ${node.chunk!}`,
        ),
      }
      : {},
  });
  lowering.values.storages.set(node, {
    buffer,
    dtype,
    axes: rest,
    ...wire ? { wire } : {},
  });
}

/** Received rows, by expert. */
export function lowerReceived(
  lowering: Lowering,
  node: NodeOf<"received">,
): void {
  const [value, group] = node.inputs as [Node, Node];
  const rows = lowering.values.groups.get(group)!;
  const { once, inPlace } = node.params;
  const through = once
    ? rows.tokens!.tokenOf
    : inPlace
    ? rows.tokenOf
    : rows.rowOf;
  const found = inPlace
    ? rowMajorStorage(lowering, value, value.axes)
    : lowering.values.storages.get(value) as Storage;
  const { wire } = found;
  if (wire) {
    return lowerDecoded(lowering, node, {
      rows,
      through,
      found: { ...found, wire },
    });
  }
  // Rows have the axes of one token.
  const axes = inPlace ? restAxes(node) : found.axes;
  lowering.values.storages.set(node, {
    ...found,
    axes,
    rows: { rows, through },
  });
}
