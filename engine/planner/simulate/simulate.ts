/**
 * Predicts the time of a step of a plan on a machine: all launches and exchanges in order, by classes of equal ranks.
 */

import type { Machine } from "../../../spec/machine.ts";
import { isIn, stageAxis } from "../../../spec/mesh.ts";
import { executes, membersOf, sidesOf } from "../../../spec/plan/members.ts";
import {
  type CollectiveStep,
  onRank,
  type Plan,
  type SendStep,
  type Step,
} from "../../../spec/plan/plan.ts";
import type { StreamedReads } from "../../../spec/plan_summary.ts";
import { sum } from "../../../spec/sum.ts";
import { type LaunchSeconds, launchSeconds } from "./device_time.ts";
import { exchangeSeconds } from "./exchange_time.ts";
import { expertCache } from "./expert_cache.ts";
import { layersOf } from "../../../spec/plan/layers.ts";
import { loopsOf } from "../../../spec/plan/rounds.ts";
import { launchContext, openLaunchMeter, secondsOf } from "./launches.ts";
import { levelsOf, peerBytes } from "./peer_bytes.ts";
import { placementsOf, type RankGroup, rankGroups } from "./rank_groups.ts";
import type { Workload } from "./workload.ts";

/** Seconds of a device by cause. */
export interface Parts {
  /** Launch overhead. */
  readonly launch: number;
  readonly arithmetic: number;
  readonly memory: number;
  /** Reading experts, except while others are computed. */
  readonly disk: number;
  readonly exchange: number;
  /** Waiting for ranks with more work. */
  readonly waiting: number;
  /** Host time per run, and at its exchanges. */
  readonly run: number;
}

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

/** Time of the ranks of a class in a step. */
export interface SpentTime {
  /** The first rank of the class. */
  readonly rank: number;
  /** Index of the step. */
  readonly step: number;
  readonly what: keyof Parts;
  /** Seconds since the start of the program. */
  readonly start: number;
  readonly seconds: number;
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

/** No time. */
export const NO_PARTS: Parts = {
  launch: 0,
  arithmetic: 0,
  memory: 0,
  disk: 0,
  exchange: 0,
  waiting: 0,
  run: 0,
};

interface Clock {
  now: number;
  busy: boolean;
  /** Seconds in which it does not wait for another stage, in all layers. */
  worked: number;
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
  const { program, lengths, routings } = context;
  const meter = openLaunchMeter(context);
  const { names, numbers, of } = layersOf(plan, program);
  const { times: timesOf = () => 1, resident } = options;
  const cache = resident === undefined
    ? undefined
    : expertCache(routings, workload, resident);
  const equal = numbers.map((n) => n === undefined ? 1 : timesOf(n));
  const layers = names.map(() => ({ ...NO_PARTS } as Mutable<Parts>));
  const clocks = groups.map((): Clock => ({
    now: 0,
    busy: false,
    worked: 0,
  }));
  const ends = new Map<string, number>();
  let [launches, multiplyAdds, expertBytes, sentBytes] = [0, 0, 0, 0];
  let diskBytes = 0;
  let memoryFloor = 0;
  let linkFree = 0;
  let exact = true;
  let [layer, current] = [0, 0];
  const loops = loopsOf(program.steps);
  // The rounds of the current step.
  let rounds = 1;
  // Stages work at the same time on different micro-batches.
  const together = plan.pipeline !== undefined;
  // The breakdown of a step is that of the first class that executes it; classes that work at the same time count once.
  let reporter = 0;
  let reported = 0;
  const spend = (i: number, what: keyof Parts, seconds: number) => {
    const { rank } = groups[i]!;
    const start = clocks[i]!.now;
    options.onSpent?.({ rank, step: current, what, start, seconds });
    const end = clocks[i]!.now += seconds;
    clocks[i]!.worked += seconds * equal[layer]!;
    if (i !== reporter) return;
    layers[layer]![what] += together
      ? seconds
      : Math.max(0, end - Math.max(start, reported));
    reported = Math.max(reported, end);
  };
  const waitUntil = (time: number, what: keyof Parts, step?: Step) => {
    for (const [i, clock] of clocks.entries()) {
      if (step && !executes(plan.mesh, groups[i]!.rank, step)) continue;
      if (time > clock.now) spend(i, what, time - clock.now);
    }
  };
  for (const [n, step] of program.steps.entries()) {
    [layer, current] = [of[n]!, n];
    const { reads } = sidesOf(step);
    reporter = groups.findIndex(({ rank }) => isIn(reads, plan.mesh, rank));
    rounds = roundsAt(n);
    for (let round = 0; round < rounds; round++) take(step);
  }
  const last = Math.max(...clocks.map(({ now }) => now), linkFree);
  const worked = Math.max(...clocks.map(({ worked }) => worked));
  reporter = together ? -1 : 0;
  waitUntil(last, "waiting");
  reporter = 0;
  spend(0, "run", groups[0]!.device.run ?? 0);
  const parts = addUp(layers, equal);
  const seconds = together
    ? last + (groups[0]!.device.run ?? 0)
    : sum(Object.values(parts));
  const staged = !together && stageAxis(plan.mesh);
  return {
    seconds,
    busiest: staged ? Math.min(seconds, worked) : seconds,
    parts,
    launches,
    multiplyAdds,
    expertBytes,
    ...cache ? { streamed: { bytes: diskBytes, hitRate: cache.hitRate } } : {},
    memoryFloor,
    sentBytes,
    layers: names.map((name, i) => ({
      name,
      number: numbers[i],
      ...layers[i]!,
    })),
    devices: new Set(placements.map(({ device }) => device)).size,
    exact,
  };

  /** Number of rounds that a step is repeated in, by the rank with the most rows. */
  function roundsAt(n: number): number {
    const loop = loops.find(({ first, last }) => first < n && n <= last);
    const step = loop && program.steps[loop.first]!;
    const rows = step?.part && routings.get(step.part.routing);
    return step?.op === "rounds" && rows
      ? Math.max(1, Math.ceil(rows.max / step.rows))
      : 1;
  }

  function take(step: Step): void {
    if (step.op === "launch") {
      for (const [i, group] of groups.entries()) {
        if (!executes(plan.mesh, group.rank, step)) continue;
        launch(step, group, i);
      }
    } else if (step.op === "copy") {
      for (const [i, { rank, device, sharing, slower }] of groups.entries()) {
        if (!executes(plan.mesh, rank, step)) continue;
        const times = sharing * slower;
        spend(i, "launch", device.launch * times);
        const seconds = 2 * onRank(step.bytes, rank) / device.bandwidth;
        spend(i, "memory", seconds * times);
      }
    } else if (step.op === "rounds") {
      // The host reads the counts.
      for (const [i, { device }] of groups.entries()) {
        spend(i, "run", device.sync ?? 0);
      }
    } else if (step.op === "wait") {
      waitUntil(ends.get(step.handle) ?? 0, "exchange", step);
    } else exchange(step);
  }

  function launch(
    step: Step & { readonly op: "launch" },
    { rank, device, sharing, slower, oneAtATime, cached }: RankGroup,
    i: number,
  ): void {
    const seconds = (fullness: "max" | "mean") => {
      const counted = meter.launch(step, { rank, fullness, rounds });
      return counted && { counted, ...secondsOf(device, counted, cached) };
    };
    const max = seconds("max");
    if (max === undefined) return;
    // Separate devices wait for the fullest; times of ranks of one device add up.
    const mean = seconds("mean") ?? max;
    const times = sharing * slower;
    spendLaunch(i, mean, times, false);
    const read = cache ? max.counted.bound * cache.read : 0;
    // Experts in memory are computed while others are read.
    const reads = read / (device.disk ?? Infinity) - total(mean);
    spend(i, "disk", Math.max(0, reads) * times);
    if (sharing === 1) {
      // Devices that alternate on all cores of a host leave them to the fullest; separate processes wait.
      const longest = total(max) * (oneAtATime ? 1 : slower);
      spend(i, "waiting", Math.max(0, longest - total(mean) * slower));
    }
    clocks[i]!.busy = true;
    if (i !== reporter) return;
    launches += sharing * equal[layer]!;
    multiplyAdds += mean.counted.work.multiplyAdds * sharing * equal[layer]!;
    exact &&= max.counted.work.exact;
    expertBytes += mean.counted.experts * equal[layer]!;
    diskBytes += read * equal[layer]!;
    const floor = (mean.counted.weights + mean.counted.states) * equal[layer]!;
    memoryFloor += floor * sharing / device.bandwidth;
  }

  function spendLaunch(
    i: number,
    seconds: LaunchSeconds,
    times: number,
    exchanges: boolean,
  ): void {
    for (const part of ["launch", "arithmetic", "memory"] as const) {
      spend(i, exchanges ? "exchange" : part, seconds[part] * times);
    }
  }

  function exchange(step: CollectiveStep): void {
    const { rank, placement, device, sharing, slower, cached } =
      groups[reporter]!;
    const group = membersOf(plan.mesh, rank, step);
    if (group.length === 1) return;
    const rows = step.op === "allToAll" ? undefined : step.rows;
    if (rows && lengths.max(rows.axis) === 0) return;
    const { each, mean } = peerBytes(step, {
      lengths,
      rows: step.part && routings.get(step.part.routing),
      groupSize: group.length,
      rounds,
    });
    sentBytes += each * (group.length - 1) * equal[layer]!;
    const local = group.every((other) =>
      placements[other]!.device === placement.device
    );
    if (step.op === "send" && !local) return send(step, group, each);
    if (local) {
      // The cost of splitting a launch is part of the rate of kernels that move rows.
      const moves = step.op === "allToAll" && device.exchange
        ? { ...device.exchange, join: 0 }
        : {};
      const times = sharing / group.length;
      for (const work of meter.local(step)) {
        const bytes = sum(work.loads) + sum(work.stores);
        const seconds = launchSeconds({ ...device, ...moves }, work, {
          bytes,
          weights: 0,
          states: 0,
          cached,
        });
        spendLaunch(reporter, seconds, times * slower, true);
        launches += times * equal[layer]!;
      }
      waitUntil(clocks[reporter]!.now, "waiting", step);
      return;
    }
    const seconds = exchangeSeconds(machine, {
      levels: levelsOf(placements, { rank, group, each, mean }),
      // Gathers of counts; the time of row gathers depends on their bytes.
      gathers: step.op === "allGather" && !step.rows,
      staged: 2 * group.length * each,
    }, placement.kind);
    const taking = clocks.filter((_, i) =>
      executes(plan.mesh, groups[i]!.rank, step)
    );
    for (const clock of taking) {
      // Consecutive exchanges wait for the device once.
      const i = clocks.indexOf(clock);
      if (clock.busy) spend(i, "run", groups[i]!.device.sync ?? 0);
      clock.busy = false;
    }
    const ready = Math.max(...taking.map(({ now }) => now));
    const start = Math.max(ready, linkFree);
    linkFree = start + seconds;
    if (step.op === "allToAll" && step.handle !== undefined) {
      // Asynchronous: later work continues meanwhile.
      ends.set(step.handle, linkFree);
      return;
    }
    waitUntil(ready, "waiting", step);
    waitUntil(linkFree, "exchange", step);
  }

  /** The source continues; the destination waits for its work, and then for the transfer. */
  function send(step: SendStep, group: readonly number[], each: number): void {
    const source = clocks[reporter]!;
    const { rank, placement } = groups[reporter]!;
    const seconds = exchangeSeconds(machine, {
      levels: levelsOf(placements, { rank, group, each, mean: each }),
      staged: 2 * each,
    }, placement.kind);
    source.busy = false;
    const to = groups.flatMap(({ rank }, i) =>
      isIn(sidesOf(step).writes, plan.mesh, rank) ? [i] : []
    );
    for (const i of to) {
      const { now } = clocks[i]!;
      if (source.now > now) {
        const { worked } = clocks[i]!;
        spend(i, "waiting", source.now - now);
        clocks[i]!.worked = worked;
      }
      reporter = i;
      const end = source.now + seconds;
      if (end > clocks[i]!.now) spend(i, "exchange", end - clocks[i]!.now);
      clocks[i]!.busy = false;
    }
  }
}

type Mutable<T> = { -readonly [K in keyof T]: T[K] };

function total({ launch, arithmetic, memory }: LaunchSeconds): number {
  return launch + arithmetic + memory;
}

function addUp(layers: readonly Parts[], equal: readonly number[]): Parts {
  const all = { ...NO_PARTS } as Mutable<Parts>;
  for (const [i, parts] of layers.entries()) {
    for (const part of Object.keys(all) as (keyof Parts)[]) {
      all[part] += parts[part] * equal[i]!;
    }
  }
  return all;
}
