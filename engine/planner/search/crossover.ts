/** Compares replicas with expert parallelism: the loads from which the other one is faster. */

import {
  compileReplica,
  type ReplicaPlan,
  type SearchTask,
  stepReplica,
} from "./evaluate.ts";
import { type ReplicaMesh, replicaRanks } from "./meshes.ts";
import type { Bottleneck } from "../../../spec/plan_summary.ts";
import type { Parts, Prediction } from "../simulate/mod.ts";
import type { Found } from "./found.ts";

/** A load from which the other mesh is faster. */
export interface Crossing {
  readonly at: number;
  /** The faster one from there on. */
  readonly to: "replicas" | "experts";
  /** Cause of time of which it needs less there, by the largest difference. */
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

/** Compares the smallest replica that fits with the best one with more ranks. */
export async function findCrossover(
  task: SearchTask,
  found: readonly Found[],
  { max = Math.min(MAX_LOAD[task.phase], task.context) } = {},
): Promise<Crossover | undefined> {
  const min = Math.min(...found.map(({ mesh }) => replicaRanks(mesh)));
  const small = found.find(({ mesh }) => replicaRanks(mesh) === min);
  const large = found.find(({ mesh }) =>
    mesh.ep > (small?.mesh.ep ?? 0) && mesh.tp === small?.mesh.tp
  );
  if (!small || !large) return undefined;
  const [a, b] = [
    await compileReplica(task, small.mesh, { load: max }),
    await compileReplica(task, large.mesh, { load: max }),
  ];
  if ("why" in a || "why" in b) {
    return max > 1
      ? await findCrossover(task, found, { max: Math.floor(max / 2) })
      : undefined;
  }
  const from = task.phase === "decode" ? 1 : Math.min(16, max);
  const known = new Map<string, Prediction>();
  const stepAt = (of: ReplicaPlan, load: number) => {
    const key = `${of.ranks} ${load}`;
    const step = known.get(key) ?? stepReplica(task, of, load).step;
    known.set(key, step);
    return step;
  };
  const winner = (load: number) =>
    stepAt(a, load).seconds <= stepAt(b, load).seconds ? "replicas" : "experts";
  const crossings = changes(winner, from, max).map((at): Crossing => {
    const to = winner(at);
    const [x, y] = [stepAt(a, at).parts, stepAt(b, at).parts];
    const [wins, loses] = to === "replicas" ? [x, y] : [y, x];
    return { at, to, because: largestSaving(wins, loses) };
  });
  const load = Math.min(max, Math.max(1, small.step.of.load));
  const [x, y] = [a, b].map((of) => stepAt(of, load));
  return {
    replicas: small.mesh,
    experts: large.mesh,
    from,
    to: max,
    first: winner(from),
    crossings,
    load,
    exchanged: (y!.parts.exchange - x!.parts.exchange) / load,
    saved: (x!.parts.memory - y!.parts.memory) / load,
    speed: y!.seconds / x!.seconds,
  };
}

/** The cause of which one step spends less than another, by the largest difference. */
function largestSaving(wins: Parts, loses: Parts): Bottleneck {
  const parts = Object.keys(wins) as Bottleneck[];
  return parts.reduce((best, part) =>
    loses[part] - wins[part] > loses[best] - wins[best] ? part : best
  );
}

/**
 * The values at which `of` changes: between neighbours of 1, 2, 3, 4, 6, 8, 12, …, by bisection. Two changes between
 * neighbours are not found.
 */
function changes<T>(
  of: (value: number) => T,
  from: number,
  to: number,
): number[] {
  const found: number[] = [];
  for (let low = from; low < to;) {
    const power = 2 ** Math.floor(Math.log2(low));
    const next = low < 2 || low >= 1.5 * power ? 2 * power : 1.5 * power;
    const high = Math.min(to, next);
    if (of(low) !== of(high)) found.push(changeBetween(of, low, high));
    low = high;
  }
  return found;
}

/** The smallest value above `low` at which `of` has its value at `high`. */
function changeBetween<T>(
  of: (value: number) => T,
  low: number,
  high: number,
): number {
  const first = of(low);
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2);
    if (of(middle) === first) low = middle;
    else high = middle;
  }
  return high;
}
