/** Steps that are predicted, over time: what ranks do from one moment to the next. */

import type { Machine } from "../../../spec/machine.ts";
import type { Plan } from "../../../spec/plan/plan.ts";
import type {
  Phase,
  PlanSummary,
  PredictedStep,
  PredictedTimeline,
  TimedStep,
} from "../../../spec/plan_summary.ts";
import { rankClasses } from "../../../spec/plan/rank_classes.ts";
import { type ExpertLoad, simulate } from "../simulate/mod.ts";

/** What is known besides the plan. */
export interface TimelineOptions {
  readonly machine: Machine;
  readonly experts?: ExpertLoad | undefined;
}

/** The steps that a summary predicts, of the whole plan. */
export function predictTimelines(
  plan: Plan,
  { predicted = {} }: PlanSummary,
  options: TimelineOptions,
): PredictedTimeline[] {
  const steps = Object.entries(predicted) as [Phase, PredictedStep][];
  return steps.map(([phase, { tokens, sequences, past }]) => {
    const { machine, experts = { kind: "even" } } = options;
    const lanes = new Map<number, [number, number, number][]>();
    const workload = { tokens, sequences, past, experts };
    const { seconds } = simulate(plan, machine, workload, {
      onSpent({ rank, step, what, start, seconds }) {
        const lane = lanes.get(rank) ?? [];
        lanes.set(rank, lane);
        if (what === "waiting" || what === "run" || seconds === 0) return;
        const last = lane.at(-1);
        if (last?.[0] === step) last[2] = (start + seconds) * 1e6 - last[1];
        else lane.push([step, start * 1e6, seconds * 1e6]);
      },
    });
    const counts = countOf(plan, [...lanes.keys()]);
    return {
      phase,
      tokens,
      sequences,
      microseconds: seconds * 1e6,
      lanes: [...lanes].map(([rank, steps]) => ({
        rank,
        count: counts.get(rank)!,
        steps: steps.map(([step, start, duration]): TimedStep => [
          ...[step, rounded(start), rounded(duration)] as const,
        ]),
      })),
    };
  });
}

/** How many ranks are like each of the first ones of their classes. */
function countOf(plan: Plan, firsts: readonly number[]): Map<number, number> {
  const classes = rankClasses(plan);
  const counts = new Map<number, number>();
  for (const of of classes) {
    const first = firsts.find((rank) => classes[rank] === of) ?? firsts[0]!;
    counts.set(first, (counts.get(first) ?? 0) + 1);
  }
  return counts;
}

/** To a nanosecond. */
function rounded(microseconds: number): number {
  return Math.round(microseconds * 1000) / 1000;
}
