/** The buffers of a routing, and what the plan knows of its sizes before it runs. */

import {
  blockSizes,
  groupRanks,
  type Mesh,
  positionsOver,
} from "../../../spec/mesh.ts";
import { positionsReached } from "../../../spec/bytes.ts";
import { mapRanks, type PerRank, perRank } from "../../../spec/per_rank.ts";
import type { Size } from "../../../spec/size.ts";
import { isWeighted, type RoutingNode } from "../../graph/graph.ts";
import { tileHeight } from "../../kernels/matmul_tile.ts";
import { tileBound } from "../../kernels/regroup.ts";
import { groupBound, localBound } from "../place.ts";
import {
  addBuffer,
  addScratch,
  bufferAxes,
  type Lowering,
  type RoutingBuffers,
  sizeOf,
} from "./context.ts";
import type { OnceBuffers } from "./lowering.ts";

/** The buffers of a routing to the experts of `expert`, or of the first of its chunks; made at its first dispatch. */
export function routingOf(
  lowering: Lowering,
  node: RoutingNode,
  expert: string,
): RoutingBuffers {
  const known = lowering.routings.get(node);
  if (known) return known;
  const { placed } = lowering;
  const { choice, tokens, rule } = node.params;
  const { over, total: experts } = placed.axes[expert]!;
  const positions = positionsOver(placed.mesh, over);
  const splits = expertTable(lowering, expert).reduce<number[]>(
    (ends, ids) => [...ends, ends.at(-1)! + ids.length],
    [0],
  );
  const counts = routingScratch(lowering, "counts", experts);
  const shared: Shared = {
    number: lowering.routings.size,
    node,
    expert,
    topK: rule.topK,
    over,
    splits,
    sendBound: mapRanks(
      tokens.map((axis) => perRank(localBound(placed, axis))),
      (lengths) => lengths.reduce((n, length) => n * length, rule.topK),
    ),
    sendSize: sizeOf(lowering, [...tokens, choice]),
    sendRow: addScratch(
      lowering,
      "sendRow",
      "u32",
      bufferAxes(lowering, [...tokens, choice]),
    ),
    counts,
    countsAll: positions === 1
      ? counts
      : addScratch(lowering, "countsAll", "u32", [
        { axis: "position", size: positions },
        { axis: placed.axes[expert]!.of, size: experts },
      ]),
    position: positionBuffer(lowering, over),
  };
  const cut = chunkColumns(splits, positions === 1 ? 1 : lowering.chunks);
  const chunks = cut.map((columns) => ({
    ...shared,
    // An exchange that is not cut says nothing of columns.
    ...lowering.chunks === 1 ? {} : { columns },
    ...receivedRows(lowering, node, shared, columns),
    ...sendsOnce(lowering, node, shared)
      ? { once: onceBuffers(lowering, node, shared) }
      : {},
  }));
  const [first] = chunks;
  lowering.routings.set(node, first!);
  if (positions > 1 && lowering.chunks > 1) {
    lowering.pipelines.set(node, {
      chunks,
      storages: chunks.map(() => new Map()),
      travelling: [],
      kept: [],
    });
  }
  return first!;
}

/** What does not depend on which rows are received. */
type Shared = Omit<RoutingBuffers, keyof ReceivedRows | "columns" | "once">;

type ReceivedRows = Pick<
  RoutingBuffers,
  | "receiveBound"
  | "receiveSize"
  | "pairSize"
  | "tileSize"
  | "tiles"
  | "rowOf"
  | "expertOf"
  | "rowCount"
>;

type Columns = NonNullable<RoutingBuffers["columns"]>;

/** Whether several choices of a token go to one rank in the same row: where they can, and it is asked for or worth it. */
function sendsOnce(
  { sendOnce, chunks, graph, placed }: Lowering,
  node: RoutingNode,
  { splits, topK }: Shared,
): boolean {
  const most = Math.max(...splits.slice(1).map((end, p) => end - splits[p]!));
  const value = graph.nodes.find((user) =>
    user.primitive === "dispatch" && user.inputs[1] === node &&
    !isWeighted(user)
  );
  const can = chunks === 1 && splits.length > 2 && topK > 1 && most > 1;
  if (!value || !can) return false;
  if (sendOnce !== undefined) return sendOnce;
  const rowBytes = value.axes.slice(2).reduce(
    (bytes, axis) => bytes * placed.axes[axis]!.size,
    4,
  );
  const saved = topK - positionsReached(splits, topK);
  return saved >= topK * LEAST_SHARE && saved * rowBytes >= LEAST_BYTES;
}

/** What sending tokens once has to save of the bytes of a token, to be worth two more exchanges of little. */
const LEAST_SHARE = 0.25, LEAST_BYTES = 1024;

function onceBuffers(
  lowering: Lowering,
  { params: { tokens, choice } }: RoutingNode,
  { over, splits, topK, sendBound }: Shared,
): OnceBuffers {
  const { placed } = lowering;
  const positions = splits.length - 1;
  const group = tokens.reduce(
    (n, axis) => n * groupBound(placed, axis, over),
    1,
  );
  const held = splits.slice(1).map((end, p) => end - splits[p]!);
  const most = mapRanks(
    [heldPerRank(placed.mesh, over, held)],
    ([experts]) => group * Math.min(topK, experts!),
  );
  const local = mapRanks(
    [sendBound],
    ([rows]) => rows! / topK * Math.min(topK, positions),
  );
  const tokensOfRanks = [{ axis: "position", size: positions }, {
    axis: "tokens for position",
    size: positions,
  }];
  return {
    sendBound: local,
    receiveBound: group,
    pairSize: sizeOf(lowering, tokens, over),
    reach: addScratch(lowering, "reach", "u32", tokensOfRanks.slice(1)),
    reachAll: addScratch(lowering, "reachAll", "u32", tokensOfRanks),
    tokenRow: addScratch(
      lowering,
      "tokenRow",
      "u32",
      bufferAxes(lowering, [...tokens, choice]),
    ),
    places: routingScratch(lowering, "places", sendBound),
    placesHere: routingScratch(lowering, "placesHere", most),
    tokenOf: routingScratch(lowering, "tokenOf", most),
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

/** The columns of each chunk: an equal part of every position's, as far as there are so many. */
function chunkColumns(splits: readonly number[], chunks: number): Columns[] {
  const lengths = splits.slice(1).map((end, p) => end - splits[p]!);
  const count = Math.max(1, Math.min(chunks, ...[Math.max(...lengths)]));
  const ends = lengths.map((length) => blockSizes(length, count));
  return Array.from({ length: count }, (_, c) =>
    ends.map((sizes, p) => {
      const first = splits[p]! +
        sizes.slice(0, c).reduce((a, b) => a + b, 0);
      return [first, first + sizes[c]!] as const;
    }));
}

/** The rows that a rank receives for some of its experts, and the buffers that list them. */
function receivedRows(
  lowering: Lowering,
  { params: { tokens, rule } }: RoutingNode,
  { over, sendBound }: Shared,
  columns: Columns,
): ReceivedRows {
  const { placed } = lowering;
  const lengths = columns.map(([first, end]) => end - first);
  const localExperts = heldPerRank(placed.mesh, over, lengths);
  const group = tokens.reduce(
    (n, axis) => n * groupBound(placed, axis, over),
    1,
  );
  const most = lengths.reduce((a, b) => Math.max(a, b));
  const receiveBound = columns.length === 1 ? sendBound : mapRanks(
    [localExperts],
    ([experts]) => group * Math.min(rule.topK, experts!),
  );
  const receiveSize: Size = {
    mul: [sizeOf(lowering, tokens, over), Math.min(rule.topK, most)],
  };
  const tileRows = tileHeight(lowering.tile);
  const tilesBound = mapRanks(
    [receiveBound, localExperts],
    ([rows, experts]) => 1 + 3 * (Math.ceil(rows! / tileRows) + experts!),
  );
  return {
    receiveBound,
    receiveSize,
    pairSize: receiveSize,
    tileSize: tileBound(receiveSize, most, tileRows),
    tiles: routingScratch(lowering, "tiles", tilesBound),
    rowOf: routingScratch(lowering, "rowOf", receiveBound),
    expertOf: routingScratch(lowering, "expertOf", receiveBound),
    rowCount: routingScratch(lowering, "rowCount", 1),
  };
}

function routingScratch(
  lowering: Lowering,
  name: string,
  size: PerRank,
): string {
  return addScratch(lowering, name, "u32", [
    { axis: `${name} of routing`, size },
  ]);
}

/** The experts of each position, in local order. */
function expertTable(
  { placed }: Lowering,
  expert: string,
): readonly (readonly number[])[] {
  const { table, total } = placed.axes[expert]!;
  return table ?? [Array.from({ length: total }, (_, id) => id)];
}

/** This rank's position in its exchange group. */
export function positionBuffer(
  lowering: Lowering,
  over: readonly string[],
): string {
  const name = `position@${over.join("+") || "one"}`;
  if (lowering.buffers.has(name)) return name;
  return addBuffer(lowering, {
    name,
    kind: "const",
    dtype: "u32",
    axes: [{ axis: "position", size: 1 }],
    data: { groupRank: over },
  });
}

/** Which column of the counts each expert has, where the table is not in order. */
export function orderBuffer(
  lowering: Lowering,
  expert: string,
): string | undefined {
  const ids = expertTable(lowering, expert).flat();
  if (ids.every((id, i) => id === i)) return undefined;
  const name = `order of ${expert}`;
  if (lowering.buffers.has(name)) return name;
  const column = ids.map((_, id) => ids.indexOf(id));
  return addBuffer(lowering, {
    name,
    kind: "const",
    dtype: "u32",
    axes: [{ axis: lowering.placed.axes[expert]!.of, size: ids.length }],
    data: { all: column },
  });
}
