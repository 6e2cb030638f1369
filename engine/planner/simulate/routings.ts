/** Predicted rows that ranks send and receive per routing of a program. */

import { expertsOfRows, partLengths } from "../../../spec/axis_parts.ts";
import { expectedDestinations } from "../../../spec/plan/bytes.ts";
import { groupSizeOf } from "../../../spec/mesh.ts";
import {
  type AllToAllStep,
  onRank,
  type Plan,
  type PlanBuffer,
  type Program,
} from "../../../spec/plan/plan.ts";
import { type ExpertLoad, expertShares, rowShares } from "./loads.ts";
import type { Lengths } from "./workload.ts";

/** Expected rows of one routing. Rows count choices, or tokens if they are deduplicated. */
export interface RoutingRows {
  readonly topK: number;
  readonly experts: number;
  /** Maximum number of experts of a group rank. */
  readonly localExperts: number;
  /** Tokens of the rank with the most, and of the group. */
  readonly tokens: number;
  readonly groupTokens: number;
  /** Rows of choices for the experts of a group rank: maximum and mean. */
  readonly max: number;
  readonly mean: number;
  /** Whether dispatch is deduplicated, and the number of destinations of a token. */
  readonly once: boolean;
  readonly destinations: number;
}

/** Routings by their number in the plan. */
export function routingRows(
  plan: Plan,
  program: Program,
  { lengths, load }: { readonly lengths: Lengths; readonly load: ExpertLoad },
): Map<number, RoutingRows> {
  const found = new Map<number, RoutingRows>();
  const once = new Set(
    program.steps.flatMap(({ part }) =>
      part?.part === "exchange indices" ? [part.routing] : []
    ),
  );
  // Exchanges by choices have one count per expert: token indices with deduplication, otherwise returned rows.
  const byChoices = new Map<number, AllToAllStep>();
  for (const step of program.steps) {
    if (step.op !== "allToAll" || !step.part) continue;
    const { op, part, routing } = step.part;
    if (
      part === "exchange indices" || op === "combine" && !once.has(routing)
    ) {
      byChoices.set(routing, step);
    }
  }
  const made = new Map<string, RoutingRows>();
  const choicesOf = new Map<number, PlanBuffer | undefined>();
  for (const step of program.steps) {
    if (step.op !== "launch" || step.part?.part !== "count") continue;
    const { routing, within } = step.part;
    const buffers = Object.values(step.bindings).map((name) =>
      plan.buffers[name]!
    );
    const choices = within === undefined
      ? buffers.find(({ axes, dtype }) =>
        dtype === "u32" && axes.length > 1 && !axes.at(-1)!.dynamic
      )
      : choicesOf.get(within);
    choicesOf.set(routing, choices);
    const counts = buffers.find((buffer) => buffer.routing === "counts");
    if (!choices || !counts || found.has(routing)) continue;
    const exchange = withinNodes(byChoices, routing, within);
    const experts = exchange?.splits.at(-1) ??
      onRank(counts.axes.at(-1)!.size, 0);
    const { axis, dynamic, size } = choices.axes[0]!;
    const tokens = dynamic ? lengths.max(axis) : onRank(size, 0);
    const facts = {
      topK: onRank(choices.axes.at(-1)!.size, 0),
      experts,
      splits: exchange?.splits ?? shardSplits(plan, program, routing) ??
        [0, experts],
      tokens,
      // Without an exchange, a rank has the choices of its own tokens, or of the all-gathered ones.
      groupTokens: exchange === undefined
        ? tokens
        : dynamic
        ? lengths.over(axis, exchange.over)
        : tokens * groupSizeOf(plan.mesh, exchange.over),
      once: once.has(routing),
      number: load.kind === "recorded" ? within ?? routing : 0,
    };
    const key = JSON.stringify(facts);
    const rows = made.get(key) ?? rowsOf(facts, load);
    made.set(key, rows);
    found.set(routing, rows);
  }
  return found;
}

/** The exchange of a routing by choices; within a node, as if rows were sent to the ranks of all nodes at once. */
function withinNodes(
  byChoices: ReadonlyMap<number, AllToAllStep>,
  routing: number,
  within: number | undefined,
): Pick<AllToAllStep, "splits" | "over"> | undefined {
  const exchange = byChoices.get(routing);
  const nodes = within === undefined ? undefined : byChoices.get(within);
  if (!exchange || !nodes) return exchange;
  const [first, ...ends] = exchange.splits;
  const splits = nodes.splits.slice(0, -1).flatMap((start) =>
    ends.map((end) => start + end)
  );
  return {
    splits: [first, ...splits] as unknown as AllToAllStep["splits"],
    over: [...nodes.over, ...exchange.over] as unknown as AllToAllStep["over"],
  };
}

/** First experts of the group ranks and the end, if ranks have the rows of their own experts without an exchange. */
function shardSplits(
  plan: Plan,
  { steps }: Program,
  routing: number,
): number[] | undefined {
  for (const step of steps) {
    const { part, routing: of } = step.part ?? {};
    if (step.op !== "launch" || part !== "permute" || of !== routing) continue;
    for (const name of Object.values(step.bindings)) {
      const experts = expertsOfRows(plan, plan.buffers[name]);
      const held = experts && partLengths(plan, experts);
      if (held === undefined) continue;
      let end = 0;
      return [0, ...held.map((length) => end += length)];
    }
  }
  return undefined;
}

function rowsOf(
  { topK, experts, splits, tokens, groupTokens, once, number }: {
    readonly topK: number;
    readonly experts: number;
    readonly splits: readonly number[];
    readonly tokens: number;
    readonly groupTokens: number;
    readonly once: boolean;
    readonly number: number;
  },
  load: ExpertLoad,
): RoutingRows {
  const shares = expertShares(load, { experts, topK, routing: number });
  const { max, mean } = rowShares(load, shares, {
    splits,
    tokens: groupTokens,
  });
  return {
    topK,
    experts,
    tokens,
    groupTokens,
    once,
    localExperts: Math.max(
      ...splits.slice(1).map((end, p) => end - splits[p]!),
    ),
    max: groupTokens * topK * max,
    mean: groupTokens * topK * mean,
    destinations: once ? expectedDestinations(splits, topK) : topK,
  };
}
