/** Throughput over number of devices, in powers of two. */

import type { ReplicaStep, SearchTask } from "./evaluate.ts";
import { firstThatFits, type Known } from "./fit.ts";
import { type Found, foundOf } from "./found.ts";
import { type ReplicaMesh, replicaRanks, trainingMeshes } from "./meshes.ts";

/** A point of the curve of throughput over devices. */
export interface CurvePoint {
  readonly devices: number;
  /** Undefined: nothing fits. */
  readonly best: Found | undefined;
  /** All devices as one replica. Undefined if it does not fit, or if there are fewer experts. */
  readonly single: Found | undefined;
}

/** Throughput over devices: the best configuration that fits, with as many replicas as fit. */
export function curveOf(
  steps: readonly ReplicaStep[],
  better: (a: Found, b: Found) => number,
): CurvePoint[] {
  return Array.from({ length: 13 }, (_, i) => {
    const devices = 2 ** i;
    const found = steps.filter(({ of }) => of.ranks <= devices)
      .map((step) => foundOf(step, devices)).sort(better);
    return {
      devices,
      best: found[0],
      single: found.find(({ mesh }) => replicaRanks(mesh) === devices),
    };
  });
}

/** Number of meshes per number of devices for the training curve: the ones closest to the best. */
const NEAREST = 2;

/**
 * Training throughput over devices: copies of the best mesh, or of similar ones, whose gradients are reduced over all
 * devices.
 */
export async function trainingCurve(
  task: SearchTask,
  found: readonly Found[],
  { sizes, better, known, max }: {
    readonly sizes: { readonly host: number; readonly experts: number };
    readonly better: (a: Found, b: Found) => number;
    readonly known: Known;
    readonly max: number;
  },
): Promise<CurvePoint[]> {
  const [best] = found;
  if (!best) return [];
  const far = ({ ep, tp }: ReplicaMesh) =>
    Math.abs(Math.log2(ep / best.mesh.ep)) +
    Math.abs(Math.log2(tp / best.mesh.tp));
  const points: CurvePoint[] = [];
  for (let devices = 1; devices <= max; devices *= 2) {
    const meshes = trainingMeshes({ ...sizes, ranks: devices })
      .sort((a, b) => far(a) - far(b)).slice(0, NEAREST);
    const steps: Found[] = [];
    for (const mesh of meshes) {
      const found = await firstThatFits(task, mesh, known);
      if ("why" in found) continue;
      steps.push(...found.map((step) => foundOf(step, devices)));
    }
    const sorted = steps.sort(better);
    points.push({
      devices,
      best: sorted[0],
      single: sorted.find(({ mesh }) => mesh.dp === 1),
    });
  }
  return points;
}
