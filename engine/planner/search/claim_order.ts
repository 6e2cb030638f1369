/** Order in which two threads take tasks of a search, so that neither builds kernels that the other has. */

import { cachedIn } from "../../../spec/bounded_cache.ts";
import { isSame } from "../../../spec/same.ts";
import type { Claimable } from "./claims.ts";
import { hasEntireExperts, type Known } from "./fit.ts";
import { minWeightBytes, type ReplicaMesh } from "./meshes.ts";

/**
 * Order of the main thread; the helper takes tasks from the last to the first. Meshes with equal `tp`, which share most
 * kernels, are together, and both threads have nearly the same number of meshes that may fit.
 */
export function claimOrder(
  tasks: readonly Claimable[],
  known: Known,
): number[] {
  const groups = new Map<number, number[]>();
  for (const [i, task] of tasks.entries()) {
    const tp = task.kind === "mesh" ? task.mesh.tp : 0;
    cachedIn(groups, tp, { create: (): number[] => [] }).push(i);
  }
  const lengthOf = (group: readonly number[]) =>
    group.filter((i) => mayFit(tasks[i]!, known)).length;
  const main: number[] = [], helper: number[] = [];
  const largest = [...groups.values()]
    .sort((a, b) => lengthOf(b) - lengthOf(a));
  for (const group of largest) {
    (lengthOf(main) > lengthOf(helper) ? helper : main).push(...group);
  }
  return [...main, ...helper.reverse()];
}

/** Whether the weights of a mesh may fit. */
function mayFit(task: Claimable, known: Known): boolean {
  if (task.kind !== "mesh") return true;
  const sliceExperts = !hasEntireExperts(task.mesh, known);
  return minWeightBytes(known.weights, task.mesh, { sliceExperts }) <=
    known.limit;
}

/**
 * How much of a task a thread has compiled that has executed tasks of these meshes: 0, kernels of its `tp`, or its
 * mesh.
 */
export function affinity(
  task: Claimable,
  executed: readonly ReplicaMesh[],
): 0 | 1 | 2 {
  const mesh = meshOfTask(task);
  if (executed.some((other) => isSame(other, mesh))) return 2;
  return executed.some(({ tp }) => tp === mesh.tp) ? 1 : 0;
}

/** The mesh of a task. */
export function meshOfTask(task: Claimable): ReplicaMesh {
  return "mesh" in task ? task.mesh : task.of.mesh;
}
