/** Compares replicas with expert parallelism: the loads from which the other one is faster. */

import { isSame } from "../../../spec/same.ts";
import {
  type Claimable,
  type Claimed,
  executeAll,
  type SearchHelper,
} from "./claims.ts";
import type { SearchTask } from "./evaluate.ts";
import type { Known } from "./fit.ts";
import { type ReplicaMesh, replicaRanks } from "./meshes.ts";
import type { Bottleneck } from "../../../spec/plan_summary.ts";
import type { Parts, Prediction } from "../simulate/mod.ts";
import type { Found } from "./found.ts";

/** A load from which the other mesh is faster. */
export interface Crossing {
  readonly at: number;
  /** The faster one from there on. */
  readonly to: "replicas" | "experts";
  /** Cause of time with the largest saving there. */
  readonly because: Bottleneck;
}

/** Two meshes with equal numbers of devices, and the loads at which the faster one changes. */
export interface Crossover {
  /** The smallest replica, and the best one with more ranks for experts. */
  readonly replicas: ReplicaMesh;
  readonly experts: ReplicaMesh;
  /** Compared loads of a device: sequences, or tokens. */
  readonly from: number;
  readonly to: number;
  /** The faster one at `from`. */
  readonly first: "replicas" | "experts";
  /** Ascending. */
  readonly crossings: readonly Crossing[];
  /** The load of the smallest replica for `exchanged`, `saved` and `speed`. */
  readonly load: number;
  /** Seconds of a device per token: additional exchange time with sharded experts, and saved memory time. */
  readonly exchanged: number;
  readonly saved: number;
  /** Speedup of replicas. */
  readonly speed: number;
}

/** Maximum compared loads, unless kernels could not index that much. Memory is checked elsewhere. */
const MAX_LOAD = { decode: 256, prefill: 2048, train: 1 } as const;

/** The compared meshes. */
interface Compared {
  /** The smallest replica that fits, and the best one with more ranks. */
  readonly small: Found;
  readonly large: Found;
  /** The first compared load, and the others. */
  readonly from: number;
  readonly compared: readonly number[];
  /** That of the smallest replica. */
  readonly load: number;
}

function comparedOf(
  task: SearchTask,
  found: readonly Found[],
  max: number,
): Compared | undefined {
  const min = Math.min(...found.map(({ mesh }) => replicaRanks(mesh)));
  const small = found.find(({ mesh }) => replicaRanks(mesh) === min);
  const large = found.find(({ mesh }) =>
    mesh.ep > (small?.mesh.ep ?? 0) && mesh.tp === small?.mesh.tp
  );
  if (!small || !large) return undefined;
  const from = task.phase === "decode" ? 1 : Math.min(16, max);
  const load = Math.min(max, Math.max(1, small.step.of.load));
  return { small, large, from, compared: loadsBetween(from, max), load };
}

/** Tasks that predict steps of both meshes. */
function loadTasks(
  { small, large }: Compared,
  capacity: number,
  loads: readonly number[],
): Claimable[] {
  return [large, small].map(({ mesh }) =>
    ({ kind: "loads", mesh, capacity, loads }) as const
  );
}

function maxLoadOf({ phase, context }: SearchTask): number {
  return Math.min(MAX_LOAD[phase], context);
}

/** The tasks with which `findCrossover` starts. None for training. */
export function crossoverTasks(
  task: SearchTask,
  found: readonly Found[],
): Claimable[] {
  const max = maxLoadOf(task);
  const between = task.phase === "train"
    ? undefined
    : comparedOf(task, found, max);
  return between ? loadTasks(between, max, firstLoads(between)) : [];
}

function firstLoads({ compared, load }: Compared): number[] {
  return [...new Set([...compared, load])];
}

/** An executed task. */
export interface ExecutedTask {
  readonly task: Claimable;
  readonly result: Claimed;
}

/** Compares the smallest replica that fits with the best one with more ranks. */
export async function findCrossover(
  task: SearchTask,
  found: readonly Found[],
  { known, helper, executed, max = maxLoadOf(task) }: {
    readonly known: Known;
    readonly helper: SearchHelper | undefined;
    /** Tasks that need not be executed again. */
    readonly executed: readonly ExecutedTask[];
    /** Maximum compared load. */
    readonly max?: number;
  },
): Promise<Crossover | undefined> {
  const between = comparedOf(task, found, max);
  if (!between) return undefined;
  const { small, large, from, compared, load } = between;
  const steps = new Map<number, readonly [Prediction, Prediction]>();
  /** Predicts steps of both meshes. Returns false if one cannot be compiled. */
  const predict = async (loads: readonly number[]): Promise<boolean> => {
    const tasks = loadTasks(between, max, loads);
    const results = tasks.flatMap((one) =>
      executed.filter(({ task }) => isSame(task, one))
        .map(({ result }) => result)
    );
    const [y, x] = results.length === tasks.length
      ? results
      : await executeAll(task, known, { tasks, helper });
    if ("why" in x! || "why" in y!) return false;
    for (const [i, load] of loads.entries()) {
      steps.set(load, [x![i]!.step, y![i]!.step]);
    }
    return true;
  };
  if (!await predict(firstLoads(between))) {
    return max > 1
      ? await findCrossover(task, found, {
        known,
        helper,
        executed,
        max: Math.floor(max / 2),
      })
      : undefined;
  }
  const winner = async (load: number): Promise<Crossover["first"]> => {
    if (!steps.has(load)) await predict([load]);
    const [x, y] = steps.get(load)!;
    return x.seconds <= y.seconds ? "replicas" : "experts";
  };
  const crossings: Crossing[] = [];
  for (const at of await changes(winner, compared)) {
    const to = await winner(at);
    const [x, y] = steps.get(at)!;
    const [wins, loses] = to === "replicas" ? [x, y] : [y, x];
    crossings.push({ at, to, because: largestSaving(wins.parts, loses.parts) });
  }
  const [x, y] = steps.get(load)!;
  return {
    replicas: small.mesh,
    experts: large.mesh,
    from,
    to: max,
    first: await winner(from),
    crossings,
    load,
    exchanged: (y.parts.exchange - x.parts.exchange) / load,
    saved: (x.parts.memory - y.parts.memory) / load,
    speed: y.seconds / x.seconds,
  };
}

/** The cause of time with the largest saving of one step over another. */
function largestSaving(wins: Parts, loses: Parts): Bottleneck {
  const parts = Object.keys(wins) as Bottleneck[];
  return parts.reduce((best, part) =>
    loses[part] - wins[part] > loses[best] - wins[best] ? part : best
  );
}

/** The compared loads: 1, 2, 3, 4, 6, 8, 12, … in this range, and its ends. */
function loadsBetween(from: number, to: number): number[] {
  const loads = [from];
  for (let low = from; low < to;) {
    const power = 2 ** Math.floor(Math.log2(low));
    const next = low < 2 || low >= 1.5 * power ? 2 * power : 1.5 * power;
    low = Math.min(to, next);
    loads.push(low);
  }
  return loads;
}

/** The values at which `of` changes: between these, by bisection. Two changes between neighbours are not found. */
async function changes<T>(
  of: (value: number) => Promise<T>,
  values: readonly number[],
): Promise<number[]> {
  const found: number[] = [];
  for (const [i, high] of values.slice(1).entries()) {
    const low = values[i]!;
    if (await of(low) !== await of(high)) {
      found.push(await changeBetween(of, low, high));
    }
  }
  return found;
}

/** The smallest value above `low` at which `of` has its value at `high`. */
async function changeBetween<T>(
  of: (value: number) => Promise<T>,
  low: number,
  high: number,
): Promise<number> {
  const first = await of(low);
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2);
    if (await of(middle) === first) low = middle;
    else high = middle;
  }
  return high;
}
