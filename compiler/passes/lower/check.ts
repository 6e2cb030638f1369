/** Check steps: the id of every choice is exchanged as its token is, forward and back, and compared on return. */

import { type KernelText, wgsl } from "../../../spec/kernel/text.ts";
import {
  maxOverRanks,
  type PerRank,
  type PlanAxis,
} from "../../../spec/plan.ts";
import type { Node, NodeOf } from "../../graph/graph.ts";
import { DROPPED } from "../../kernels/assign.ts";
import { elementwise, elementwiseGrid } from "../../kernels/elementwise.ts";
import { kernelOf } from "../../kernels/kernel.ts";
import { sumOfLanes } from "../../kernels/pieces/counting_sort.ts";
import {
  addBuffer,
  addScratch,
  amendBuffer,
  type Lowering,
  productOf,
} from "./context.ts";
import { routeOf, sentBy, type SentRows } from "./assign.ts";
import { emitExchange } from "./exchange.ts";
import { KernelScope } from "./scope.ts";

/** The axis of the counts: one for each rank. */
export const CHECK_AXIS = "rank of check";

const LANES = 64;

/** An id that no other choice of the exchange group has. */
function idOf(
  scope: KernelScope,
  sent: SentRows,
  choice: KernelText,
): KernelText {
  const most = maxOverRanks(sent.bound);
  return wgsl`${scope.read(sent.groupRank)}[0] * ${most} + ${choice}`;
}

/** Send ids there and back through the exchanges of a routing, and count those that are not where they were. */
export function lowerCheckIds(
  lowering: Lowering,
  node: NodeOf<"checkIds">,
): void {
  const [assign, ...groups] = node.inputs as [Node, ...Node[]];
  const rows = sentBy(lowering, assign);
  const { tokens, choice } = routeOf(rows).params;
  const ids = (name: string, size: PerRank) =>
    addScratch(lowering, name, "u32", [{ axis: "ids", size }]);
  const sent = ids("sentIds", rows.bound);
  const out = new KernelScope(lowering);
  const kernel = elementwise({
    name: "send_ids",
    count: productOf(out, [...tokens, choice]),
    bindings: out.bindings,
    body: wgsl`
      let row = ${out.read(rows.sendRow)}[i];
      if (row != ${DROPPED}) {
        ${out.write(sent)}[row] = ${idOf(out, rows, wgsl`i`)};
      }`,
  });
  out.launch(node, kernel, elementwiseGrid(rows.size));
  let returned = sent;
  if (rows.over.length) {
    returned = ids("returnedIds", rows.bound);
    if (groups.length > 1) {
      amendBuffer(lowering, returned, { writers: groups.length });
    }
    for (
      const group of groups.map((group) =>
        lowering.values.groups.get(group)!.received
      )
    ) {
      const received = ids("receivedIds", group.bound);
      const trips = [
        { from: sent, to: received, direction: "forward" },
        { from: received, to: returned, direction: "back" },
      ] as const;
      for (const trip of trips) {
        emitExchange(lowering, node, group, { ...trip, words: 1 });
      }
    }
  }
  const name = `check.${rows.number}`;
  const buffer = addBuffer(lowering, {
    name,
    kind: "output",
    dtype: "u32",
    axes: [{ axis: CHECK_AXIS, size: 1 }],
  });
  lowering.draft.checks.push({ name, buffer });
  emitCompare(lowering, node, rows, { returned, buffer });
}

/** Each lane counts every 64th choice that returned wrong; the first lane adds up. */
function emitCompare(
  lowering: Lowering,
  node: Node,
  sent: SentRows,
  what: { returned: string; buffer: string },
): void {
  const { tokens, choice } = routeOf(sent).params;
  const scope = new KernelScope(lowering);
  const row = wgsl`${scope.read(sent.sendRow)}[choice]`;
  const count = productOf(scope, [...tokens, choice]);
  const returned = wgsl`${scope.read(what.returned)}[${row}]`;
  const id = idOf(scope, sent, wgsl`choice`);
  const kernel = kernelOf({
    name: "compare_ids",
    workgroupSize: LANES,
    bindings: scope.bindings,
    body: wgsl`
      var<workgroup> wrong: array<u32, ${LANES}>;
      var total = 0u;
      for (var choice = lane; choice < ${count}; choice += ${LANES}) {
        if (${row} != ${DROPPED}) {
          if (${returned} != ${id}) { total++; }
        }
      }
      wrong[lane] = total;
      workgroupBarrier();
      if (lane == 0) {
        ${sumOfLanes("all", "wrong", LANES)}
        ${scope.write(what.buffer)}[0] = all;
      }`,
  });
  scope.launch(node, kernel, [1, 1, 1]);
}

/** The axis of check counts: every rank has one. */
export function checkAxis(
  { draft: { checks }, placed: { mesh, ranks } }: Lowering,
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
