/** Rules of dispatch capacity: send and receive buffers have room for the maximum number of rows. */

import { expertRanges, movesTokens } from "../plan/bytes.ts";
import { storedElementsOf } from "../layout.ts";
import { executes } from "../plan/members.ts";
import { groupOf } from "../mesh.ts";
import { type AllToAllStep, onRank, type PlanBuffer } from "../plan/plan.ts";
import type { Facts, Report } from "../plan/facts.ts";
import {
  permutationsOf,
  sentOver,
  type StepOf,
  titleOf,
} from "../plan/routing_parts.ts";

/**
 * Receive and return buffers have room for the maximum number of rows: tokens of the group times min(choices, local
 * experts), or of a round.
 */
export function checkCapacity(facts: Facts, report: Report): void {
  for (const routing of facts.routings) {
    const { within = routing } = routing;
    const name = permutationsOf(within).find((n) =>
      facts.buffers.get(n)!.axes.length > 1
    );
    if (name === undefined) continue;
    const permutation = facts.buffers.get(name)!;
    const { forward, back, indices } = routing;
    for (const at of [...forward, ...back, ...indices]) {
      const once = movesTokens(at.step);
      const rounds = routing.rounds.find(({ step }) =>
        step.to === at.step.counts
      );
      const fault = capacityFault(facts, at, {
        permutation,
        once,
        max: rounds?.step.rows ?? Infinity,
        within: routing.within && sentOver(within),
      });
      if (fault !== undefined) report(titleOf(routing), fault, at);
    }
    for (const at of routing.rounds) {
      const { splits } = at.step;
      const over = sentOver(routing);
      const worst = worstRows(facts, { splits, over }, permutation);
      if (worst !== at.step.maxRows) {
        const fault =
          `a rank receives up to ${worst} rows, not ${at.step.maxRows}`;
        report(titleOf(routing), fault, at);
      }
    }
  }
}

function capacityFault(
  facts: Facts,
  at: StepOf<AllToAllStep>,
  { permutation, once, max, within = [] }: {
    readonly permutation: PlanBuffer;
    readonly once: boolean;
    /** Maximum number of rows that are received at a time. */
    readonly max: number;
    /** Mesh axes over which the sent rows were received from other nodes. */
    readonly within?: readonly string[] | undefined;
  },
): string | undefined {
  const { step } = at;
  const choices = permutation.axes.at(-1)!.size;
  const [sentFrom, receivedIn] = step.direction === "forward"
    ? [step.from, step.to]
    : [step.to, step.from];
  const rowsOf = (name: string, rank: number) =>
    Math.floor(onRank(facts.buffers.get(name)!.bytes, rank) / step.rowBytes);
  const ranges = expertRanges(step);
  for (const group of facts.groups(step.over)) {
    if (!executes(facts.plan.mesh, group[0]!, step)) continue;
    const tokensOver = (rank: number, over: readonly string[]) =>
      groupTokens(facts, permutation, groupOf(facts.plan.mesh, rank, over));
    const tokens = tokensOver(group[0]!, [...within, ...step.over]);
    for (const [groupRank, rank] of group.entries()) {
      const [first, end] = ranges[groupRank] ?? [0, 0];
      const experts = end - first;
      const k = onRank(choices, rank);
      const sent = within.length > 0
        ? tokensOver(rank, within) * Math.min(k, step.splits.at(-1)!)
        : storedElementsOf(permutation, rank);
      const need = [
        [sentFrom, once ? sent / k * Math.min(k, group.length) : sent],
        [receivedIn, Math.min(max, tokens * Math.min(k, experts))],
      ] as const;
      for (const [name, rows] of need) {
        if (rowsOf(name, rank) < rows) {
          return `up to ${rows} rows can be in '${name}' on rank ${rank}, which has room for ${
            rowsOf(name, rank)
          }`;
        }
      }
    }
  }
  return undefined;
}

/** Maximum number of rows that a rank of any group receives. The last mesh axes are those of `splits`. */
function worstRows(
  facts: Facts,
  { over, splits }: {
    readonly over: readonly string[];
    readonly splits: readonly number[];
  },
  permutation: PlanBuffer,
): number {
  const held = splits.slice(1).map((end, p) => end - splits[p]!);
  return Math.max(
    ...facts.groups(over).flatMap((group) => {
      const tokens = groupTokens(facts, permutation, group);
      return group.map((rank, p) => {
        const choices = onRank(permutation.axes.at(-1)!.size, rank);
        return tokens * Math.min(choices, held[p % held.length]!);
      });
    }),
  );
}

/** Maximum number of tokens of the ranks in a group together. */
function groupTokens(
  { plan }: Facts,
  permutation: PlanBuffer,
  group: readonly number[],
): number {
  return permutation.axes.slice(0, -1).reduce((product, { axis, size }) => {
    const known = Object.hasOwn(plan.axes, axis) ? plan.axes[axis] : undefined;
    const sum = group.reduce((n, rank) => n + onRank(size, rank), 0);
    const max = known?.over
      ? Math.min(known.size, sum)
      : Math.max(...group.map((rank) => onRank(size, rank)));
    return product * max;
  }, 1);
}
