/** Configurations that fit, and which of them is better. */

import type { ReplicaStep, SearchStrategy } from "./evaluate.ts";
import { meshName, type ReplicaMesh, replicaRanks } from "./meshes.ts";

/** What is best: most tokens a second of all devices, the shortest step, or the least memory of a rank. */
export type Objective = "throughput" | "latency" | "memory";

/** A configuration that fits. */
export interface Found {
  readonly mesh: ReplicaMesh;
  /** Copies of the model, each on a mesh of its own. */
  readonly replicas: number;
  readonly strategy: SearchStrategy;
  /** Tokens of a step of all replicas, and of how many sequences. */
  readonly tokens: number;
  readonly sequences: number;
  /** Of the fullest rank, and what it may hold. */
  readonly bytes: number;
  readonly limit: number | undefined;
  readonly seconds: number;
  /** Of all replicas. */
  readonly tokensPerSecond: number;
  readonly step: ReplicaStep;
  /** Nothing else is at least as good in speed, time of a step and memory. */
  readonly pareto: boolean;
  /** Why it is not the best one; of that, what bounds it. */
  readonly why: string;
}

/** A step of as many replicas as so many ranks have room for. */
export function foundOf(step: ReplicaStep, ranks: number): Found {
  const { of, tokens, sequences } = step;
  const { mesh, strategy, fullest } = of;
  const replicas = Math.floor(ranks / of.ranks);
  const { seconds } = step.step;
  return {
    mesh,
    replicas,
    strategy,
    step,
    seconds,
    tokens: replicas * tokens,
    sequences: replicas * sequences,
    bytes: fullest.bytes.total,
    limit: fullest.limit,
    tokensPerSecond: replicas * tokens / seconds,
    pareto: false,
    why: "",
  };
}

/** Of equally good ones, the smaller replica. */
export function compareBy(
  objective: Objective,
): (a: Found, b: Found) => number {
  const of: { readonly [O in Objective]: (found: Found) => number } = {
    throughput: ({ tokensPerSecond }) => -tokensPerSecond,
    latency: ({ seconds }) => seconds,
    memory: ({ bytes }) => bytes,
  };
  const next = objective === "throughput" ? of.latency : of.throughput;
  return (a, b) =>
    of[objective](a) - of[objective](b) || next(a) - next(b) ||
    replicaRanks(a.mesh) - replicaRanks(b.mesh);
}

/** The first of each mesh. */
export function bestOfMeshes(found: readonly Found[]): Found[] {
  const meshes = new Map<string, Found>();
  for (const one of found) {
    const name = meshName(one.mesh);
    if (!meshes.has(name)) meshes.set(name, one);
  }
  return [...meshes.values()];
}

/** Those that nothing else beats in speed, time of a step and memory together. */
export function paretoOf(found: readonly Found[]): Set<Found> {
  const beats = (a: Found, b: Found) =>
    a.tokensPerSecond >= b.tokensPerSecond && a.seconds <= b.seconds &&
    a.bytes <= b.bytes &&
    (a.tokensPerSecond > b.tokensPerSecond || a.seconds < b.seconds ||
      a.bytes < b.bytes);
  return new Set(found.filter((b) => !found.some((a) => beats(a, b))));
}
