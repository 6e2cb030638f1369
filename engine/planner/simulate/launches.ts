/** Predicts launches on a rank: sizes from the workload, work from the kernel, bytes from the used parts of buffers. */

import { movesTokens } from "../../../spec/plan/bytes.ts";
import type { Kernel } from "../../../spec/kernel/tree.ts";
import type { MachineDevice } from "../../../spec/machine.ts";
import { localLaunches } from "../../../spec/local/mod.ts";
import {
  type CollectiveStep,
  type LaunchStep,
  onRank,
  type Plan,
  type PlanBuffer,
  type Program,
} from "../../../spec/plan/plan.ts";
import { groupSizeOf } from "../../../spec/mesh.ts";
import { evaluateSize, type Size } from "../../../spec/size.ts";
import { sum } from "../../../spec/sum.ts";
import { type LaunchSeconds, launchSeconds } from "./device_time.ts";
import { expectedTiles, tileOf, unconditional } from "./expert_tiles.ts";
import { isExpert, launchFacts, type Routed } from "./launch_facts.ts";
import {
  type LaunchSetup,
  type LaunchWork,
  launchWork,
  type Typical,
  typicalOf,
} from "./launch_work.ts";
import { type RoutingRows, routingRows } from "./routings.ts";
import {
  type LaunchedPlan,
  type RankRows,
  shareOf,
  usedBytes,
} from "./used_bytes.ts";
import { type Lengths, lengthsOf, type Workload } from "./workload.ts";

/** Context of counting launches. */
export interface LaunchContext {
  readonly plan: Plan;
  readonly program: Program;
  readonly workload: Workload;
  readonly lengths: Lengths;
  readonly routings: ReadonlyMap<number, RoutingRows>;
}

/**
 * The context for launches of a plan's first program in a workload. Throws DataError if the workload exceeds the bounds
 * of the plan.
 */
export function launchContext(
  plan: Plan,
  workload: Workload,
): LaunchContext {
  const program = plan.programs[0]!;
  const lengths = lengthsOf(plan, program, workload);
  const { experts: load = { kind: "even" } } = workload;
  const routings = routingRows(plan, program, { lengths, load });
  return { plan, program, workload, lengths, routings };
}

/** A counted launch. */
export interface CountedLaunch {
  readonly work: LaunchWork;
  /** Workgroups and representative contents of bindings. */
  readonly setup: LaunchSetup;
  /** Distinct bytes touched: all, and those read from weights, from weights of experts, and from states. */
  readonly bytes: number;
  readonly weights: number;
  readonly experts: number;
  readonly states: number;
  /** Of these bytes, those of each binding. */
  readonly buffers: readonly {
    readonly read: number;
    readonly stored: number;
  }[];
  /** Bytes of all experts of a grouped matmul, used or not. */
  readonly bound: number;
}

/** Load of the counted group rank. */
export type Fullness = "max" | "mean";

/** Counts the launches of a program. */
export interface LaunchMeter {
  /** Undefined: nothing is launched. */
  launch(
    step: LaunchStep,
    at: {
      readonly rank: number;
      readonly fullness: Fullness;
      /** Rounds in which a launch on received rows is repeated, each with a part of the rows. Default: 1. */
      readonly rounds?: number;
    },
  ): CountedLaunch | undefined;
  /** Consecutive kernels that move rows between ranks of one device, for all ranks of a group. */
  local(step: CollectiveStep): LaunchWork[];
}

/** Creates a launch meter. */
export function openLaunchMeter(context: LaunchContext): LaunchMeter {
  const { plan, routings } = context;
  const facts = launchFacts(plan);
  const counting: Counting = {
    ...context,
    facts,
    dispatched: Math.max(
      0,
      ...[...routings.values()].map((r) => Math.max(r.max, r.tokens * r.topK)),
    ),
    made: new Map(),
  };
  const locals = localLaunches(plan.mesh);
  const counted = new Map<string, CountedLaunch | undefined>();
  const kinds = [...new Set(routings.values())];
  return {
    launch: (step, { rank, fullness, rounds = 1 }) => {
      const of = routingOf(counting, step);
      const given = of && routings.get(of.routing);
      const rows = given && of.chunks > 1 ? chunkOf(given, of.chunks) : given;
      const here = rows && { ...rows, max: rows[fullness] / rounds };
      const kind = given && kinds.indexOf(given);
      const key = `${facts.classOf(step)} ${rank} ${kind} ${here?.max}`;
      if (!counted.has(key)) {
        counted.set(key, countLaunch(counting, step, { rank, rows: here }));
      }
      return counted.get(key);
    },
    local: (step) => {
      const last = groupSizeOf(plan.mesh, step.over) - 1;
      const launches = locals(step);
      return Array.from({ length: last + 1 }, (_, p) => {
        // Up to four group ranks represent all.
        const groupRank = Math.round(Math.round(3 * p / last) * last / 3);
        return launches.map((launch) =>
          countLocal(context, step, { ...launch, groupRank })
        );
      }).flat();
    },
  };
}

/** A program whose launches are counted. */
interface Counting extends LaunchedPlan {
  /** Counted launches by kernel, workgroups, used bytes and contents. */
  readonly made: Map<string, CountedLaunch>;
}

/** The routing of the buffers of a launch. */
function routingOf(
  { plan, facts: { routed } }: Counting,
  step: LaunchStep,
): Routed | undefined {
  return buffersOf(plan, step).map(({ name }) => routed.get(name))
    .find((found) => found !== undefined);
}

/** The buffers of a launch, in the order of the bindings of its kernel. */
function buffersOf(
  { kernels, buffers }: Plan,
  { kernel, bindings }: LaunchStep,
): PlanBuffer[] {
  return kernels[kernel]!.tree.bindings
    .map(({ name }) => buffers[bindings[name]!]!);
}

/** Counts a launch. Undefined: nothing is launched. */
function countLaunch(
  counting: Counting,
  step: LaunchStep,
  at: RankRows,
): CountedLaunch | undefined {
  const { plan, workload, lengths, facts, made } = counting;
  const buffers = buffersOf(plan, step);
  const { workgroups, tileRows } = gridOf(counting, step, at.rows);
  if (workgroups.includes(0)) return undefined;
  const typical = buffers.map((buffer) =>
    typicalOf(plan, buffer, {
      workload,
      lengths,
      ...at,
      inputs: facts.inputs,
      tileRows,
    })
  );
  const used = buffers.map((buffer) => usedBytes(counting, buffer, at));
  const key = [
    step.kernel,
    workgroups,
    used,
    ...typical.map((known) => known?.key),
  ].join(";");
  const known = made.get(key);
  if (known) return known;
  const setup = { workgroups, typical: typical.map((known) => known?.at) };
  const work = launchWork(plan.kernels[step.kernel]!.tree, setup);
  const launch: CountedLaunch = {
    work,
    setup,
    bound: expertBound(plan, buffers, at),
    ...touched(plan, buffers, { used, work }),
  };
  made.set(key, launch);
  return launch;
}

/** Returns the workgroups of a launch, and the rows of its tiles. */
function gridOf(
  { workload, lengths, facts: { routed }, plan }: Counting,
  step: LaunchStep,
  here: RoutingRows | undefined,
): { readonly workgroups: Workgroups; readonly tileRows: number } {
  const count = lengthOf(lengths);
  const grouped = here !== undefined && step.part?.part !== "regroup" &&
    buffersOf(plan, step).some(({ name }) => routed.get(name)?.afterwards);
  const tile = grouped ? tileOf(step.workgroups) : undefined;
  const workgroups = step.workgroups.map((size) => {
    if (!grouped || typeof size === "number") return evaluateSize(size, count);
    // A condition does not hold.
    if (evaluateSize(size, count) === 0) return 0;
    if (tile && size === tile.size) {
      return expectedTiles(here, tile.rows, workload);
    }
    const share = here.max / (here.groupTokens * here.topK);
    return Math.ceil(
      evaluateSize(
        unconditional(size),
        (axis, over) => count(axis, over) * share,
      ),
    );
  }) as [number, number, number];
  return { workgroups, tileRows: tile?.rows ?? 1 };
}

type Workgroups = readonly [number, number, number];

/** Looks up the length of an axis: of the fullest rank, or of the ranks of a group. */
function lengthOf(
  lengths: Lengths,
): (axis: string, over: readonly string[]) => number {
  return (axis, over) =>
    over.length > 0 ? lengths.over(axis, over) : lengths.max(axis);
}

/** Bytes of all experts of a grouped matmul, used or not. */
function expertBound(
  plan: Plan,
  buffers: readonly PlanBuffer[],
  { rank, rows }: RankRows,
): number {
  if (!buffers.some(({ routing }) => routing === "tiles")) return 0;
  return sum(
    buffers.filter((buffer) => isExpert(plan, buffer)).map((buffer) =>
      onRank(buffer.bytes, rank) * shareOf(buffer, { rank, rows })
    ),
  );
}

/** The bytes that a launch touches, of the used ones. */
function touched(
  plan: Plan,
  buffers: readonly PlanBuffer[],
  { used, work: { loads, stores } }: {
    readonly used: readonly number[];
    readonly work: LaunchWork;
  },
): Omit<CountedLaunch, "work" | "setup" | "bound"> {
  const sums = { bytes: 0, weights: 0, experts: 0, states: 0 };
  // Weights that are planned with fewer bytes than compiled are read once.
  const each = used.map((most, i) => ({
    read: Math.min(loads[i]!, most),
    stored: Math.min(stores[i]!, most),
  }));
  for (const [i, buffer] of buffers.entries()) {
    const { read, stored } = each[i]!;
    sums.bytes += read + stored;
    if (buffer.kind === "weight") sums.weights += read;
    if (buffer.kind === "state") sums.states += read;
    if (isExpert(plan, buffer)) sums.experts += read;
  }
  return { ...sums, buffers: each };
}

/** Sampled workgroups of an exchange between ranks of a device: the first have more rows than the last. */
const LOCAL_GROUPS = 8;

/** Counts a kernel that moves rows between ranks of a device, for one of them. */
function countLocal(
  { lengths, routings }: LaunchContext,
  step: CollectiveStep,
  { kernel, workgroups, groupRank }: {
    readonly kernel: Kernel;
    readonly workgroups: readonly [Size, Size, Size];
    readonly groupRank: number;
  },
): LaunchWork {
  const rows = step.part && routings.get(step.part.routing);
  const count = lengthOf(lengths);
  const each = step.op !== "allToAll"
    ? step.rows ? lengths.max(step.rows.axis) : 0
    : rows
    ? rows.tokens * (movesTokens(step) ? rows.destinations : rows.topK) /
      (step.splits.at(-1)! - step.splits[0]!)
    : 0;
  const named: { readonly [binding: string]: Typical } = {
    // Integers with this mean and the same total.
    counts: (i) => Math.floor((i + 1) * each) - Math.floor(i * each),
    groupRank: () => groupRank,
  };
  return launchWork(kernel, {
    workgroups: workgroups.map((size) => evaluateSize(size, count)) as [
      number,
      number,
      number,
    ],
    groups: LOCAL_GROUPS,
    typical: kernel.bindings.map(({ name }) => named[name]),
  });
}

/** A chunk has a part of the experts. */
function chunkOf(rows: RoutingRows, chunks: number): RoutingRows {
  return {
    ...rows,
    localExperts: rows.localExperts / chunks,
    max: rows.max / chunks,
    mean: rows.mean / chunks,
  };
}

/** Seconds of a launch, or of one that moves rows between ranks of a device. */
export function secondsOf(
  device: MachineDevice,
  { work, bytes, weights, states }: Pick<
    CountedLaunch,
    "work" | "bytes" | "weights" | "states"
  >,
  cached: boolean,
): LaunchSeconds {
  return launchSeconds(device, work, { bytes, weights, states, cached });
}
