/** Predicted memory and traffic of a plan. The runtime counts actual values without reading these. */

import { partBounds } from "../axis_parts.ts";
import { executes, isCollective, membersOf } from "./members.ts";
import { groupRankOf, groupSizeOf, type Mesh, meshRoles } from "../mesh.ts";
import { mapRanks, onRank, type PerRank, sumPerRank } from "../per_rank.ts";
import type {
  AllGatherStep,
  AllToAllStep,
  Plan,
  SendStep,
  Step,
} from "./plan.ts";
import type { Size } from "../size.ts";
import { sum } from "../sum.ts";

/** Kinds of connections between ranks that memory depends on. */
export type StagingKind = "local" | "host";

/** Options of `predictPeakBytes`. */
export interface PredictPeakBytesOptions {
  /** The communicator whose staging is included. Default: local. */
  readonly communicator?: StagingKind;
}

/** Bytes that a rank allocates: its allocations and the staging of its communicator. */
export function predictPeakBytes(
  plan: Plan,
  rank: number,
  options: PredictPeakBytesOptions = {},
): number {
  const { communicator = "local" } = options;
  return onRank(plan.peakBytes, rank) +
    onRank(plan.staging[communicator], rank);
}

/**
 * Staging bytes of each communicator. local: none, kernels move rows in place. host: for ranks on separate devices, in
 * one process or in several: for each exchange that can be in flight at the same time, the longest buffer that any of
 * them reads plus the longest that any of them writes. Devices with host memory need none.
 */
export function predictStaging(
  plan: Pick<Plan, "buffers" | "programs">,
): { local: PerRank; host: PerRank } {
  const longest: { from: PerRank; to: PerRank } = { from: 0, to: 0 };
  for (const step of plan.programs.flatMap(({ steps }) => steps)) {
    if (!isCollective(step)) continue;
    for (const side of ["from", "to"] as const) {
      longest[side] = mapRanks(
        [longest[side], plan.buffers[step[side]]!.bytes],
        (bytes) => Math.max(...bytes),
      );
    }
  }
  const atOnce = exchangesAtOnce(plan);
  return {
    local: 0,
    host: mapRanks(
      [longest.from, longest.to],
      ([from, to]) => atOnce * (from! + to!),
    ),
  };
}

/** Maximum number of concurrent exchanges of a program. */
export function exchangesAtOnce(plan: Pick<Plan, "programs">): number {
  let max = 1;
  for (const { steps } of plan.programs) {
    let started = 0;
    for (const step of steps) {
      if (step.op === "wait") started--;
      if (!isCollective(step)) continue;
      max = Math.max(max, started + 1);
      if (step.op === "allToAll" && step.handle !== undefined) started++;
    }
  }
  return max;
}

/** The experts of each group rank in an allToAll: all of them, or those of its chunk. */
export function expertRanges(
  { splits, experts }: Pick<AllToAllStep, "splits" | "experts">,
): readonly (readonly [first: number, end: number])[] {
  return experts ??
    splits.slice(1).map((end, p) => [splits[p]!, end] as const);
}

/**
 * The end of the experts of each group rank and chunk, for exchanges that are the chunks of one value: a token is sent
 * once to each.
 */
export function unitEnds(
  chunks: readonly Pick<AllToAllStep, "splits" | "experts">[],
): number[] {
  const ends = chunks.flatMap((step) =>
    expertRanges(step).map(([, end]) => end)
  );
  return [0, ...new Set(ends.sort((a, b) => a - b))];
}

/** The fraction of all experts in an allToAll: less than 1 for a chunk. */
export function shareOfExperts(
  step: Pick<AllToAllStep, "splits" | "experts">,
): number {
  return movedExperts(step) / (step.splits.at(-1)! - step.splits[0]!);
}

/** Number of experts in an allToAll. */
export function movedExperts(
  step: Pick<AllToAllStep, "splits" | "experts">,
): number {
  return sum(expertRanges(step).map(([first, end]) => end - first));
}

/** Number of counts per rank in an allToAll. */
export function countsPerRank(
  { splits, countsPerRank }: Pick<AllToAllStep, "splits" | "countsPerRank">,
): number {
  return countsPerRank ?? splits.at(-1)!;
}

/** Whether an allToAll sends deduplicated tokens instead of rows of choices, by the counts after those of experts. */
export function movesTokens({ splits }: Pick<AllToAllStep, "splits">): boolean {
  return splits[0]! > 0;
}

/**
 * n(s, p) of an allToAll from its counts, `[group rank][expert]`: rows from group rank s to group rank p in forward
 * direction.
 */
export function rowsBetween(
  counts: readonly (readonly number[])[],
  step: Pick<AllToAllStep, "splits" | "experts">,
): number[][] {
  const experts = expertRanges(step);
  return counts.map((row) =>
    experts.map(([first, end]) => sum(row.slice(first, end)))
  );
}

/** Consecutive rows: the first one and their number. */
export interface Block {
  readonly offset: number;
  readonly count: number;
}

/** Blocks of rows of an allToAll on one rank: one for each rank that they are sent to or received from. */
export interface ExchangeBlocks {
  /** In the step's `from`. */
  readonly send: readonly Block[];
  /** In the step's `to`. */
  readonly receive: readonly Block[];
}

/** The rank of the blocks. */
export interface BlocksOfOptions {
  /** Its index in the group of the exchange. */
  readonly groupRank: number;
}

/** The blocks of a rank, from the counts of its group, `[group rank][expert]`, which every rank of it has. */
export function blocksOf(
  counts: readonly (readonly number[])[],
  step: Pick<AllToAllStep, "splits" | "experts" | "direction" | "inRounds">,
  { groupRank }: BlocksOfOptions,
): ExchangeBlocks {
  const experts = expertRanges(step);
  const local = counts[groupRank]!;
  const [mine, end] = experts[groupRank]!;
  const offsets = local.slice(step.splits.at(-1));
  // By destination: at their offsets in the complete exchange. By source: packed.
  const byDestination = experts.map(([first, end], p) => ({
    offset: step.inRounds
      ? offsets[p]!
      : sum(local.slice(step.splits[0], first)),
    count: sum(local.slice(first, end)),
  }));
  let offset = 0;
  const bySource = counts.map((row) => {
    const block = { offset, count: sum(row.slice(mine, end)) };
    offset += block.count;
    return block;
  });
  return step.direction === "forward"
    ? { send: byDestination, receive: bySource }
    : { send: bySource, receive: byDestination };
}

/** Context of counting bytes. */
export interface SentBytesOptions {
  readonly mesh: Mesh;
  readonly rank: number;
  /** A rank's length of a dynamic axis; only used for gathers of rows. */
  readonly length?: (axis: string, rank: number) => number;
}

/**
 * Bytes that `rank` sends to *other* ranks in one step. `rows`: n(s, p) of the rank's group in forward direction (see
 * `rowsBetween`); only used for an allToAll. Steps other than collectives send nothing.
 */
export function predictSentBytes(
  step: Step,
  rows: readonly (readonly number[])[],
  options: SentBytesOptions,
): number {
  const { mesh, rank, length = () => 0 } = options;
  if (!executes(mesh, rank, step)) return 0;
  if (step.op === "send") {
    const { rows, bytes } = step;
    const [source] = membersOf(mesh, rank, step);
    return source !== rank ? 0 : bytes * (rows ? length(rows.axis, rank) : 1);
  }
  if (step.op === "allGather") {
    const { rows, blocks, bytes } = step;
    const others = membersOf(mesh, rank, step).filter((r) => r !== rank);
    if (!rows) return bytes * others.length;
    // Each other rank receives this one's rows, or for blocks, as many as its own.
    return bytes * sum(
      others.map((other) => length(rows.axis, blocks ? other : rank)),
    );
  }
  if (step.op !== "allToAll") return 0;
  const me = groupRankOf(mesh, rank, step.over);
  const others = membersOf(mesh, rank, step).map((_, p) => p)
    .filter((p) => p !== me);
  return step.rowBytes *
    others.reduce(
      (n, p) =>
        n + (step.direction === "forward" ? rows[me]![p]! : rows[p]![me]!),
      0,
    );
}

/** The maximum of a size: dynamic lengths at their bounds, sums over a group at the global bound. */
export function boundOf(
  size: Size,
  plan: Pick<Plan, "mesh"> & {
    readonly axes: {
      readonly [name: string]: Pick<
        Plan["axes"][string],
        "size" | "over" | "table" | "assignment"
      >;
    };
  },
): number {
  if (typeof size === "number") return size;
  if ("count" in size) {
    const axis = Object.hasOwn(plan.axes, size.count)
      ? plan.axes[size.count]
      : undefined;
    if (axis && !size.over?.length) return Math.max(...partBounds(plan, axis));
    // Ranks along a mesh axis that does not shard the tensor axis have the same items.
    const copies = (size.over ?? []).filter((m) => !axis?.over?.includes(m));
    return (axis?.size ?? 0) * groupSizeOf(plan.mesh, copies);
  }
  if ("mul" in size) {
    return size.mul.reduce<number>((n, s) => n * boundOf(s, plan), 1);
  }
  if ("add" in size) {
    return size.add.reduce<number>((n, s) => n + boundOf(s, plan), 0);
  }
  if ("min" in size) return Math.min(...size.min.map((s) => boundOf(s, plan)));
  if ("upTo" in size) return boundOf(size.upTo[2], plan);
  if ("above" in size) {
    const [by, limit, then] = size.above;
    return boundOf(by, plan) > limit ? boundOf(then, plan) : 0;
  }
  return Math.ceil(boundOf(size.ceilDiv[0], plan) / size.ceilDiv[1]);
}

/** The purpose of a send or a gather: attention over shared positions, the next stage, or any other use of rows. */
export function purposeOf(
  step: SendStep | AllGatherStep,
  { axes }: Pick<Plan, "axes">,
): "attention" | "stages" | "gather" {
  const { rows, over } = step;
  if (rows && axes[rows.axis]!.assignment?.by === "keys") return "attention";
  if (step.op === "allGather") return "gather";
  return meshRoles(over[0]!).includes("layers") ? "stages" : "attention";
}

/** Expected number of group ranks that a token is sent to, if any `choices` experts are equally likely. */
export function expectedDestinations(
  splits: readonly number[],
  choices: number,
): number {
  const experts = splits.at(-1)!;
  return splits.slice(1).reduce((n, end, p) => {
    const others = experts - (end - splits[p]!);
    let missed = 1;
    for (let j = 0; j < choices; j++) {
      missed *= Math.max(0, others - j) / (experts - j);
    }
    return n + 1 - missed;
  }, 0);
}

/** Bytes of buffers of some kinds. */
export function bytesOfKinds(plan: Plan, kinds: readonly string[]): PerRank {
  const bytes = Object.values(plan.buffers)
    .filter((buffer) => kinds.includes(buffer.kind))
    .map((buffer) => buffer.bytes);
  return sumPerRank(bytes);
}
