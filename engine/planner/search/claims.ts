/** Tasks of a search, shared by two threads: the main thread takes them in order, the helper in the opposite order. */

import { affinity, claimOrder, meshOfTask } from "./claim_order.ts";
import {
  compileReplica,
  hasCompiled,
  type Replica,
  type ReplicaStep,
  type SearchTask,
  stepReplica,
  type ThrownOut,
} from "./evaluate.ts";
import {
  firstThatFits,
  type Known,
  otherStrategies,
  type StepsOfReplica,
  stepsOverNodes,
  stepsWithSlices,
} from "./fit.ts";
import type { ReplicaMesh } from "./meshes.ts";

/** A task: steps of a mesh, or of a replica with other strategies, sliced experts or given loads. */
export type Claimable =
  | { readonly kind: "mesh"; readonly mesh: ReplicaMesh }
  | StepsOfReplica & {
    readonly kind: "strategies";
    /** Ranks per host. */
    readonly host: number;
  }
  | StepsOfReplica & { readonly kind: "slices" }
  | {
    readonly kind: "loads";
    readonly of: Replica;
    readonly loads: readonly number[];
  };

/** Result of a task. */
export type Claimed = ReplicaStep[] | ThrownOut;

/** Results by the index of the task. */
export type ClaimedResults = readonly (readonly [number, Claimed])[];

/** Tasks, and a shared word for each: 1 if a thread executes it. */
export interface Batch {
  readonly tasks: readonly Claimable[];
  readonly taken: Int32Array;
}

/** Another thread with the same search. */
export interface SearchHelper {
  /** Executes free tasks. Resolves to the results; failed tasks have none. */
  help(batch: Batch): Promise<ClaimedResults>;
}

/** Meshes whose tasks this thread has executed. */
const executed = new WeakMap<SearchTask, ReplicaMesh[]>();

/**
 * Executes the free tasks in this order. Tasks whose parts this thread has compiled are first. Omits failed tasks if
 * `skipsFailed`.
 */
async function claim(
  task: SearchTask,
  known: Known,
  { batch: { tasks, taken }, order, skipsFailed = false }: {
    readonly batch: Batch;
    readonly order: readonly number[];
    readonly skipsFailed?: boolean;
  },
): Promise<[number, Claimed][]> {
  const results: [number, Claimed][] = [];
  const meshes = executed.get(task) ?? [];
  executed.set(task, meshes);
  for (const _ of order) {
    const free = order.filter((i) => Atomics.load(taken, i) === 0)
      .map((i) => ({ i, known: affinity(tasks[i]!, meshes) }));
    const most = Math.max(...free.map(({ known }) => known));
    const i = free.find(({ known }) => known === most)?.i;
    if (i === undefined) break;
    if (Atomics.exchange(taken, i, 1) !== 0) continue;
    meshes.push(meshOfTask(tasks[i]!));
    try {
      results.push([i, await execute(task, known, tasks[i]!)]);
    } catch (error) {
      if (!skipsFailed) throw error;
    }
  }
  return results;
}

async function execute(
  task: SearchTask,
  known: Known,
  claimed: Claimable,
): Promise<Claimed> {
  if (claimed.kind === "mesh") {
    return await firstThatFits(task, claimed.mesh, known);
  }
  if (claimed.kind === "slices") {
    return await stepsWithSlices(task, claimed, known);
  }
  if (claimed.kind === "loads") {
    const { of, loads } = claimed;
    const plan = await compileReplica(task, of.mesh, of);
    return "why" in plan
      ? plan
      : loads.map((load) => stepReplica(task, plan, load));
  }
  const { of, host } = claimed;
  return [
    ...await otherStrategies(task, claimed, { known }),
    ...await stepsOverNodes(task, of, host),
  ];
}

/** Executes tasks in this thread and in the helper. Returns their results in order. */
export async function executeAll(
  task: SearchTask,
  known: Known,
  { tasks, helper }: {
    readonly tasks: readonly Claimable[];
    readonly helper: SearchHelper | undefined;
  },
): Promise<Claimed[]> {
  const taken = new Int32Array(new SharedArrayBuffer(4 * tasks.length));
  const batch = { tasks, taken };
  const shares = tasks.length > 1 && !tasks.every((one) => isQuick(task, one));
  const answer = shares ? helper?.help(batch) : undefined;
  const order = claimOrder(tasks, known)
    .filter((i) => !answer || !isElsewhere(task, tasks[i]!));
  const results = new Map(await claim(task, known, { batch, order }));
  // The helper may not even have started.
  const others = results.size < tasks.length ? await answer ?? [] : [];
  for (const [i, result] of others) results.set(i, result);
  // Tasks that failed in the helper are executed again: they fail here with their error.
  const failed = [...tasks.keys()].filter((i) => !results.has(i));
  for (const i of failed) {
    results.set(i, await execute(task, known, tasks[i]!));
  }
  return tasks.map((_, i) => results.get(i)!);
}

/** Whether a task is one step of a plan that this thread has. */
function isQuick(task: SearchTask, claimed: Claimable): boolean {
  return claimed.kind === "loads" && claimed.loads.length === 1 &&
    !isElsewhere(task, claimed);
}

/** Whether the other of two threads has the plan of a task. */
function isElsewhere(task: SearchTask, claimed: Claimable): boolean {
  if (claimed.kind !== "loads") return false;
  const { of } = claimed;
  return !hasCompiled(task, of.mesh, of);
}

/** Executes free tasks as a helper. */
export async function helpSearch(
  task: SearchTask,
  { known, batch }: { readonly known: Known; readonly batch: Batch },
): Promise<ClaimedResults> {
  const order = claimOrder(batch.tasks, known).reverse()
    .filter((i) => !isElsewhere(task, batch.tasks[i]!));
  return await claim(task, known, { batch, order, skipsFailed: true });
}
