/**
 * Predicts the time of a step of a plan on a machine: all launches and exchanges in order, by classes of equal ranks.
 */

import type { Machine } from "../../../spec/machine.ts";
import { isIn, stageAxis } from "../../../spec/mesh.ts";
import { sidesOf } from "../../../spec/plan/members.ts";
import type { Plan } from "../../../spec/plan/plan.ts";
import type { StreamedReads } from "../../../spec/plan_summary.ts";
import { sum } from "../../../spec/sum.ts";
import {
  addLayers,
  type Parts,
  type SpentTime,
  startClocks,
} from "./clocks.ts";
import { expertCache } from "./expert_cache.ts";
import { layersOf } from "../../../spec/plan/layers.ts";
import { launchContext, openLaunchMeter } from "./launches.ts";
import { placementsOf, rankGroups } from "./rank_groups.ts";
import { openRounds } from "./rounds.ts";
import { type Run, runStep } from "./run_step.ts";
import type { Workload } from "./workload.ts";

/** A layer of a predicted step. */
export interface PredictedLayer extends Parts {
  readonly name: string;
  /** Number of the layer in the model, if it has one. */
  readonly number: number | undefined;
}

/** A predicted step. */
export interface Prediction {
  readonly seconds: number;
  /** Seconds in which the busiest pipeline stage works. Without stages: `seconds`. */
  readonly busiest: number;
  /** Seconds of a device with a mean share of the experts' work, by cause. */
  readonly parts: Parts;
  readonly layers: readonly PredictedLayer[];
  /** Launches on a device. */
  readonly launches: number;
  /** Multiply-adds of a device with a mean share of the experts' work. */
  readonly multiplyAdds: number;
  /** Bytes of expert weights read by a rank. */
  readonly expertBytes: number;
  /** Reads of streamed experts by a rank, if they are streamed. */
  readonly streamed?: StreamedReads;
  /** Seconds in which a device reads the weights and states of the step at full bandwidth, with a mean load. */
  readonly memoryFloor: number;
  /** Bytes that a rank sends to other ranks. */
  readonly sentBytes: number;
  /** Devices that the ranks live on. */
  readonly devices: number;
  /** False if the work of a kernel depends on unknown data; its time is then a lower bound. */
  readonly exact: boolean;
}

/** Options of `simulate`. */
export interface SimulateOptions {
  /** Called for all activities of ranks, in order. */
  readonly onSpent?: (spent: SpentTime) => void;
  /** Number of layers that a layer of the plan represents. Default: 1. */
  readonly times?: ((layer: number) => number) | undefined;
  /** Fraction of experts in memory; the others are read from disk. Default: all experts are in memory. */
  readonly resident?: number | undefined;
}

/** Predicts one step of a plan's first program. Throws DataError if the machine has too few devices for the ranks. */
export function simulate(
  plan: Plan,
  machine: Machine,
  workload: Workload,
  options: SimulateOptions = {},
): Prediction {
  const placements = placementsOf(plan, machine);
  const groups = rankGroups(plan, machine, placements);
  const context = launchContext(plan, workload);
  const { program, routings } = context;
  const { names, numbers, of } = layersOf(plan, program);
  const { times: timesOf = () => 1, resident } = options;
  const times = numbers.map((n) => n === undefined ? 1 : timesOf(n));
  // Stages work at the same time on different micro-batches.
  const together = plan.pipeline !== undefined;
  const clocks = startClocks(groups, {
    mesh: plan.mesh,
    times,
    together,
    onSpent: options.onSpent,
  });
  const run: Run = {
    machine,
    placements,
    groups,
    context,
    meter: openLaunchMeter(context),
    cache: resident === undefined
      ? undefined
      : expertCache(routings, workload, resident),
    clocks,
    ends: new Map(),
    linkFree: 0,
    counts: {
      launches: 0,
      multiplyAdds: 0,
      expertBytes: 0,
      diskBytes: 0,
      sentBytes: 0,
      memoryFloor: 0,
      exact: true,
    },
  };
  const roundsAt = openRounds(context);
  for (const [index, step] of program.steps.entries()) {
    const { reads } = sidesOf(step);
    clocks.at = { index, layer: of[index]! };
    clocks.reporter = groups.findIndex(({ rank }) =>
      isIn(reads, plan.mesh, rank)
    );
    const rounds = roundsAt(index);
    for (let round = 0; round < rounds; round++) runStep(run, step, rounds);
  }
  const last = Math.max(...clocks.all.map(({ now }) => now), run.linkFree);
  const worked = Math.max(...clocks.all.map(({ worked }) => worked));
  clocks.reporter = together ? -1 : 0;
  clocks.waitUntil(last, "waiting");
  clocks.reporter = 0;
  const ofRun = groups[0]!.device.run ?? 0;
  clocks.spend(0, "run", ofRun);
  const parts = addLayers(clocks.layers, times);
  const seconds = together ? last + ofRun : sum(Object.values(parts));
  const staged = !together && stageAxis(plan.mesh);
  const { counts, cache } = run;
  return {
    seconds,
    busiest: staged ? Math.min(seconds, worked) : seconds,
    parts,
    launches: counts.launches,
    multiplyAdds: counts.multiplyAdds,
    expertBytes: counts.expertBytes,
    ...cache
      ? { streamed: { bytes: counts.diskBytes, hitRate: cache.hitRate } }
      : {},
    memoryFloor: counts.memoryFloor,
    sentBytes: counts.sentBytes,
    layers: names.map((name, i) => ({
      name,
      number: numbers[i],
      ...clocks.layers[i]!,
    })),
    devices: new Set(placements.map(({ device }) => device)).size,
    exact: counts.exact,
  };
}
