/** Predicts launches on a rank: sizes from the workload, work from the kernel, bytes from the used parts of buffers. */

import { modelAxis } from "../../../spec/axis_parts.ts";
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
import { STATES } from "../../../spec/pages.ts";
import { evaluateSize, type Size } from "../../../spec/size.ts";
import { sum } from "../../../spec/sum.ts";
import { type LaunchSeconds, launchSeconds } from "./device_time.ts";
import { isExpert, launchFacts, type Routed } from "./launch_facts.ts";
import {
  type LaunchSetup,
  type LaunchWork,
  launchWork,
  type Typical,
  typicalOf,
} from "./launch_work.ts";
import { type RoutingRows, routingRows } from "./routings.ts";
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
  const { plan, lengths, routings, workload } = context;
  const { routed, owners, inputs, classOf } = launchFacts(plan);
  const dispatched = Math.max(
    0,
    ...[...routings.values()].map((r) => Math.max(r.max, r.tokens * r.topK)),
  );
  const locals = localLaunches(plan.mesh);
  const count = (axis: string, over: readonly string[]) =>
    over.length > 0 ? lengths.over(axis, over) : lengths.max(axis);
  const made = new Map<string, CountedLaunch>();
  const counted = new Map<string, CountedLaunch | undefined>();
  const kinds = [...new Set(routings.values())];
  return {
    launch: (step, { rank, fullness, rounds = 1 }) => {
      const of = routingOf(step);
      const given = of && routings.get(of.routing);
      const rows = given && of.chunks > 1 ? chunkOf(given, of.chunks) : given;
      const here = rows && { ...rows, max: rows[fullness] / rounds };
      const kind = given && kinds.indexOf(given);
      const key = `${classOf(step)} ${rank} ${kind} ${here?.max}`;
      if (!counted.has(key)) counted.set(key, countLaunch(step, rank, here));
      return counted.get(key);
    },
    local: (step) => {
      const rows = step.part && routings.get(step.part.routing);
      const last = groupSizeOf(plan.mesh, step.over) - 1;
      const launches = locals(step);
      return Array.from({ length: last + 1 }, (_, p) => {
        // Up to four group ranks represent all.
        const groupRank = Math.round(Math.round(3 * p / last) * last / 3);
        return launches.map(({ kernel, workgroups }) =>
          countLocal(kernel, workgroups, { step, groupRank, rows })
        );
      }).flat();
    },
  };

  /** The routing of the buffers of a launch. */
  function routingOf(step: LaunchStep): Routed | undefined {
    return namesOf(step).map((name) => routed.get(name))
      .find((found) => found !== undefined);
  }

  function namesOf({ kernel, bindings }: LaunchStep): string[] {
    return plan.kernels[kernel]!.tree.bindings
      .map(({ name }) => bindings[name]!);
  }

  function countLaunch(
    step: LaunchStep,
    rank: number,
    here: RoutingRows | undefined,
  ): CountedLaunch | undefined {
    const names = namesOf(step);
    const grouped = here !== undefined && step.part?.part !== "regroup" &&
      names.some((name) => routed.get(name)?.afterwards);
    const tile = grouped ? tileOf(step.workgroups) : undefined;
    const workgroups = step.workgroups.map((size) => {
      if (!grouped || typeof size === "number") {
        return evaluateSize(size, count);
      }
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
    if (workgroups.includes(0)) return undefined;
    const { tree } = plan.kernels[step.kernel]!;
    const typical = names.map((name) =>
      typicalOf(plan, plan.buffers[name]!, {
        workload,
        lengths,
        rank,
        rows: here,
        inputs,
        tileRows: tile?.rows ?? 1,
      })
    );
    const room = names.map((name) => roomOf(name, rank, here));
    const key = [
      step.kernel,
      workgroups,
      room,
      ...typical.map((known) => known?.key),
    ].join(";");
    const known = made.get(key);
    if (known) return known;
    const bindings = names.map((name) => plan.buffers[name]!);
    const isGrouped = bindings.some(({ routing }) => routing === "tiles");
    const bound = sum(
      bindings.filter((buffer) => isGrouped && isExpert(plan, buffer))
        .map((buffer) =>
          onRank(buffer.bytes, rank) * shareOf(buffer, here, rank)
        ),
    );
    const setup = {
      workgroups,
      typical: typical.map((known) => known?.at),
    };
    const work = launchWork(tree, setup);
    const launch = { work, setup, bound, ...touched(names, room, work) };
    made.set(key, launch);
    return launch;
  }

  /** Used bytes of a buffer. */
  function roomOf(
    name: string,
    rank: number,
    rows: RoutingRows | undefined,
  ): number {
    const buffer = plan.buffers[name]!;
    const share = buffer.axes.reduce((part, { axis, size, dynamic }) => {
      const bound = onRank(size, rank);
      if (bound === 0) return part;
      if (buffer.kind === "state") {
        return part * Math.min(1, used(axis) / bound);
      }
      if (!dynamic) return part;
      const length = plan.axes[axis]
        ? lengths.max(axis)
        : rows?.max ?? dispatched;
      return part * Math.min(1, length / bound);
    }, 1);
    const bytes = onRank(buffer.bytes, rank);
    if (rows === undefined || !isExpert(plan, buffer)) return bytes * share;
    // Experts that no token chose are not read.
    const each = rows.max / rows.localExperts;
    const chosen = workload.experts === undefined ||
        workload.experts.kind === "even"
      ? Math.min(1, each)
      : 1 - Math.exp(-each);
    return bytes * shareOf(buffer, rows, rank) * chosen;
  }

  /** The used part of a state's axis: the sequences of a rank, and their positions. */
  function used(axis: string): number {
    const { tokens, sequences = 1, past = 0 } = workload;
    const name = modelAxis(plan, axis);
    if (name === "context") return past + Math.ceil(tokens / sequences);
    return name === "sequence" || name === STATES.row
      ? Math.ceil(sequences / owners)
      : Infinity;
  }

  function touched(
    names: readonly string[],
    room: readonly number[],
    { loads, stores }: LaunchWork,
  ): Omit<CountedLaunch, "work" | "setup" | "bound"> {
    const sums = { bytes: 0, weights: 0, experts: 0, states: 0 };
    // Weights that are planned with fewer bytes than compiled are read once.
    const buffers = room.map((most, i) => ({
      read: Math.min(loads[i]!, most),
      stored: Math.min(stores[i]!, most),
    }));
    for (const [i, name] of names.entries()) {
      const buffer = plan.buffers[name]!;
      const { read, stored } = buffers[i]!;
      sums.bytes += read + stored;
      if (buffer.kind === "weight") sums.weights += read;
      if (buffer.kind === "state") sums.states += read;
      if (isExpert(plan, buffer)) sums.experts += read;
    }
    return { ...sums, buffers };
  }

  function countLocal(
    kernel: Kernel,
    sizes: readonly [Size, Size, Size],
    { step, groupRank, rows }: {
      readonly step: CollectiveStep;
      readonly groupRank: number;
      readonly rows: RoutingRows | undefined;
    },
  ): LaunchWork {
    const workgroups = sizes.map((size) => evaluateSize(size, count)) as [
      number,
      number,
      number,
    ];
    const experts = step.op === "allToAll"
      ? step.splits.at(-1)! - step.splits[0]!
      : 1;
    const each = step.op !== "allToAll"
      ? step.rows ? lengths.max(step.rows.axis) : 0
      : rows
      ? rows.tokens * (movesTokens(step) ? rows.destinations : rows.topK) /
        experts
      : 0;
    const named: { readonly [binding: string]: Typical } = {
      // Integers with this mean and the same total.
      counts: (i) => Math.floor((i + 1) * each) - Math.floor(i * each),
      groupRank: () => groupRank,
    };
    return launchWork(kernel, {
      workgroups,
      groups: LOCAL_GROUPS,
      typical: kernel.bindings.map(({ name }) => named[name]),
    });
  }
}

/** Sampled workgroups of an exchange between ranks of a device: the first have more rows than the last. */
const LOCAL_GROUPS = 8;

/** Share of the experts of a rank that a launch has: those of its chunk. */
function shareOf(
  { axes }: PlanBuffer,
  rows: RoutingRows | undefined,
  rank: number,
): number {
  return rows
    ? Math.min(1, rows.localExperts / onRank(axes[0]!.size, rank))
    : 1;
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

/**
 * The size of a launch that counts tiles of experts, `min(rows, ceil(rows / tile) + experts)`, and the rows per tile.
 */
function tileOf(
  sizes: readonly Size[],
): { readonly size: Size; readonly rows: number } | undefined {
  for (const size of sizes) {
    const rows = divisorOf(unconditional(size));
    if (rows !== undefined) return { size, rows };
  }
  return undefined;
}

/** A size without its conditions on numbers of rows. */
function unconditional(size: Size): Size {
  if (typeof size === "number") return size;
  if ("upTo" in size) return unconditional(size.upTo[2]);
  return "above" in size ? unconditional(size.above[2]) : size;
}

function divisorOf(size: Size): number | undefined {
  if (typeof size === "number" || "count" in size) return undefined;
  if ("ceilDiv" in size || "upTo" in size || "above" in size) return undefined;
  const terms = "mul" in size ? size.mul : "min" in size ? size.min : size.add;
  for (const term of terms) {
    if (typeof term !== "number" && "ceilDiv" in term && "add" in size) {
      return term.ceilDiv[1];
    }
    const found = divisorOf(term);
    if (found !== undefined) return found;
  }
  return undefined;
}

/**
 * Expected tiles of the experts of a rank: exact for even loads; for others, the last tile of each expert is half full.
 */
function expectedTiles(
  { max, localExperts }: RoutingRows,
  tile: number,
  { experts }: Workload,
): number {
  const tiles = experts === undefined || experts.kind === "even"
    ? localExperts * Math.ceil(max / localExperts / tile)
    : max / tile + localExperts * (tile - 1) / (2 * tile);
  return Math.max(max > 0 ? 1 : 0, Math.ceil(Math.min(max, tiles)));
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
