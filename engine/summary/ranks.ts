/** What ranks hold, equal ones together, and of how much. */

import { type Machine, placeRanks } from "../../spec/machine.ts";
import { positionOver } from "../../spec/mesh.ts";
import { onRank, type Plan, type PlanBuffer } from "../../spec/plan.ts";
import type { RankBytes, RankClass } from "../../spec/plan_summary.ts";

/** What is known besides the plan. */
export interface RankOptions {
  readonly machine?: Machine | undefined;
  /** Bytes of a buffer on a rank. */
  readonly held: (buffer: PlanBuffer, rank: number) => number;
  /** Axes of experts. */
  readonly experts: readonly string[];
  /** Default: all ranks. */
  readonly only?: readonly number[];
}

/** Ranks that hold the same, in the order of the lowest of each. */
export function rankClasses(plan: Plan, options: RankOptions): RankClass[] {
  const limitOf = shareOfDevice(plan, options.machine);
  const weights = totals(plan, "weight", options.held);
  const asPlanned = totals(plan, "weight", ({ bytes }, r) => onRank(bytes, r));
  const states = totals(plan, "state", ({ bytes }, r) => onRank(bytes, r));
  const staged = stagingOf(plan, options.machine);
  const classes = new Map<string, RankClass>();
  const { only = Array.from({ length: plan.ranks }, (_, rank) => rank) } =
    options;
  for (const rank of only) {
    const scratch = onRank(plan.peakBytes, rank) - asPlanned(rank) -
      states(rank);
    const staging = onRank(staged, rank);
    const bytes: RankBytes = {
      weights: weights(rank),
      state: states(rank),
      scratch,
      staging,
      total: weights(rank) + states(rank) + scratch + staging,
    };
    const limit = limitOf(rank);
    const fields = {
      bytes,
      ...limit === undefined ? {} : { limit, headroom: limit - bytes.total },
      experts: heldExperts(plan, options.experts, rank),
    };
    const key = JSON.stringify(fields);
    const known = classes.get(key);
    classes.set(
      key,
      known
        ? { ...known, count: known.count + 1 }
        : { count: 1, first: rank, ...fields },
    );
  }
  return [...classes.values()];
}

/** Sums over the buffers of a kind: of those that are the same on all ranks once. */
function totals(
  plan: Plan,
  kind: PlanBuffer["kind"],
  held: RankOptions["held"],
): (rank: number) => number {
  const buffers = Object.values(plan.buffers).filter((b) => b.kind === kind);
  const isEqual = ({ bytes }: PlanBuffer) => typeof bytes === "number";
  const equal = buffers.filter(isEqual)
    .reduce((n, buffer) => n + held(buffer, 0), 0);
  const others = buffers.filter((buffer) => !isEqual(buffer));
  const known = new Map<number, number>();
  return (rank) => {
    const total = known.get(rank) ??
      others.reduce((n, buffer) => n + held(buffer, rank), equal);
    known.set(rank, total);
    return total;
  };
}

/** Ranks on one device exchange in place; others by way of their hosts. */
function stagingOf(
  { staging, ranks }: Plan,
  machine: Machine | undefined,
): Plan["peakBytes"] {
  if (machine === undefined) return staging.local;
  const devices = placeRanks(machine).slice(0, ranks)
    .map(({ device }) => device);
  return ranks > 1 && new Set(devices).size !== 1
    ? staging.host
    : staging.local;
}

/** Memory of a rank's device, divided by the ranks of the plan that share it. */
function shareOfDevice(
  { ranks }: Plan,
  machine: Machine | undefined,
): (rank: number) => number | undefined {
  if (machine === undefined) return () => undefined;
  const places = placeRanks(machine);
  const sharing = new Map<number, number>();
  for (const { device } of places.slice(0, ranks)) {
    sharing.set(device, (sharing.get(device) ?? 0) + 1);
  }
  return (rank) => {
    // Ranks that the machine has no place for are held against a device of its last kind.
    const { kind, device } = places[Math.min(rank, places.length - 1)]!;
    const { memory } = machine.devices[kind]!;
    return memory === undefined
      ? undefined
      : Math.floor(memory / (sharing.get(device) ?? 1));
  };
}

/** Experts of a layer that a rank holds. */
function heldExperts(
  plan: Plan,
  axes: readonly string[],
  rank: number,
): number {
  return axes.reduce((n, name) => {
    const { table, over, size } = plan.axes[name]!;
    return n +
      (table && over
        ? table[positionOver(plan.mesh, rank, over)]!.length
        : size);
  }, 0);
}
