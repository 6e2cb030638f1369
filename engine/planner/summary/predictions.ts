/** Predicted steps of a plan for a summary. */

import type { Machine } from "../../../spec/machine.ts";
import { machineRanks } from "../../../spec/machine.ts";
import type { Plan } from "../../../spec/plan/plan.ts";
import type {
  Bottleneck,
  LayerSeconds,
  Phase,
  PlanSummary,
  PredictedStep,
} from "../../../spec/plan_summary.ts";
import { sum } from "../../../spec/sum.ts";
import {
  concurrentRuns,
  type ExpertLoad,
  NO_PARTS,
  type Parts,
  type Prediction,
  simulate,
  type Workload,
} from "../simulate/mod.ts";
import type { Representatives } from "./representatives.ts";

/** Predicted steps by phase. */
export type Predictions = ReadonlyMap<Phase, PhasePrediction>;

/** A predicted step of a phase. */
export interface PhasePrediction {
  readonly workload: Required<Workload>;
  readonly step: Prediction;
  /** Steps that pipeline stages execute concurrently. */
  readonly inFlight: number;
  /** Throughput of all of them. */
  readonly tokensPerSecond: number;
}

/** Options besides the plan. */
export interface PredictOptions {
  readonly machine: Machine | undefined;
  readonly representatives: Representatives;
  /** Expert load. Default: even. */
  readonly experts?: ExpertLoad | undefined;
  /** Fraction of experts in memory. Default: all. */
  readonly resident?: number | undefined;
  /** Default: the largest steps within the bounds of the plan. */
  readonly workloads?: readonly PhaseWorkload[];
}

/** A step of a phase. */
export type PhaseWorkload = readonly [
  Phase,
  Required<Omit<Workload, "experts">>,
];

/** Predicts the steps of a plan. Empty if the machine has too few devices for its ranks. */
export function predictSteps(
  plan: Plan,
  options: PredictOptions,
): Predictions {
  const { machine, representatives, experts = { kind: "even" }, resident } =
    options;
  if (machine === undefined || plan.ranks > machineRanks(machine)) {
    return new Map();
  }
  const times = (layer: number) => representatives.of(layer).length;
  return new Map(
    (options.workloads ?? workloadsOf(plan)).map((known) => {
      const { inFlight, workload: one } = stepInFlight(plan, machine, known);
      const workload = { ...one, experts };
      const step = simulate(plan, machine, workload, { times, resident });
      const [phase, { tokens }] = known;
      const all = phase === "decode" ? tokens : inFlight * tokens;
      const seconds = Math.max(step.seconds, inFlight * step.busiest);
      const tokensPerSecond = all / seconds;
      return [phase, { workload, step, inFlight, tokensPerSecond }];
    }),
  );
}

/** A step of a phase, and the number of steps in flight, among which decoding sequences are divided. */
export function stepInFlight(
  plan: Plan,
  machine: Machine,
  [phase, { tokens, sequences, past }]: PhaseWorkload,
): { readonly inFlight: number; readonly workload: PhaseWorkload[1] } {
  const stages = concurrentRuns(plan, machine);
  if (phase !== "decode") {
    return { inFlight: stages, workload: { tokens, sequences, past } };
  }
  const inFlight = Math.min(stages, sequences);
  const part = (n: number) => Math.ceil(n / inFlight);
  return {
    inFlight,
    workload: { tokens: part(tokens), sequences: part(sequences), past },
  };
}

/** The largest steps within the bounds of a plan. */
export function workloadsOf(plan: Plan): PhaseWorkload[] {
  const [program] = plan.programs;
  if (!program) return [];
  const lengths = Object.values(program.inputs).flatMap(({ axes }) =>
    axes.filter((axis) => plan.axes[axis]!.dynamic)
      .map((axis) => plan.axes[axis]!.size)
  );
  const room = Math.max(1, ...lengths);
  if (program.inputs["ids"] === undefined) {
    return [["step", { tokens: room, sequences: 1, past: 0 }]];
  }
  const size = (axis: string, otherwise: number) =>
    plan.axes[axis]?.size ?? otherwise;
  const context = size("context", room);
  const sequences = Math.min(size("sequence", 1), room);
  const full = {
    tokens: Math.min(room, sequences * context),
    sequences,
    past: 0,
  };
  if (program.inputs["labels"]) return [["train", full]];
  const next = { tokens: sequences, sequences, past: context - 1 };
  return [["prefill", full], ["decode", next]];
}

/** The cause of most of the time. */
export function boundOf(parts: Parts): Bottleneck {
  const [[name]] = Object.entries(parts).sort(([, a], [, b]) => b - a) as [
    [Bottleneck, number],
  ];
  return name;
}

/** The steps in the format of a summary. */
export function predictedSteps(
  predictions: Predictions,
): Pick<PlanSummary, "predicted"> {
  if (predictions.size === 0) return {};
  const entries = [...predictions].map(([phase, prediction]) => {
    const { workload, step, inFlight, tokensPerSecond } = prediction;
    const { tokens, sequences, past } = workload;
    const { seconds, parts, memoryFloor, exact, streamed } = step;
    const predicted: PredictedStep = {
      tokens,
      sequences,
      past,
      seconds,
      ...inFlight > 1 ? { inFlight } : {},
      tokensPerSecond,
      bound: boundOf(parts),
      parts,
      memoryFloor,
      exact,
      ...streamed ? { streamed } : {},
    };
    return [phase, predicted] as const;
  });
  return { predicted: Object.fromEntries(entries) };
}

/** Predicted seconds of a layer of a class, from its built layers. */
export function layerSeconds(
  predictions: Predictions,
  built: readonly (number | undefined)[],
  representatives: Representatives,
): { readonly seconds?: { readonly [P in Phase]?: LayerSeconds } } {
  if (predictions.size === 0) return {};
  const times = (layer: number | undefined) =>
    layer === undefined ? 1 : representatives.of(layer).length;
  const all = sum(built.map(times));
  const entries = [...predictions].map(([phase, { step }]) => {
    const parts: { -readonly [P in keyof Parts]: number } = { ...NO_PARTS };
    for (const layer of step.layers) {
      if (!built.includes(layer.number)) continue;
      for (const part of Object.keys(parts) as (keyof Parts)[]) {
        parts[part] += layer[part] * times(layer.number) / all;
      }
    }
    const seconds: LayerSeconds = {
      total: sum(Object.values(parts)),
      exchange: parts.exchange,
      bound: boundOf(parts),
    };
    return [phase, seconds] as const;
  });
  return { seconds: Object.fromEntries(entries) };
}
