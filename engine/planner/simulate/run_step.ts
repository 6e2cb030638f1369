/** Predicts one step of a program: spends the time of the classes that execute it, and counts. */

import type { Machine, RankPlacement } from "../../../spec/machine.ts";
import { isIn } from "../../../spec/mesh.ts";
import { executes, membersOf, sidesOf } from "../../../spec/plan/members.ts";
import {
  type CollectiveStep,
  type CopyStep,
  type LaunchStep,
  onRank,
  type SendStep,
  type Step,
} from "../../../spec/plan/plan.ts";
import { sum } from "../../../spec/sum.ts";
import type { Clocks } from "./clocks.ts";
import { type LaunchSeconds, launchSeconds } from "./device_time.ts";
import { exchangeSeconds } from "./exchange_time.ts";
import type { expertCache } from "./expert_cache.ts";
import {
  type Fullness,
  type LaunchContext,
  type LaunchMeter,
  secondsOf,
} from "./launches.ts";
import { levelsOf, peerBytes } from "./peer_bytes.ts";
import type { RankGroup } from "./rank_groups.ts";

/** Counts of a device with a mean share of the experts' work; see `Prediction`. */
interface Counts {
  launches: number;
  multiplyAdds: number;
  expertBytes: number;
  /** Bytes of streamed experts that a rank reads. */
  diskBytes: number;
  sentBytes: number;
  memoryFloor: number;
  exact: boolean;
}

/** A predicted run of a program. */
export interface Run {
  readonly machine: Machine;
  readonly placements: readonly RankPlacement[];
  readonly groups: readonly RankGroup[];
  readonly context: LaunchContext;
  readonly meter: LaunchMeter;
  /** Undefined: all experts are in memory. */
  readonly cache: ReturnType<typeof expertCache> | undefined;
  readonly clocks: Clocks;
  /** Times at which asynchronous exchanges end, by handle. */
  readonly ends: Map<string, number>;
  /** Time from which links between devices are free. */
  linkFree: number;
  readonly counts: Counts;
}

/** Predicts a step, or one of the `rounds` in which it is repeated. */
export function runStep(run: Run, step: Step, rounds: number): void {
  const { clocks, groups } = run;
  switch (step.op) {
    case "launch":
      return launch(run, step, rounds);
    case "copy":
      return copy(run, step);
    case "rounds":
      // The host reads the counts.
      for (const [i, { device }] of groups.entries()) {
        clocks.spend(i, "run", device.sync ?? 0);
      }
      return;
    case "wait":
      clocks.waitUntil(run.ends.get(step.handle) ?? 0, "exchange", step);
      return;
    default:
      return exchange(run, step, rounds);
  }
}

/** Indices of the classes that execute a step. */
function executing({ groups, context: { plan } }: Run, step: Step): number[] {
  return groups.flatMap(({ rank }, i) =>
    executes(plan.mesh, rank, step) ? [i] : []
  );
}

function launch(run: Run, step: LaunchStep, rounds: number): void {
  for (const i of executing(run, step)) launchOn(run, step, { i, rounds });
}

function launchOn(
  { groups, meter, cache, clocks, counts }: Run,
  step: LaunchStep,
  { i, rounds }: { readonly i: number; readonly rounds: number },
): void {
  const { rank, device, sharing, slower, oneAtATime, cached } = groups[i]!;
  const seconds = (fullness: Fullness) => {
    const counted = meter.launch(step, { rank, fullness, rounds });
    return counted && { counted, ...secondsOf(device, counted, cached) };
  };
  const max = seconds("max");
  if (max === undefined) return;
  // Separate devices wait for the fullest; times of ranks of one device add up.
  const mean = seconds("mean") ?? max;
  const times = sharing * slower;
  for (const part of LAUNCH_PARTS) clocks.spend(i, part, mean[part] * times);
  const read = cache ? max.counted.bound * cache.read : 0;
  // Experts in memory are computed while others are read.
  const reads = read / (device.disk ?? Infinity) - total(mean);
  clocks.spend(i, "disk", Math.max(0, reads) * times);
  if (sharing === 1) {
    // Devices that alternate on all cores of a host leave them to the fullest; separate processes wait.
    const longest = total(max) * (oneAtATime ? 1 : slower);
    clocks.spend(i, "waiting", Math.max(0, longest - total(mean) * slower));
  }
  clocks.all[i]!.busy = true;
  if (i !== clocks.reporter) return;
  const { work, experts, weights, states } = mean.counted;
  counts.launches += sharing * clocks.times;
  counts.multiplyAdds += work.multiplyAdds * sharing * clocks.times;
  counts.exact &&= max.counted.work.exact;
  counts.expertBytes += experts * clocks.times;
  counts.diskBytes += read * clocks.times;
  const floor = (weights + states) * clocks.times;
  counts.memoryFloor += floor * sharing / device.bandwidth;
}

const LAUNCH_PARTS = ["launch", "arithmetic", "memory"] as const;

function total({ launch, arithmetic, memory }: LaunchSeconds): number {
  return launch + arithmetic + memory;
}

function copy(run: Run, step: CopyStep): void {
  const { groups, clocks } = run;
  for (const i of executing(run, step)) {
    const { rank, device, sharing, slower } = groups[i]!;
    const times = sharing * slower;
    clocks.spend(i, "launch", device.launch * times);
    const seconds = 2 * onRank(step.bytes, rank) / device.bandwidth;
    clocks.spend(i, "memory", seconds * times);
  }
}

/** The group of a collective that the reporter is in, and the bytes between its ranks. */
interface Exchanged {
  readonly group: readonly number[];
  /** Bytes to each other rank, as the fullest sends them and on average. */
  readonly each: number;
  readonly mean: number;
}

function exchange(run: Run, step: CollectiveStep, rounds: number): void {
  const { context: { plan, lengths, routings }, placements, clocks } = run;
  const { rank, placement } = run.groups[clocks.reporter]!;
  const group = membersOf(plan.mesh, rank, step);
  if (group.length === 1) return;
  const rows = step.op === "allToAll" ? undefined : step.rows;
  if (rows && lengths.max(rows.axis) === 0) return;
  const bytes = peerBytes(step, {
    lengths,
    rows: step.part && routings.get(step.part.routing),
    groupSize: group.length,
    rounds,
  });
  run.counts.sentBytes += bytes.each * (group.length - 1) * clocks.times;
  const exchanged = { group, ...bytes };
  const local = group.every((other) =>
    placements[other]!.device === placement.device
  );
  if (local) exchangeOnDevice(run, step, exchanged);
  else if (step.op === "send") send(run, step, exchanged);
  else exchangeOverLinks(run, step, exchanged);
}

/** Moves rows between ranks of one device. */
function exchangeOnDevice(
  { groups, meter, clocks, counts }: Run,
  step: CollectiveStep,
  { group }: Exchanged,
): void {
  const { reporter } = clocks;
  const { device, sharing, slower, cached } = groups[reporter]!;
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
    for (const part of LAUNCH_PARTS) {
      clocks.spend(reporter, "exchange", seconds[part] * (times * slower));
    }
    counts.launches += times * clocks.times;
  }
  clocks.waitUntil(clocks.all[reporter]!.now, "waiting", step);
}

/** Waits for all ranks and for the links. */
function exchangeOverLinks(
  run: Run,
  step: CollectiveStep,
  { group, each, mean }: Exchanged,
): void {
  const { machine, placements, groups, clocks } = run;
  const { rank, placement } = groups[clocks.reporter]!;
  const seconds = exchangeSeconds(machine, {
    levels: levelsOf(placements, { rank, group, each, mean }),
    // Gathers of counts; the time of row gathers depends on their bytes.
    gathers: step.op === "allGather" && !step.rows,
    staged: 2 * group.length * each,
  }, placement.kind);
  const members = executing(run, step);
  for (const i of members) {
    const clock = clocks.all[i]!;
    // Consecutive exchanges wait for the device once.
    if (clock.busy) clocks.spend(i, "run", groups[i]!.device.sync ?? 0);
    clock.busy = false;
  }
  const ready = Math.max(...members.map((i) => clocks.all[i]!.now));
  run.linkFree = Math.max(ready, run.linkFree) + seconds;
  if (step.op === "allToAll" && step.handle !== undefined) {
    // Asynchronous: later work continues meanwhile.
    run.ends.set(step.handle, run.linkFree);
    return;
  }
  clocks.waitUntil(ready, "waiting", step);
  clocks.waitUntil(run.linkFree, "exchange", step);
}

/** The source continues; the destination waits for its work, and then for the transfer. */
function send(
  { machine, placements, groups, clocks, context: { plan } }: Run,
  step: SendStep,
  { group, each }: Exchanged,
): void {
  const source = clocks.all[clocks.reporter]!;
  const { rank, placement } = groups[clocks.reporter]!;
  const seconds = exchangeSeconds(machine, {
    levels: levelsOf(placements, { rank, group, each, mean: each }),
    staged: 2 * each,
  }, placement.kind);
  source.busy = false;
  for (const [i, { rank }] of groups.entries()) {
    if (!isIn(sidesOf(step).writes, plan.mesh, rank)) continue;
    const clock = clocks.all[i]!;
    if (source.now > clock.now) {
      const { worked } = clock;
      clocks.spend(i, "waiting", source.now - clock.now);
      clock.worked = worked;
    }
    clocks.reporter = i;
    const end = source.now + seconds;
    if (end > clock.now) clocks.spend(i, "exchange", end - clock.now);
    clock.busy = false;
  }
}
