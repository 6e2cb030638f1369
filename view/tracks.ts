/** The tracks of a picture: one per rank, or bundles of neighbouring ranks, of which one may be open. */

import { coordinates, groupRanks, type Mesh } from "../spec/mesh.ts";
import type { Plan } from "../spec/plan/plan.ts";
import type { PlanSummary } from "../spec/plan_summary.ts";

/** Neighbouring ranks on one track. */
export interface Track {
  readonly first: number;
  readonly count: number;
}

/** Maximum number of distinguishable tracks. */
const MAX = 16;

/**
 * Returns one track per rank, or bundles for more than 16 ranks. `open` is a rank whose bundle is shown rank by rank.
 */
export function tracksOf(
  { ranks }: Pick<Plan, "ranks">,
  open?: number,
): Track[] {
  const each = Math.ceil(ranks / MAX);
  const tracks: Track[] = [];
  for (let first = 0; first < ranks; first += each) {
    const count = Math.min(each, ranks - first);
    const opened = open !== undefined && open >= first && open < first + count;
    if (!opened) tracks.push({ first, count });
    else {
      for (let i = 0; i < count; i++) {
        tracks.push({ first: first + i, count: 1 });
      }
    }
  }
  return tracks;
}

/** Formats a track: `rank 3`, `ranks 0–15`. */
export function trackName({ first, count }: Track): string {
  return count === 1 ? `rank ${first}` : `ranks ${first}–${first + count - 1}`;
}

/** Returns the tracks that an exchange over mesh axes connects, as pairs of indices. */
export function pairsOver(
  plan: Plan,
  tracks: readonly Track[],
  over: readonly string[],
): (readonly [from: number, to: number])[] {
  const groups = groupsOn(plan, tracks, over);
  return groups.flatMap((a, from) =>
    groups.flatMap((b, to) =>
      [...a].some((group) => b.has(group)) ? [[from, to] as const] : []
    )
  );
}

/** Returns the groups over mesh axes of each track's ranks. */
export function groupsOn(
  { mesh, ranks }: Plan,
  tracks: readonly Track[],
  over: readonly string[],
): Set<number>[] {
  const group = groupOfRanks(mesh, over);
  return tracks.map(({ first, count }) =>
    new Set(group.slice(first, Math.min(first + count, ranks)))
  );
}

/** Returns the number of each rank's group over mesh axes. */
export function groupOfRanks(mesh: Mesh, over: readonly string[]): number[] {
  const rest = mesh.map(({ name }) => name).filter((n) => !over.includes(n));
  return groupRanks(mesh, rest);
}

/** Formats a mesh: `dp=2, ep=4`. */
export function meshText({ mesh }: Pick<PlanSummary, "mesh">): string {
  return Object.entries(mesh).map(([name, size]) => `${name}=${size}`)
    .join(", ");
}

/** Formats the coordinates of a rank in the mesh: `ep 1, dp 0`. */
export function coordinatesText({ mesh }: Plan, rank: number): string {
  return coordinates(mesh, rank)
    .map((at, i) => `${mesh[i]!.name} ${at}`).join(", ");
}
