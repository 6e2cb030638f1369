/** The tracks of a picture: a rank each, or of many ranks a bundle of neighbours, one of which may be open. */

import { coordinates, groupRanks, type Mesh } from "../spec/mesh.ts";
import type { Plan } from "../spec/plan/plan.ts";
import type { PlanSummary } from "../spec/plan_summary.ts";

/** Neighbouring ranks on one track. */
export interface Track {
  readonly first: number;
  readonly count: number;
}

/** More tracks could not be distinguished. */
const MOST = 16;

/** A track for each rank; of more than 16 ranks, bundles. `open` is a rank whose bundle is shown rank by rank. */
export function tracksOf(
  { ranks }: Pick<Plan, "ranks">,
  open?: number,
): Track[] {
  const each = Math.ceil(ranks / MOST);
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

/** `rank 3`, `ranks 0–15` */
export function trackName({ first, count }: Track): string {
  return count === 1 ? `rank ${first}` : `ranks ${first}–${first + count - 1}`;
}

/** Which tracks an exchange over mesh axes joins, as pairs of indices. */
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

/** The groups over mesh axes that each track has ranks of. */
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

/** The group over mesh axes that each rank is in, as a number. */
export function groupOfRanks(mesh: Mesh, over: readonly string[]): number[] {
  const rest = mesh.map(({ name }) => name).filter((n) => !over.includes(n));
  return groupRanks(mesh, rest);
}

/** `dp=2, ep=4` */
export function meshText({ mesh }: Pick<PlanSummary, "mesh">): string {
  return Object.entries(mesh).map(([name, size]) => `${name}=${size}`)
    .join(", ");
}

/** `ep 1, dp 0`: where a rank is on the mesh. */
export function placeText({ mesh }: Plan, rank: number): string {
  return coordinates(mesh, rank)
    .map((at, i) => `${mesh[i]!.name} ${at}`).join(", ");
}
