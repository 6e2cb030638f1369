/** Dispatch and combine as their parts: count, permute, exchange, regroup; and back. */

import { storedDType } from "../../../spec/dtype.ts";
import { positionsOver } from "../../../spec/mesh.ts";
import type { PerRank, StepPart } from "../../../spec/plan.ts";
import {
  isWeighted,
  type Node,
  type NodeOf,
  type RoutingNode,
} from "../../graph/graph.ts";
import { assign } from "../../kernels/assign.ts";
import { combine } from "../../kernels/combine.ts";
import { elementwiseGrid } from "../../kernels/elementwise.ts";
import { reads } from "../../kernels/kernel.ts";
import { permute } from "../../kernels/permute.ts";
import { reach } from "../../kernels/reach.ts";
import { locate } from "../../kernels/locate.ts";
import { tileHeight } from "../../kernels/matmul_tile.ts";
import { regroup, regroupGrid } from "../../kernels/regroup.ts";
import { type At, atFlat } from "./at.ts";
import {
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
import { type LowerNode, runChunks, startDispatch } from "./chunks.ts";
import { emitCountsExchange, emitExchange } from "./exchange.ts";
import { orderBuffer, routingOf } from "./routing_buffers.ts";
import { writeTarget } from "./dot.ts";
import { rowMajorBuffer } from "./elementwise.ts";
import { finish } from "./emit.ts";
import { routeResults } from "./route.ts";
import { div, load, mul, rem, u32 } from "../../../spec/kernel/build.ts";
import { KernelScope, wordType } from "./scope.ts";
import { rowsAxis, storageFor } from "./storage.ts";
import { tokenCount } from "./tokens.ts";

/**
 * A dispatch: count (once per routing), permute, exchange counts (once), exchange, regroup (once). Where tokens are sent
 * once to each rank, count also says which ranks those are, and the ranks learn where their choices find them.
 */
export function lowerDispatch(
  lowering: Lowering,
  node: NodeOf<"dispatch">,
): void {
  const [x, route] = node.inputs as [Node, RoutingNode];
  const first = !lowering.routings.has(route);
  const routing = routingOf(lowering, route, node.axes[0]!);
  const part = (name: StepPart["part"]): StepPart => ({
    verb: "dispatch",
    routing: routing.number,
    part: name,
  });
  if (first) emitCount(lowering, node, route, routing, part("count"));
  const rest = node.axes.slice(2);
  const words = fixedProduct(lowering, node, rest);
  const dtype = storedDType(node.dtype);
  const weighed = isWeighted(node);
  // What goes back as it came needs a row for each choice.
  const once = weighed || lowering.goesBack.has(node)
    ? undefined
    : routing.once;
  const rows = (name: string, size: PerRank) =>
    addScratch(lowering, name, dtype, [
      { axis: rowsAxis(routing), size, dynamic: true },
      ...bufferAxes(lowering, rest),
    ]);
  const { sendBound, receiveBound } = once ?? routing;
  const sent = rows("sent", sendBound);
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
        sendRow: once?.tokenRow ?? routing.sendRow,
        send: sent,
      },
      workgroups: elementwiseGrid({ mul: [routing.sendSize, words] }),
      part: part("permute"),
    },
  );
  const positions = positionsOver(lowering.placed.mesh, routing.over);
  if (first && positions > 1) {
    emitCountsExchange(lowering, node, routing, {
      ...{ from: routing.counts, to: routing.countsAll },
      ...{ words: routing.splits.at(-1)!, part: part("exchange counts") },
    });
    if (routing.once) {
      emitCountsExchange(lowering, node, routing, {
        ...{ from: routing.once.reach, to: routing.once.reachAll },
        ...{ words: positions, part: part("exchange reach") },
      });
      emitExchange(lowering, node, routing, {
        ...{ from: routing.once.places, to: routing.once.placesHere },
        ...{ words: 1, direction: "forward", part: part("exchange places") },
      });
    }
  }
  const pipeline = lowering.pipelines.get(route);
  if (pipeline) {
    startDispatch(lowering, pipeline, { node, sent, words, handles: [] });
  }
  let received = sent;
  if (positions > 1 && !pipeline) {
    received = rows("received", receiveBound);
    emitExchange(lowering, node, routing, {
      from: sent,
      to: received,
      words,
      direction: "forward",
      part: part("exchange"),
      once: once !== undefined,
    });
  }
  for (const chunk of first ? pipeline?.chunks ?? [routing] : []) {
    emitRegroup(lowering, node, chunk, part("regroup"));
  }
  if (first && lowering.check) emitCheck(lowering, node, routing);
  if (pipeline) return;
  lowering.storages.set(node, {
    buffer: received,
    dtype,
    axes: rest,
    rows: { routing, through: once?.tokenOf ?? routing.rowOf },
  });
}

/**
 * A combine: exchange back, then the weighted sum in the order of choices, into what follows it. `lowerNode` lowers what
 * was kept of the work on chunks.
 */
export function lowerCombine(
  lowering: Lowering,
  target: Node,
  node: NodeOf<"combine">,
  lowerNode: LowerNode,
): void {
  const route = node.inputs[1] as RoutingNode;
  const routing = lowering.routings.get(route)!;
  const part = (name: StepPart["part"]): StepPart => ({
    verb: "combine",
    routing: routing.number,
    part: name,
  });
  const { tokens } = route.params;
  const rest = node.axes.slice(tokens.length);
  const words = fixedProduct(lowering, node, rest);
  const returned = returnRows(lowering, node, routing, lowerNode);
  const scope = new KernelScope(lowering);
  const storage = storageFor(lowering, target);
  const length = (axis: string) => lengthOf(scope, axis);
  scope.readAs("returned", returned);
  scope.readAs("sendRow", routing.sendRow);
  const weighed = isWeighted(node);
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

/** Bring the rows of the value that a combine or collect takes home, once for both. Returns the buffer that has them in send order. */
export function returnRows(
  lowering: Lowering,
  node: NodeOf<"combine"> | NodeOf<"collect">,
  routing: RoutingBuffers,
  lowerNode: LowerNode,
): string {
  const [y, route] = node.inputs as [Node, RoutingNode];
  const known = lowering.returned.get(y);
  if (known !== undefined) return known;
  const rest = y.axes.slice(2);
  const words = fixedProduct(lowering, node, rest);
  const far = positionsOver(lowering.placed.mesh, routing.over) > 1;
  const returned = far
    ? addScratch(lowering, "returned", storedDType(y.dtype), [
      { axis: rowsAxis(routing), size: routing.sendBound, dynamic: true },
      ...bufferAxes(lowering, rest),
    ])
    : lowering.storages.get(y)!.buffer;
  const pipeline = lowering.pipelines.get(route);
  if (pipeline) {
    const back = { node, words, to: returned };
    runChunks(lowering, pipeline, back, lowerNode);
  } else if (far) {
    emitExchange(lowering, node, routing, {
      from: lowering.storages.get(y)!.buffer,
      to: returned,
      words,
      direction: "back",
      part: { verb: "combine", routing: routing.number, part: "exchange" },
    });
  }
  lowering.returned.set(y, returned);
  return returned;
}

/** Count per expert, and the row that each choice is sent in. */
function emitCount(
  lowering: Lowering,
  node: Node,
  route: RoutingNode,
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
  const { once, sendRow, splits, topK } = routing;
  if (!once) return;
  const reached = reach({
    name: `reach_${splits.length - 1}`,
    ...{ splits, k: topK, ordered: order !== undefined },
    tokens: tokenCount(lowering, route.params.tokens),
  });
  addLaunch(lowering, node, reached, {
    bindings: {
      ...{ lengths: LENGTHS, index: results.index, sendRow },
      ...order ? { order } : {},
      ...{ reach: once.reach, tokenRow: once.tokenRow, places: once.places },
    },
    workgroups: [1, 1, 1],
    part,
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
    ...routing.columns ? { columns: routing.columns } : {},
    tileRows: tileHeight(lowering.tile),
  });
  const { countsAll, position, tiles, rowOf, expertOf, rowCount } = routing;
  addLaunch(lowering, node, kernel, {
    bindings: { counts: countsAll, position, tiles, rowOf, expertOf, rowCount },
    workgroups: regroupGrid(routing.receiveSize),
    part,
  });
  const { once, splits } = routing;
  if (!once) return;
  const { reachAll: reached, placesHere: places, tokenOf } = once;
  addLaunch(
    lowering,
    node,
    locate({ name: `locate_${splits.at(-1)!}`, splits }),
    {
      bindings: {
        ...{ counts: countsAll, reach: reached, position, rowOf, rowCount },
        ...{ places, tokenOf },
      },
      workgroups: elementwiseGrid(routing.receiveSize),
      part,
    },
  );
}
