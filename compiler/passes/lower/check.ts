/** Check steps: the id of every choice travels as its token does, there and back, and is compared on return. */

import {
  add,
  barrier,
  binary,
  eq,
  for_,
  id,
  if_,
  let_,
  load,
  local,
  mul,
  set,
  shared,
  sharedStore,
  store,
  u32,
  var_,
} from "../../../spec/kernel/build.ts";
import type { Expr } from "../../../spec/kernel/tree.ts";
import { onRank, type PlanAxis } from "../../../spec/plan.ts";
import type { Node, RoutingNode } from "../../graph/graph.ts";
import { DROPPED } from "../../kernels/assign.ts";
import { elementwise, elementwiseGrid } from "../../kernels/elementwise.ts";
import { kernelOf } from "../../kernels/kernel.ts";
import {
  addBuffer,
  addLaunch,
  addScratch,
  amendBuffer,
  type Lowering,
  productOf,
  type RoutingBuffers,
} from "./context.ts";
import { emitExchange } from "./exchange.ts";
import { KernelScope } from "./scope.ts";

/** The axis of the counts: one for each rank. */
export const CHECK_AXIS = "rank of check";

const LANES = 64;
const CHOICE = local("choice", "u32");

/** An id that no other choice of the exchange group has. */
function idOf(
  scope: KernelScope,
  routing: RoutingBuffers,
  choice: Expr,
): Expr {
  const most = Math.max(
    ...Array.from(
      { length: scope.lowering.placed.ranks },
      (_, rank) => onRank(routing.sendBound, rank),
    ),
  );
  return add(
    mul(load(scope.read(routing.position), u32(0), "u32"), u32(most)),
    choice,
  );
}

/** Send ids there and back through the exchanges of `routing`, and count those that are not where they were. */
export function emitCheck(
  lowering: Lowering,
  node: Node,
  routing: RoutingBuffers,
): void {
  const route = routing.node as RoutingNode;
  const { tokens, choice } = route.params;
  const ids = (name: string, size: RoutingBuffers["sendBound"]) =>
    addScratch(lowering, name, "u32", [{ axis: "ids", size }]);
  const sent = ids("sentIds", routing.sendBound);
  const out = new KernelScope(lowering);
  const kernel = elementwise({
    name: "send_ids",
    count: productOf(out, [...tokens, choice]),
    bindings: out.bindings,
    body: (i) => [
      let_("row", load(out.read(routing.sendRow), i, "u32")),
      if_(binary("ne", local("row", "u32"), u32(DROPPED)), [
        store(
          out.write(sent),
          local("row", "u32"),
          idOf(out, routing, i),
        ),
      ]),
    ],
  });
  addLaunch(lowering, node, kernel, {
    bindings: out.buffers,
    workgroups: elementwiseGrid(routing.sendSize),
  });
  let returned = sent;
  if (routing.over.length) {
    returned = ids("returnedIds", routing.sendBound);
    const { chunks = [routing] } = lowering.pipelines.get(route) ?? {};
    if (chunks.length > 1) {
      amendBuffer(lowering, returned, { writers: chunks.length });
    }
    for (const chunk of chunks) {
      const received = ids("receivedIds", chunk.receiveBound);
      const trips = [
        { from: sent, to: received, direction: "forward" },
        { from: received, to: returned, direction: "back" },
      ] as const;
      for (const trip of trips) {
        emitExchange(lowering, node, chunk, { ...trip, words: 1 });
      }
    }
  }
  const name = `check.${routing.number}`;
  const buffer = addBuffer(lowering, {
    name,
    kind: "output",
    dtype: "u32",
    axes: [{ axis: CHECK_AXIS, size: 1 }],
  });
  lowering.checks.push({ name, buffer });
  emitCompare(lowering, node, routing, { returned, buffer });
}

/** Each lane counts every 64th choice that came home wrong; the first lane adds up. */
function emitCompare(
  lowering: Lowering,
  node: Node,
  routing: RoutingBuffers,
  what: { returned: string; buffer: string },
): void {
  const { tokens, choice } = (routing.node as RoutingNode).params;
  const scope = new KernelScope(lowering);
  const row = load(scope.read(routing.sendRow), CHOICE, "u32");
  const count = productOf(scope, [...tokens, choice]);
  const wrong = binary(
    "ne",
    load(scope.read(what.returned), row, "u32"),
    idOf(scope, routing, CHOICE),
  );
  const total = local("total", "u32");
  const kernel = kernelOf({
    name: "compare_ids",
    workgroupSize: LANES,
    shared: [{ name: "wrong", type: "u32", length: LANES }],
    bindings: scope.bindings,
    body: [
      var_("total", u32(0)),
      for_("choice", id("local"), count, [
        if_(binary("ne", row, u32(DROPPED)), [
          if_(wrong, [set("total", add(total, u32(1)))]),
        ]),
      ], u32(LANES)),
      sharedStore("wrong", id("local"), total),
      barrier(),
      if_(eq(id("local"), u32(0)), [
        var_("all", u32(0)),
        for_("i", u32(0), u32(LANES), [
          set(
            "all",
            add(local("all", "u32"), shared("wrong", local("i", "u32"), "u32")),
          ),
        ]),
        store(scope.write(what.buffer), u32(0), local("all", "u32")),
      ]),
    ],
  });
  addLaunch(lowering, node, kernel, {
    bindings: scope.buffers,
    workgroups: [1, 1, 1],
  });
}

/** The axis of check counts: every rank has one. */
export function checkAxis(
  { checks, placed: { mesh, ranks } }: Lowering,
): { [axis: string]: PlanAxis } {
  if (!checks.length) return {};
  const over = mesh.map(({ name }) => name);
  return {
    [CHECK_AXIS]: {
      size: ranks,
      over,
      table: Array.from({ length: ranks }, (_, rank) => [rank]),
    },
  };
}
