/** Dispatch and combine as their parts: count, permute, exchange, regroup; and back. */

import { storedDType } from "../../../spec/dtype.ts";
import { positionOver, positionsOver } from "../../../spec/mesh.ts";
import type { PerRank, StepPart } from "../../../spec/plan.ts";
import type { Size } from "../../../spec/size.ts";
import type { Node, NodeOf } from "../../graph/graph.ts";
import { assign } from "../../kernels/assign.ts";
import { combine } from "../../kernels/combine.ts";
import { elementwiseGrid } from "../../kernels/elementwise.ts";
import { exchange, exchangeGrid, gather } from "../../kernels/exchange.ts";
import { reads } from "../../kernels/kernel.ts";
import { permute } from "../../kernels/permute.ts";
import { regroup, regroupGrid } from "../../kernels/regroup.ts";
import { groupBound, localBound, perRank } from "../place.ts";
import { type At, atFlat } from "./at.ts";
import {
  about,
  addBuffer,
  addKernel,
  addLaunch,
  addScratch,
  bufferAxes,
  fixedProduct,
  lengthOf,
  LENGTHS,
  type Lowering,
  productOf,
  type RoutingBuffers,
  sizeOf,
} from "./context.ts";
import { emitCheck } from "./check.ts";
import { writeTarget } from "./dot.ts";
import { rowMajorBuffer } from "./elementwise.ts";
import { finish } from "./emit.ts";
import { expertsOfRanks } from "./params.ts";
import { routeResults } from "./route.ts";
import { div, load, mul, rem, u32 } from "../../../spec/kernel/build.ts";
import { KernelScope, wordType } from "./scope.ts";
import { rowsAxis, storageFor } from "./storage.ts";
import { tokenCount } from "./tokens.ts";

/** How many ranks' buffers one local launch reads: bindings are few. */
const FAN_IN = 4;

/** The buffers of a routing; made at its first dispatch. */
export function routingOf(
  lowering: Lowering,
  node: NodeOf<"route">,
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
    // Every expert may end in a tile that is not full.
    tileSize: { add: [{ ceilDiv: [receiveSize, tileRows] }, most] },
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
function orderBuffer(lowering: Lowering, expert: string): string | undefined {
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

/** A dispatch: count (once per routing), permute, exchange counts (once), exchange, regroup (once). */
export function lowerDispatch(
  lowering: Lowering,
  node: NodeOf<"dispatch">,
): void {
  const [x, route] = node.inputs as [Node, NodeOf<"route">];
  const first = !lowering.routings.has(route);
  const routing = routingOf(lowering, route);
  const part = (name: StepPart["part"]): StepPart => ({
    verb: "dispatch",
    routing: routing.number,
    part: name,
  });
  if (first) emitCount(lowering, node, route, routing, part("count"));
  const rest = node.axes.slice(2);
  const words = fixedProduct(lowering, node, rest);
  const dtype = storedDType(node.dtype);
  const weighed = route.params.rule.weighs === "input";
  const rows = (name: string, size: PerRank) =>
    addScratch(lowering, name, dtype, [
      { axis: rowsAxis(routing), size, dynamic: true },
      ...bufferAxes(lowering, rest),
    ]);
  const sent = rows("sent", routing.sendBound);
  addLaunch(
    lowering,
    node,
    permute({
      name: `permute_${words}`,
      row: words,
      k: routing.topK,
      tokens: tokenCount(lowering, route.params.tokens),
      type: wordType(dtype),
      ...(weighed
        ? {
          bindings: [reads("x"), reads("weight")],
          value: (i, choice) =>
            finish(node, mul(load("x", i), load("weight", choice))),
        }
        : {}),
    }),
    {
      bindings: {
        lengths: LENGTHS,
        x: rowMajorBuffer(lowering, x, x.axes),
        ...(weighed ? { weight: routeResults(lowering, route).weight } : {}),
        sendRow: routing.sendRow,
        send: sent,
      },
      workgroups: elementwiseGrid({ mul: [routing.sendSize, words] }),
      part: part("permute"),
    },
  );
  const positions = positionsOver(lowering.placed.mesh, routing.over);
  if (first && positions > 1) {
    emitCountsExchange(lowering, node, routing, part("exchange counts"));
  }
  let received = sent;
  if (positions > 1) {
    received = rows("received", routing.receiveBound);
    emitExchange(lowering, node, routing, {
      from: sent,
      to: received,
      words,
      direction: "forward",
      part: part("exchange"),
    });
  }
  if (first) emitRegroup(lowering, node, routing, part("regroup"));
  if (first && lowering.check) emitCheck(lowering, node, routing);
  lowering.storages.set(node, {
    buffer: received,
    dtype,
    axes: rest,
    rows: { routing, through: routing.rowOf },
  });
}

/** A combine: exchange back, then the weighted sum in the order of choices, into what follows it. */
export function lowerCombine(
  lowering: Lowering,
  target: Node,
  node: NodeOf<"combine">,
): void {
  const [y, route] = node.inputs as [Node, NodeOf<"route">];
  const routing = lowering.routings.get(route)!;
  const part = (name: StepPart["part"]): StepPart => ({
    verb: "combine",
    routing: routing.number,
    part: name,
  });
  const source = lowering.storages.get(y)!;
  const { tokens } = route.params;
  const rest = node.axes.slice(tokens.length);
  const words = fixedProduct(lowering, node, rest);
  let returned = source.buffer;
  if (positionsOver(lowering.placed.mesh, routing.over) > 1) {
    returned = addScratch(lowering, "returned", source.dtype, [
      { axis: rowsAxis(routing), size: routing.sendBound, dynamic: true },
      ...bufferAxes(lowering, rest),
    ]);
    emitExchange(lowering, node, routing, {
      from: source.buffer,
      to: returned,
      words,
      direction: "back",
      part: part("exchange"),
    });
  }
  const scope = new KernelScope(lowering);
  const storage = storageFor(lowering, target);
  const length = (axis: string) => lengthOf(scope, axis);
  scope.readAs("returned", returned);
  scope.readAs("sendRow", routing.sendRow);
  const weighed = route.params.rule.weighs !== "input";
  if (weighed) {
    scope.readAs("weight", routeResults(lowering, route).weight);
  }
  const kernel = combine({
    name: `combine_${words}`,
    row: words,
    k: routing.topK,
    tokens: productOf(scope, tokens),
    weighed,
    bindings: scope.bindings,
    epilogue: (index, sum) => {
      const outer = atFlat(tokens, div(index, u32(words)), length);
      const inner = atFlat(rest, rem(index, u32(words)), length);
      const at: At = {
        flat: { order: node.axes, index },
        get: (axis) => rest.includes(axis) ? inner.get(axis) : outer.get(axis),
      };
      return scope.block(() =>
        writeTarget(scope, { node: target, storage, roots: [node] }, at, [sum])
      );
    },
  });
  addLaunch(lowering, target, kernel, {
    bindings: scope.buffers,
    workgroups: elementwiseGrid(sizeOf(lowering, node.axes)),
    part: part("combine"),
  });
}

/** Count per expert, and the row that each choice is sent in. */
function emitCount(
  lowering: Lowering,
  node: Node,
  route: NodeOf<"route">,
  routing: RoutingBuffers,
  part: StepPart,
): void {
  const results = routeResults(lowering, route);
  const order = orderBuffer(lowering, routing.expert);
  const kernel = assign({
    name: `assign_${routing.splits.at(-1)!}`,
    experts: routing.splits.at(-1)!,
    k: routing.topK,
    tokens: tokenCount(lowering, route.params.tokens),
    dropping: results.slot !== undefined,
    ordered: order !== undefined,
  });
  const bindings = {
    lengths: LENGTHS,
    index: results.index,
    ...(results.slot ? { slot: results.slot } : {}),
    ...(order ? { order } : {}),
    counts: routing.counts,
    sendRow: routing.sendRow,
  };
  addLaunch(lowering, node, kernel, { bindings, workgroups: [1, 1, 1], part });
}

/** Every rank of the group learns what every other sends. */
function emitCountsExchange(
  lowering: Lowering,
  node: Node,
  routing: RoutingBuffers,
  part: StepPart,
): void {
  const positions = positionsOver(lowering.placed.mesh, routing.over);
  const words = routing.splits.at(-1)!;
  lowering.steps.push({
    op: "allGather",
    ranks: "all",
    over: routing.over,
    from: routing.counts,
    to: routing.countsAll,
    bytes: words * 4,
    local: localSources(positions).map((sources) => {
      const options = { name: `gather_${words}`, sources, words };
      return {
        kernel: addKernel(lowering, gather(options)),
        sources,
        workgroups: elementwiseGrid(words),
      };
    }),
    ...about(node, part),
  });
}

/** Rows of `words` words, from one buffer into another on the ranks that they go to. */
export interface Exchange {
  readonly from: string;
  readonly to: string;
  readonly words: number;
  readonly direction: "forward" | "back";
  readonly part?: StepPart;
}

/** Add an exchange over the group of a routing. */
export function emitExchange(
  lowering: Lowering,
  node: Node,
  routing: RoutingBuffers,
  what: Exchange,
): void {
  const { from, to, words, direction, part } = what;
  const positions = positionsOver(lowering.placed.mesh, routing.over);
  const moved = addScratch(lowering, `moved ${direction}`, "u32", [{
    axis: "position",
    size: positions,
  }]);
  lowering.steps.push({
    op: "allToAll",
    ranks: "all",
    over: routing.over,
    direction,
    from,
    to,
    rowBytes: words * 4,
    counts: routing.countsAll,
    splits: routing.splits,
    position: routing.position,
    moved,
    local: localSources(positions).map((sources) => {
      const options = {
        name: `exchange_${direction}_${words}`,
        sources,
        rowWords: words,
        splits: routing.splits,
        direction,
      };
      return {
        kernel: addKernel(lowering, exchange(options)),
        sources,
        workgroups: exchangeGrid(routing.pairSize),
      };
    }),
    ...about(node, part),
  });
}

/** What each rank received, ordered by expert, without moving it: a tile list for the grouped kernels. */
function emitRegroup(
  lowering: Lowering,
  node: Node,
  routing: RoutingBuffers,
  part: StepPart,
): void {
  const kernel = regroup({
    name: `regroup_${routing.splits.at(-1)!}`,
    splits: routing.splits,
    tileRows: lowering.tile.rows,
  });
  const { countsAll, position, tiles, rowOf, expertOf, rowCount } = routing;
  addLaunch(lowering, node, kernel, {
    bindings: { counts: countsAll, position, tiles, rowOf, expertOf, rowCount },
    workgroups: regroupGrid(routing.receiveSize),
    part,
  });
}

/** Group positions, as many at a time as one local launch reads. */
function localSources(positions: number): number[][] {
  const all = Array.from({ length: positions }, (_, i) => i);
  return Array.from(
    { length: Math.ceil(positions / FAN_IN) },
    (_, i) => all.slice(i * FAN_IN, (i + 1) * FAN_IN),
  );
}
