/** Groups ranks of a plan by equal work and equal devices of a machine. */

import { DataError } from "../../../spec/errors.ts";
import {
  type Machine,
  type MachineDevice,
  placeRanks,
  type RankPlacement,
} from "../../../spec/machine.ts";
import { groupRankOf, stageAxis } from "../../../spec/mesh.ts";
import { onRank, type Plan } from "../../../spec/plan/plan.ts";
import { rankClasses } from "../../../spec/plan/rank_classes.ts";

/** Ranks with equal data on equal devices: one represents all. */
export interface RankGroup {
  readonly rank: number;
  readonly placement: RankPlacement;
  readonly device: MachineDevice;
  /** Ranks per device, divided by the devices of its host that compute at once. */
  readonly sharing: number;
  readonly slower: number;
  /** Whether devices of its host compute one at a time. */
  readonly oneAtATime: boolean;
  /** Whether all data of its ranks fit the device's cache. */
  readonly cached: boolean;
}

/** The location of each rank. Throws DataError if the machine has too few. */
export function placementsOf(plan: Plan, machine: Machine): RankPlacement[] {
  const placements = placeRanks(machine);
  if (plan.ranks <= placements.length) return placements.slice(0, plan.ranks);
  throw new DataError(
    `Cannot predict ${plan.ranks} ranks: the machine '${machine.name}' has only ${placements.length}. Use a smaller mesh, or describe a larger machine`,
  );
}

/**
 * Number of runs that the stages of a plan execute concurrently: 1 if stages share a device, or if a run has
 * micro-batches.
 */
export function concurrentRuns(plan: Plan, machine: Machine): number {
  const axis = stageAxis(plan.mesh);
  if (!axis || plan.pipeline) return 1;
  const atOnce = atOnceOf(machine);
  const stages = new Map<number, number>();
  for (
    const [rank, { device, host }] of placementsOf(plan, machine).entries()
  ) {
    const stage = groupRankOf(plan.mesh, rank, [axis.name]);
    const shared = (stages.get(device) ?? stage) !== stage;
    if (shared || atOnce[host] === 1) return 1;
    stages.set(device, stage);
  }
  return axis.size;
}

/** The groups of ranks with equal times, that of rank 0 first. */
export function rankGroups(
  plan: Plan,
  machine: Machine,
  placements: readonly RankPlacement[],
): RankGroup[] {
  const classes = rankClasses(plan);
  const sharing = new Map<number, number>();
  const devices = new Map<number, Set<number>>();
  for (const { device, host } of placements) {
    sharing.set(device, (sharing.get(device) ?? 0) + 1);
    devices.set(host, (devices.get(host) ?? new Set()).add(device));
  }
  const atOnce = atOnceOf(machine);
  const groups = new Map<string, RankGroup>();
  for (const [rank, placement] of placements.entries()) {
    const shared = sharing.get(placement.device)!;
    const slower = Math.max(
      1,
      devices.get(placement.host)!.size / atOnce[placement.host]!,
    );
    const key = `${classes[rank]} ${placement.kind} ${shared} ${slower}`;
    if (groups.has(key)) continue;
    const device = machine.devices[placement.kind]!;
    const held = shared * onRank(plan.peakBytes, rank);
    groups.set(key, {
      rank,
      placement,
      device,
      sharing: shared,
      slower,
      oneAtATime: atOnce[placement.host] === 1,
      cached: held <= (device.cache?.bytes ?? 0),
    });
  }
  return [...groups.values()];
}

/** The number of devices of each host that compute at once. */
function atOnceOf({ hosts }: Machine): number[] {
  return hosts.flatMap(({ count = 1, atOnce = Infinity }) =>
    new Array<number>(count).fill(atOnce)
  );
}
