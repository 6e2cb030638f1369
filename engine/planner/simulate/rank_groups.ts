/** Ranks of a plan on the devices of a machine, by what they have in common. */

import { DataError } from "../../../spec/errors.ts";
import {
  type Machine,
  type MachineDevice,
  placeRanks,
  type RankPlacement,
} from "../../../spec/machine.ts";
import { onRank, type Plan } from "../../../spec/plan/plan.ts";
import { rankClasses } from "../../../spec/plan/rank_classes.ts";

/** Ranks that hold as much, and whose devices are equal: one stands for all. */
export interface RankGroup {
  readonly rank: number;
  readonly place: RankPlacement;
  readonly device: MachineDevice;
  /** Ranks of the plan on its device, and devices of its host that compute at once, for each that can. */
  readonly sharing: number;
  readonly slower: number;
  /** Devices of its host compute one at a time. */
  readonly oneAtATime: boolean;
  /** Everything that its ranks hold fits the device's cache. */
  readonly cached: boolean;
}

/** The place of each rank. Throws DataError where the machine has too few. */
export function placesOf(plan: Plan, machine: Machine): RankPlacement[] {
  const places = placeRanks(machine);
  if (plan.ranks <= places.length) return places.slice(0, plan.ranks);
  throw new DataError(
    `Cannot predict ${plan.ranks} ranks: the machine '${machine.name}' has places for ${places.length}. Use a smaller mesh, or describe a larger machine`,
  );
}

/** The groups of ranks that take the same time, that of rank 0 first. */
export function rankGroups(
  plan: Plan,
  machine: Machine,
  places: readonly RankPlacement[],
): RankGroup[] {
  const classes = rankClasses(plan);
  const sharing = new Map<number, number>();
  const devices = new Map<number, Set<number>>();
  for (const { device, host } of places) {
    sharing.set(device, (sharing.get(device) ?? 0) + 1);
    devices.set(host, (devices.get(host) ?? new Set()).add(device));
  }
  const atOnce = machine.hosts.flatMap(({ count = 1, atOnce = Infinity }) =>
    new Array<number>(count).fill(atOnce)
  );
  const groups = new Map<string, RankGroup>();
  for (const [rank, place] of places.entries()) {
    const shared = sharing.get(place.device)!;
    const slower = Math.max(
      1,
      devices.get(place.host)!.size / atOnce[place.host]!,
    );
    const key = `${classes[rank]} ${place.kind} ${shared} ${slower}`;
    if (groups.has(key)) continue;
    const device = machine.devices[place.kind]!;
    const held = shared * onRank(plan.peakBytes, rank);
    groups.set(key, {
      rank,
      place,
      device,
      sharing: shared,
      slower,
      oneAtATime: atOnce[place.host] === 1,
      cached: held <= (device.cache?.bytes ?? 0),
    });
  }
  return [...groups.values()];
}
