/** The buffers of a routing, and what the plan knows of its sizes before it runs. */

import { positionOver, positionsOver } from "../../../spec/mesh.ts";
import { type PerRank, perRank } from "../../../spec/plan.ts";
import type { Size } from "../../../spec/size.ts";
import type { RoutingNode } from "../../graph/graph.ts";
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
import { expertsOfRanks } from "./params.ts";

/** The buffers of a routing; made at its first dispatch. */
export function routingOf(
  lowering: Lowering,
  node: RoutingNode,
): RoutingBuffers {
  const known = lowering.routings.get(node);
  if (known) return known;
  const { placed } = lowering;
  const { expert, choice, tokens, rule } = node.params;
  const { over: expertOver, table, size: experts } = placed.axes[expert]!;
  const over = expertOver!.filter((axis) =>
    placed.mesh.some((m) => m.name === axis && m.size > 1)
  );
  const positions = positionsOver(placed.mesh, over);
  const localExperts = expertsOfRanks(placed, expert).map((ids) => ids.length);
  const splits = table!.reduce<number[]>(
    (ends, ids) => [...ends, ends.at(-1)! + ids.length],
    [0],
  );
  const local = Array.from(
    { length: placed.ranks },
    (_, rank) =>
      tokens.reduce((n, axis) => n * localBound(placed, axis)[rank]!, 1),
  );
  const group = tokens.reduce(
    (n, axis) => n * groupBound(placed, axis, over),
    1,
  );
  const received = localExperts.map((n) => group * Math.min(rule.topK, n));
  const most = Math.max(...localExperts);
  const sendBound = perRank(local.map((n) => n * rule.topK));
  const receiveBound: PerRank = positions === 1 ? sendBound : perRank(received);
  const receiveSize: Size = {
    mul: [sizeOf(lowering, tokens, over), Math.min(rule.topK, most)],
  };
  const number = lowering.routings.size;
  const u32Buffer = (name: string, size: PerRank) =>
    addScratch(lowering, name, "u32", [{ axis: `${name} of routing`, size }]);
  const tileRows = lowering.tile.rows;
  const tilesBound = perRank(localExperts.map((n, rank) => {
    const rows = typeof receiveBound === "number"
      ? receiveBound
      : receiveBound[rank]!;
    return 1 + 3 * (Math.ceil(rows / tileRows) + n);
  }));
  const counts = u32Buffer("counts", experts);
  const routing: RoutingBuffers = {
    number,
    node,
    expert,
    topK: rule.topK,
    over,
    splits,
    sendBound,
    receiveBound,
    receiveSize,
    sendSize: sizeOf(lowering, [...tokens, choice]),
    pairSize: {
      mul: [sizeOf(lowering, tokens, over), Math.min(rule.topK, most)],
    },
    tileSize: tileBound(receiveSize, most, tileRows),
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
        { axis: expert, size: experts },
      ]),
    position: positionBuffer(lowering, over),
    tiles: u32Buffer("tiles", tilesBound),
    rowOf: u32Buffer("rowOf", receiveBound),
    expertOf: u32Buffer("expertOf", receiveBound),
    rowCount: u32Buffer("rowCount", 1),
  };
  lowering.routings.set(node, routing);
  return routing;
}

/** This rank's position in its exchange group. */
function positionBuffer(lowering: Lowering, over: readonly string[]): string {
  const name = `position@${over.join("+") || "one"}`;
  if (lowering.buffers.has(name)) return name;
  const { mesh, ranks } = lowering.placed;
  return addBuffer(lowering, {
    name,
    kind: "const",
    dtype: "u32",
    axes: [{ axis: "position", size: 1 }],
    data: {
      ranks: Array.from(
        { length: ranks },
        (_, rank) => [positionOver(mesh, rank, over)],
      ),
    },
  });
}

/** Which column of the counts each expert has, where the table is not in order. */
export function orderBuffer(
  lowering: Lowering,
  expert: string,
): string | undefined {
  const ids = lowering.placed.axes[expert]!.table!.flat();
  if (ids.every((id, i) => id === i)) return undefined;
  const name = `order of ${expert}`;
  if (lowering.buffers.has(name)) return name;
  const column = ids.map((_, id) => ids.indexOf(id));
  return addBuffer(lowering, {
    name,
    kind: "const",
    dtype: "u32",
    axes: [{ axis: expert, size: ids.length }],
    data: { all: column },
  });
}
