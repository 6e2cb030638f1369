/** Memory and traffic that a plan predicts. The runtime counts what really happens and never reads these. */

import { storedBytesOf } from "./layout.ts";
import { groupOf, type Mesh, positionOver, positionsOver } from "./mesh.ts";
import { onRank, type PerRank, perRank, type Plan, type Step } from "./plan.ts";
import type { Size } from "./size.ts";

/** How ranks are connected, as far as memory depends on it. */
export type StagingKind = "local" | "host";

/** Settings of `predictPeakBytes`. */
export interface PredictPeakBytesOptions {
  /** The communicator whose staging is counted too. Default: local. */
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
 * Staging bytes of each communicator. local: none, kernels move rows in place. host: one buffer per rank through which
 * collectives are read back, as long as the longest buffer that any collective reads.
 */
export function predictStaging(
  plan: Pick<Plan, "ranks" | "buffers" | "programs">,
): { local: PerRank; host: PerRank } {
  const host = new Array<number>(plan.ranks).fill(0);
  for (const { steps } of plan.programs) {
    for (const step of steps) {
      if (step.op !== "allGather" && step.op !== "allToAll") continue;
      for (let rank = 0; rank < plan.ranks; rank++) {
        if (step.ranks !== "all" && !step.ranks.includes(rank)) continue;
        const read = step.op === "allGather" ? [step.bytes] : [
          onRank(plan.buffers[step.from]!.bytes, rank),
          onRank(plan.buffers[step.counts]!.bytes, rank),
        ];
        host[rank] = Math.max(host[rank]!, ...read);
      }
    }
  }
  return { local: 0, host: perRank(host) };
}

/** n(s, p) of an allToAll from its counts, `[position][column]`: rows from position s to position p on the way forward. */
export function rowsBetween(
  counts: readonly (readonly number[])[],
  splits: readonly number[],
): number[][] {
  return counts.map((row) =>
    splits.slice(1).map((end, p) =>
      row.slice(splits[p]!, end).reduce((n, c) => n + c, 0)
    )
  );
}

/** Where bytes are counted. */
export interface SentBytesOptions {
  readonly mesh: Mesh;
  readonly rank: number;
}

/**
 * Bytes that `rank` sends to *other* ranks in one step. `rows` is n(s, p) of the rank's group on the way forward (see
 * `rowsBetween`); only an allToAll reads it. Steps that are no collectives send nothing.
 */
export function predictSentBytes(
  step: Step,
  rows: readonly (readonly number[])[],
  options: SentBytesOptions,
): number {
  const { mesh, rank } = options;
  if (step.ranks !== "all" && !step.ranks.includes(rank)) return 0;
  if (step.op === "allGather") {
    return step.bytes * (positionsOver(mesh, step.over) - 1);
  }
  if (step.op !== "allToAll") return 0;
  const me = positionOver(mesh, rank, step.over);
  const others = groupOf(mesh, rank, step.over).map((_, p) => p)
    .filter((p) => p !== me);
  return step.rowBytes *
    others.reduce(
      (n, p) =>
        n + (step.direction === "forward" ? rows[me]![p]! : rows[p]![me]!),
      0,
    );
}

/** The largest value that a size can take: run-time counts at their bounds, sums over a group at the bound of the whole. */
export function boundOf(
  size: Size,
  plan: Pick<Plan, "axes" | "mesh">,
): number {
  if (typeof size === "number") return size;
  if ("count" in size) {
    const axis = Object.hasOwn(plan.axes, size.count)
      ? plan.axes[size.count]
      : undefined;
    // Ranks along a mesh axis that the tensor axis is not placed over all hold the same items.
    const copies = (size.over ?? []).filter((m) => !axis?.over?.includes(m));
    return (axis?.size ?? 0) * positionsOver(plan.mesh, copies);
  }
  if ("mul" in size) {
    return size.mul.reduce<number>((n, s) => n * boundOf(s, plan), 1);
  }
  if ("add" in size) {
    return size.add.reduce<number>((n, s) => n + boundOf(s, plan), 0);
  }
  if ("min" in size) return Math.min(...size.min.map((s) => boundOf(s, plan)));
  return Math.ceil(boundOf(size.ceilDiv[0], plan) / size.ceilDiv[1]);
}

/** Bytes of buffers of some kinds, by rank. */
export function bytesOfKinds(plan: Plan, kinds: readonly string[]): number[] {
  const buffers = Object.values(plan.buffers)
    .filter((buffer) => kinds.includes(buffer.kind));
  return Array.from(
    { length: plan.ranks },
    (_, rank) =>
      buffers.reduce((n, buffer) => n + storedBytesOf(buffer, rank), 0),
  );
}
