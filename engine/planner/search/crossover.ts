/** Compares replicas with expert parallelism: the loads from which the other one is faster. */

import { invariant } from "../../../spec/errors.ts";
import { isSame } from "../../../spec/same.ts";
import {
  type Claimable,
  type Claimed,
  executeAll,
  type SearchHelper,
} from "./claims.ts";
import type { Replica, SearchTask } from "./evaluate.ts";
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

/** Maximum compared loads, if both replicas have memory for them. */
const MAX_LOAD = { decode: 256, prefill: 2048, train: 1 } as const;

/** The compared replicas. */
interface Compared {
  /** The smallest one that fits, and the best one with more ranks. */
  readonly small: Replica;
  readonly large: Replica;
  /** The compared loads, ascending. */
  readonly loads: readonly number[];
  /** That of the best step of the smallest replica. */
  readonly load: number;
}

/** The compared replicas: of the largest load of their mesh among these. */
function comparedOf(
  { phase, context }: SearchTask,
  found: readonly Found[],
  replicas: readonly Replica[],
): Compared | undefined {
  const min = Math.min(...found.map(({ mesh }) => replicaRanks(mesh)));
  const small = found.find(({ mesh }) => replicaRanks(mesh) === min);
  const large = found.find(({ mesh }) =>
    mesh.ep > (small?.mesh.ep ?? 0) && mesh.tp === small?.mesh.tp
  );
  if (!small || !large) return undefined;
  const largestOf = ({ mesh, step }: Found): Replica =>
    replicas.filter((one) => isSame(one.mesh, mesh))
      .sort((a, b) => b.load - a.load)[0] ?? step.of;
  const [one, other] = [largestOf(small), largestOf(large)];
  const max = Math.min(MAX_LOAD[phase], context, one.load, other.load);
  const from = phase === "decode" ? 1 : Math.min(16, max);
  return {
    small: one,
    large: other,
    loads: loadsBetween(from, max),
    load: Math.min(max, Math.max(1, small.step.of.load)),
  };
}

/** Tasks that predict steps of both replicas. */
function loadTasks(
  { small, large }: Compared,
  loads: readonly number[],
): Claimable[] {
  return [large, small].map((of) => ({ kind: "loads", of, loads }) as const);
}

/** The tasks with which `findCrossover` starts. None for training. */
export function crossoverTasks(
  task: SearchTask,
  found: readonly Found[],
  replicas: readonly Replica[],
): Claimable[] {
  const between = task.phase === "train"
    ? undefined
    : comparedOf(task, found, replicas);
  return between ? loadTasks(between, firstLoads(between)) : [];
}

function firstLoads({ loads, load }: Compared): number[] {
  return [...new Set([...loads, load])];
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
  { known, helper, executed, replicas }: {
    readonly known: Known;
    readonly helper: SearchHelper | undefined;
    /** Tasks that need not be executed again. */
    readonly executed: readonly ExecutedTask[];
    /** Replicas of all meshes, with the first strategy that fits. */
    readonly replicas: readonly Replica[];
  },
): Promise<Crossover | undefined> {
  const between = comparedOf(task, found, replicas);
  if (!between) return undefined;
  const { small, large, loads: compared, load } = between;
  const [from, to] = [compared[0]!, compared.at(-1)!];
  const steps = new Map<number, Pair>();
  const predict = async (loads: readonly number[]): Promise<void> => {
    const tasks = loadTasks(between, loads);
    const results = tasks.flatMap((one) =>
      executed.filter(({ task }) => isSame(task, one))
        .map(({ result }) => result)
    );
    const [y, x] = results.length === tasks.length
      ? results
      : await executeAll(task, known, { tasks, helper });
    for (const [i, load] of loads.entries()) {
      steps.set(load, [stepAt(x!, i), stepAt(y!, i)]);
    }
  };
  await predict(firstLoads(between));
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
    to,
    first: await winner(from),
    crossings,
    load,
    exchanged: (y.parts.exchange - x.parts.exchange) / load,
    saved: (x.parts.memory - y.parts.memory) / load,
    speed: y.seconds / x.seconds,
  };
}

/** Steps of both replicas. */
type Pair = readonly [Prediction, Prediction];

/** A predicted step of a replica that was compiled before. */
function stepAt(steps: Claimed, i: number): Prediction {
  invariant(!("why" in steps), "a compared replica was rejected");
  return steps[i]!.step;
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
