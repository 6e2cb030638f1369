/** Lowers the steps of ranks that forward rows between nodes and the ranks of their node. */

import { elementwiseGrid } from "../../../../spec/kernel/elementwise.ts";
import type { Node, NodeOf } from "../../../graph/graph.ts";
import { moveRows, nodeCounts } from "../../../kernels/routing/move_rows.ts";
import { chunkExperts } from "../../expert_ranges.ts";
import {
  countsPerRankOf,
  groupRankBuffer,
  partOf,
  routingScratch,
  sentBy,
  type SentRows,
} from "./assign.ts";
import {
  addLaunch,
  addScratch,
  amendBuffer,
  type Lowering,
} from "../context.ts";
import { receivedRows } from "./receive_bound.ts";
import { sentRows } from "../collectives/round.ts";
import { wordType } from "../scope.ts";
import { markUnreduced } from "../storage.ts";

/**
 * Counts the rows that a rank forwards to each expert of its node. They are the sent rows of the exchange within it.
 */
export function lowerNodeCounts(
  lowering: Lowering,
  node: NodeOf<"nodeCounts">,
): void {
  const outer = sentBy(lowering, node.inputs[0]!);
  const { over, splits } = node.params;
  const experts = splits.at(-1)!;
  const groupSize = splits.length - 1;
  const { bound, size } = receivedRows(lowering, outer, 0);
  const counts = routingScratch(lowering, "counts", {
    size: experts,
    routing: "counts",
  });
  const rows: SentRows = {
    number: lowering.values.sent.size,
    within: outer,
    node: outer.node,
    over,
    splits,
    chunks: chunkExperts(splits, 1),
    bound,
    size,
    sendRow: outer.sendRow,
    counts,
    countsAll: amendBuffer(
      lowering,
      addScratch(lowering, "countsAll", "u32", [
        { axis: "groupRank", size: groupSize },
        { axis: "counts of routing", size: experts },
      ]),
      { routing: "counts" },
    ),
    groupRank: groupRankBuffer(lowering, over),
  };
  lowering.values.sent.set(node, rows);
  const kernel = nodeCounts({
    name: `node_counts_${experts}`,
    nodes: outer.splits.length - 1,
    experts,
    countsPerRank: countsPerRankOf(outer),
  });
  addLaunch(lowering, node, kernel, {
    bindings: { all: outer.countsAll, groupRank: outer.groupRank, counts },
    workgroups: elementwiseGrid(experts),
    part: partOf(rows, "count"),
  });
}

/** Orders received rows by the experts of the node, or returns them to the offsets where they were received. */
export function lowerMoveRows(
  lowering: Lowering,
  node: NodeOf<"moveRows">,
): void {
  const [value, group, counts] = node.inputs as [Node, Node, Node];
  const { direction, once } = node.params;
  const rows = sentBy(lowering, counts);
  const { rowOf, rowCount, tokens } = lowering.values.groups.get(group)!;
  const [expert, slot, ...rest] = node.axes;
  const { words, dtype, axes, wire } = sentRows(lowering, node, value);
  const forward = direction === "forward";
  const y = addScratch(lowering, forward ? "sent" : "returned", dtype, [
    { axis: `${expert} ${slot}`, size: rows.bound, dynamic: true },
    ...axes,
  ]);
  markUnreduced(lowering, node, y);
  const kernel = moveRows({
    name: `move_${direction}_${words}`,
    row: words,
    type: wordType(dtype),
    direction,
  });
  addLaunch(lowering, node, kernel, {
    bindings: {
      rowCount,
      index: once ? tokens!.tokenOf : rowOf!,
      x: lowering.values.storages.get(value)!.buffer,
      y,
    },
    workgroups: elementwiseGrid({ mul: [rows.size, words] }),
    part: forward
      ? partOf(rows, "permute")
      : partOf(rows, "combine", "combine"),
  });
  lowering.values.storages.set(node, {
    buffer: y,
    dtype,
    axes: rest,
    ...wire ? { wire } : {},
  });
}
