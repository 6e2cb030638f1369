/** Rules of dispatch capacity: send and receive buffers have room for the maximum number of rows. */

import { expertRanges, movesTokens } from "../plan/bytes.ts";
import { storedElementsOf } from "../layout.ts";
import { executes } from "../plan/members.ts";
import {
  type AllToAllStep,
  onRank,
  type PlanBuffer,
  type RoundsStep,
} from "../plan/plan.ts";
import type { Facts, Report } from "../plan/facts.ts";
import { permutationsOf, type StepOf, titleOf } from "../plan/routing_parts.ts";

/**
 * Receive and return buffers have room for the maximum number of rows: tokens of the group times min(choices, local
 * experts), or of a round.
 */
export function checkCapacity(facts: Facts, report: Report): void {
  for (const routing of facts.routings) {
    const name = permutationsOf(routing).find((n) =>
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
      });
      if (fault !== undefined) report(titleOf(routing), fault, at);
    }
    for (const at of routing.rounds) {
      const worst = worstRows(facts, at.step, permutation);
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
  { permutation, once, max }: {
    readonly permutation: PlanBuffer;
    readonly once: boolean;
    /** Maximum number of rows that are received at a time. */
    readonly max: number;
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
    const tokens = groupTokens(facts, permutation, group);
    for (const [groupRank, rank] of group.entries()) {
      const [first, end] = ranges[groupRank] ?? [0, 0];
      const experts = end - first;
      const k = onRank(choices, rank);
      const sent = storedElementsOf(permutation, rank);
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

/** Maximum number of rows that a rank of any group receives. */
function worstRows(
  facts: Facts,
  { over, splits }: RoundsStep,
  permutation: PlanBuffer,
): number {
  const held = splits.slice(1).map((end, p) => end - splits[p]!);
  return Math.max(
    ...facts.groups(over).flatMap((group) => {
      const tokens = groupTokens(facts, permutation, group);
      return held.map((experts, p) =>
        tokens *
        Math.min(onRank(permutation.axes.at(-1)!.size, group[p]!), experts)
      );
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
