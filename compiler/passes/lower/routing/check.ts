/** Check steps: exchange the id of every choice with its token, forward and back, and compare. */

import {
  maxOverRanks,
  type PerRank,
  type PlanAxis,
} from "../../../../spec/plan/plan.ts";
import type { Node, NodeOf } from "../../../graph/graph.ts";
import { compareIds, sendIds } from "../../../kernels/routing/check_ids.ts";
import { elementwiseGrid } from "../../../../spec/kernel/elementwise.ts";
import {
  addBuffer,
  addLaunch,
  addScratch,
  amendBuffer,
  type Lowering,
} from "../context.ts";
import { routeOf, sentBy } from "./assign.ts";
import { emitExchange } from "./exchange.ts";
import { tokenCount } from "../tokens.ts";

/** The axis of the counts: one per rank. */
export const CHECK_AXIS = "rank of check";

/** Sends ids through the exchanges of a routing and back, and counts those at wrong offsets. */
export function lowerCheckIds(
  lowering: Lowering,
  node: NodeOf<"checkIds">,
): void {
  const [assign, ...groups] = node.inputs as [Node, ...Node[]];
  const rows = sentBy(lowering, assign);
  const { sendRow, groupRank, bound } = rows;
  const { tokens, rule: { topK: k } } = routeOf(rows).params;
  const ids = (name: string, size: PerRank) =>
    addScratch(lowering, name, "u32", [{ axis: "ids", size }]);
  const sent = ids("sentIds", bound);
  const maxChoices = maxOverRanks(bound);
  const options = { k, tokens: tokenCount(lowering, tokens), maxChoices };
  addLaunch(lowering, node, sendIds(options), {
    bindings: { sendRow, groupRank, ids: sent },
    workgroups: elementwiseGrid(rows.size),
  });
  let returned = sent;
  if (rows.over.length) {
    returned = ids("returnedIds", bound);
    if (groups.length > 1) {
      amendBuffer(lowering, returned, { writers: groups.length });
    }
    for (const group of groups) {
      const { received } = lowering.values.groups.get(group)!;
      const there = ids("receivedIds", received.bound);
      const trips = [
        { from: sent, to: there, direction: "forward" },
        { from: there, to: returned, direction: "back" },
      ] as const;
      for (const trip of trips) {
        emitExchange(lowering, node, received, { ...trip, words: 1 });
      }
    }
  }
  const name = `check.${rows.number}`;
  const wrong = addBuffer(lowering, {
    name,
    kind: "output",
    dtype: "u32",
    axes: [{ axis: CHECK_AXIS, size: 1 }],
  });
  lowering.draft.checks.push({ name, buffer: wrong });
  addLaunch(lowering, node, compareIds(options), {
    bindings: { sendRow, groupRank, ids: returned, wrong },
    workgroups: [1, 1, 1],
  });
}

/** The axis of check counts: one per rank. */
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
