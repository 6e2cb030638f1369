/** Predicted steps of a plan over time, and the bytes and FLOPs of each. */

import { type Machine, machineRanks } from "../../../spec/machine.ts";
import type { Plan } from "../../../spec/plan/plan.ts";
import type {
  Phase,
  PhaseCosts,
  PlanSummary,
  PredictedStep,
  PredictedTimeline,
  TimedStep,
} from "../../../spec/plan_summary.ts";
import { rankClasses } from "../../../spec/plan/rank_classes.ts";
import { type ExpertLoad, simulate, stepCosts } from "../simulate/mod.ts";
import { stepInFlight, workloadsOf } from "./predictions.ts";

/** Options besides the plan. */
export interface TimelineOptions {
  readonly machine: Machine;
  readonly experts?: ExpertLoad | undefined;
}

/** The predicted steps of a summary, for the entire plan. */
export function predictTimelines(
  plan: Plan,
  { predicted = {} }: PlanSummary,
  options: TimelineOptions,
): PredictedTimeline[] {
  const steps = Object.entries(predicted) as [Phase, PredictedStep][];
  return steps.map(([phase, predicted]) => {
    const { tokens, sequences, past, inFlight, tokensPerSecond } = predicted;
    const { machine, experts = { kind: "even" } } = options;
    const lanes = new Map<number, Lane>();
    const workload = { tokens, sequences, past, experts };
    const { seconds } = simulate(plan, machine, workload, {
      onSpent({ rank, step, what, start, seconds }) {
        const lane = lanes.get(rank) ?? { steps: [], waits: [] };
        lanes.set(rank, lane);
        if (what === "run" || seconds === 0) return;
        const waits = what === "waiting";
        const list = waits ? lane.waits : lane.steps;
        const last = list.at(-1);
        const goesOn = !waits ||
          last !== undefined && near(last[1] + last[2], start * 1e6);
        if (last?.[0] === step && goesOn) {
          last[2] = (start + seconds) * 1e6 - last[1];
        } else list.push([step, start * 1e6, seconds * 1e6]);
      },
    });
    const counts = countOf(plan, [...lanes.keys()]);
    return {
      phase,
      tokens,
      sequences,
      ...inFlight === undefined ? {} : { inFlight, tokensPerSecond },
      microseconds: seconds * 1e6,
      lanes: [...lanes].map(([rank, { steps, waits }]) => ({
        rank,
        count: counts.get(rank)!,
        steps: steps.map(rounded),
        waits: waits.map(rounded),
      })),
    };
  });
}

/** Number of ranks in the class of each first rank. */
function countOf(plan: Plan, firsts: readonly number[]): Map<number, number> {
  const classes = rankClasses(plan);
  const counts = new Map<number, number>();
  for (const of of classes) {
    const first = firsts.find((rank) => classes[rank] === of) ?? firsts[0]!;
    counts.set(first, (counts.get(first) ?? 0) + 1);
  }
  return counts;
}

/** Activity of a rank: steps, and waits for other ranks. */
interface Lane {
  readonly steps: Timed[];
  readonly waits: Timed[];
}

/** A mutable `TimedStep`, in microseconds. */
type Timed = [step: number, start: number, duration: number];

/** Rounds to a nanosecond. */
function rounded([step, start, duration]: Timed): TimedStep {
  return [step, nanoseconds(start), nanoseconds(duration)];
}

function nanoseconds(microseconds: number): number {
  return Math.round(microseconds * 1000) / 1000;
}

function near(a: number, b: number): boolean {
  return Math.abs(a - b) < 1e-3;
}

/** Bytes and FLOPs of the largest steps of a plan; with a machine, also roofline times. */
export function predictCosts(
  plan: Plan,
  { machine, experts = { kind: "even" } }: {
    readonly machine?: Machine | undefined;
    readonly experts?: ExpertLoad | undefined;
  },
): PhaseCosts[] {
  const fits = machine && plan.ranks <= machineRanks(machine);
  return workloadsOf(plan).map((known) => {
    const [phase] = known;
    const one = fits ? stepInFlight(plan, machine, known).workload : known[1];
    return {
      phase,
      tokens: one.tokens,
      steps: stepCosts(plan, { ...one, experts }, fits ? machine : undefined),
    };
  });
}
