/**
 * Finds the best mesh, strategy and batch size of a model on a machine: configurations that do not fit are dropped, the
 * others are simulated.
 */

import { placeRanks, usableMemory } from "../../../spec/machine.ts";
import { DataError } from "../../../spec/errors.ts";
import { isSame } from "../../../spec/same.ts";
import { type Crossover, crossoverTasks, findCrossover } from "./crossover.ts";
import { curveOf, type CurvePoint, trainingCurve } from "./curve.ts";
import {
  type Replica,
  type ReplicaStep,
  type SearchTask,
  type ThrownOut,
} from "./evaluate.ts";
import { type Claimable, executeAll, type SearchHelper } from "./claims.ts";
import { hasEntireExperts, type Known, largerSteps } from "./fit.ts";
import {
  bestOfMeshes,
  compareBy,
  type Found,
  foundOf,
  misses,
  paretoOf,
} from "./found.ts";
import {
  type ReplicaMesh,
  replicaMeshes,
  replicaRanks,
  trainingMeshes,
} from "./meshes.ts";
import { representativeWeights } from "../summary/compiled.ts";
import { whySlower } from "./why.ts";

/** Result of a search. */
export interface Searched {
  /** The best of each mesh, best first. */
  readonly found: readonly Found[];
  /** Other configurations that are not dominated. */
  readonly pareto: readonly Found[];
  readonly thrownOut: readonly ThrownOut[];
  /** Comparison of replicas with expert parallelism, if both fit. */
  readonly crossover: Crossover | undefined;
  /** Best throughput per number of devices, and that of one replica on all of them. */
  readonly curve: readonly CurvePoint[];
}

/** Options of `search`. */
export interface SearchOptions {
  /** Number of ranks. Default: all of the machine. */
  readonly ranks?: number | undefined;
  /** For training: whether to compute the curve, which takes a search per number of devices. */
  readonly curve?: boolean;
  /** Another thread with the same task. Default: none. */
  readonly helper?: SearchHelper | undefined;
}

/** Number of meshes whose strategies are tried. */
const FINALISTS = 2;

/** Facts known before compilation. */
export async function knownOf(
  { target, files, machine, compile }: SearchTask,
): Promise<Known> {
  const { kind } = placeRanks(machine)[0]!;
  const weights = await representativeWeights(target, files, compile);
  return {
    weights,
    experts: Math.max(
      0,
      ...weights.params.map(({ expert, matrix }) =>
        expert === undefined ? 0 : matrix.count
      ),
    ),
    limit: usableMemory(machine.devices[kind]!),
  };
}

/** Searches. Throws DataError if the machine has fewer ranks than requested. */
export async function search(
  task: SearchTask,
  { ranks: asked, curve = false, helper }: SearchOptions = {},
): Promise<Searched> {
  const { machine, objective, goal } = task;
  const placements = placeRanks(machine);
  const ranks = asked ?? placements.length;
  if (ranks > placements.length) {
    throw new DataError(
      `Cannot search ${ranks} ranks: the machine '${machine.name}' has ${placements.length}. Ask for fewer, or describe a larger machine`,
    );
  }
  const trains = task.phase === "train";
  const known = await knownOf(task);
  const sizes = {
    host: placements.filter(({ host }) => host === placements[0]!.host).length,
    experts: known.experts,
    slices: task.compile.numerics === "fast" && !trains,
  };
  const meshes = trains
    ? trainingMeshes({ ...sizes, ranks })
    : replicaMeshes({ ...sizes, ranks: placements.length });
  const thrownOut: ThrownOut[] = [];
  const steps: ReplicaStep[] = [];
  const evaluate = async (meshes: readonly ReplicaMesh[]) => {
    const tasks = meshes.map((mesh) => ({ kind: "mesh", mesh } as const));
    for (const found of await executeAll(task, known, { tasks, helper })) {
      if ("why" in found) thrownOut.push(found);
      else steps.push(...found);
    }
  };
  await evaluate(meshes);
  // Stages wait for one another, and so do ranks that share positions: they are for models that fit in no other way.
  for (let n = 2; n <= ranks && steps.length === 0; n *= 2) {
    if (trains) {
      await evaluate(trainingMeshes({ ...sizes, ranks }, { pp: n }));
      continue;
    }
    for (const more of [{ pp: n }, { cp: n }]) {
      const all = { ...sizes, ranks: placements.length };
      await evaluate(replicaMeshes(all, more));
    }
  }
  const better = compareBy(objective, goal);
  const within = () =>
    steps.filter(({ of }) => of.ranks <= ranks)
      .map((step) => foundOf(step, ranks)).sort(better);
  if (trains) {
    for (const { step } of bestOfMeshes(within()).slice(0, FINALISTS)) {
      steps.push(...await largerSteps(task, step.of));
    }
  }
  const last = bestOfMeshes(within());
  const finalists = last.slice(0, FINALISTS);
  const sliced = last.find(({ mesh, strategy }) =>
    sizes.slices && mesh.tp > 1 && !strategy.sliceExperts
  );
  const withSteps = ({ step: { of } }: Found) => ({
    of,
    steps: steps.filter((step) => isSamePlan(step.of, of)),
  });
  const tasks: Claimable[] = finalists
    .filter(({ mesh }) => replicaRanks(mesh) > 1)
    .map((found) => ({
      kind: "strategies",
      ...withSteps(found),
      host: sizes.host,
    }));
  // Finalists try slices among other strategies.
  if (sliced && !finalists.includes(sliced)) {
    tasks.push({ kind: "slices", ...withSteps(sliced) });
  }
  const entire = (found: readonly Found[]) =>
    bestOfMeshes(found).filter(({ mesh }) => hasEntireExperts(mesh, known));
  const replicas = steps.map(({ of }) => of);
  // Other strategies rarely change the compared meshes.
  const compared = crossoverTasks(task, entire(last), replicas);
  // The threads start with different strategies.
  const batch = [...tasks.slice(0, 1), ...compared, ...tasks.slice(1)];
  const results = await executeAll(task, known, { tasks: batch, helper });
  const executed = batch.map((task, i) => ({ task, result: results[i]! }));
  for (const { task: { kind }, result } of executed) {
    if (kind !== "loads" && !("why" in result)) steps.push(...result);
  }
  const all = within();
  const front = paretoOf(all);
  const [best] = all;
  const explained = (found: Found): Found => ({
    ...found,
    pareto: front.has(found),
    why: best
      ? (misses(found, goal) ? "misses the goal; " : "") +
        whySlower(found, best, machine)
      : "",
  });
  return {
    found: bestOfMeshes(all).map(explained),
    pareto: [...front].map(explained),
    thrownOut,
    crossover: trains ? undefined : await findCrossover(
      task,
      entire(all),
      { known, helper, executed, replicas },
    ),
    curve: !trains
      ? curveOf(steps, better)
      : curve
      ? await trainingCurve(task, all, {
        sizes,
        better,
        known,
        max: placements.length,
      })
      : [],
  };
}

/** Whether two replicas have one plan: an equal mesh, strategy and load. */
function isSamePlan(a: Replica, b: Replica): boolean {
  return isSame([a.mesh, a.strategy, a.load], [b.mesh, b.strategy, b.load]);
}
