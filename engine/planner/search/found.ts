/** Configurations that fit, and their order. */

import type { Objective, ReplicaStep, SearchStrategy } from "./evaluate.ts";
import { meshName, type ReplicaMesh, replicaRanks } from "./meshes.ts";

/** A configuration that fits. */
export interface Found {
  readonly mesh: ReplicaMesh;
  /** Copies of the model, each on its own mesh. */
  readonly replicas: number;
  readonly strategy: SearchStrategy;
  /** Tokens of a step of all replicas, and sequences. */
  readonly tokens: number;
  readonly sequences: number;
  /** Bytes of the rank with the most memory, and its limit. */
  readonly bytes: number;
  readonly limit: number | undefined;
  readonly seconds: number;
  /** Throughput of all replicas. */
  readonly tokensPerSecond: number;
  readonly step: ReplicaStep;
  /** Whether nothing else is at least as good in throughput, step time and memory. */
  readonly pareto: boolean;
  /** Why it is not the best; for the best, its bound. */
  readonly why: string;
}

/** A step with as many replicas as fit on this many ranks. */
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
    tokensPerSecond: replicas * step.tokensPerSecond,
    pareto: false,
    why: "",
  };
}

/** Whether a configuration exceeds a goal in seconds of a step. */
export function misses(
  { seconds }: Pick<Found, "seconds">,
  goal = Infinity,
): boolean {
  return seconds > goal;
}

/**
 * Configurations that meet the goal, in seconds of a step, come first. Ties are resolved in favour of the smaller
 * replica.
 */
export function compareBy(
  objective: Objective,
  goal?: number,
): (a: Found, b: Found) => number {
  const of: { readonly [O in Objective]: (found: Found) => number } = {
    throughput: ({ tokensPerSecond }) => -tokensPerSecond,
    latency: ({ seconds }) => seconds,
    memory: ({ bytes }) => bytes,
  };
  const next = objective === "throughput" ? of.latency : of.throughput;
  return (a, b) =>
    Number(misses(a, goal)) - Number(misses(b, goal)) ||
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

/** Configurations that no other dominates in throughput, step time and memory. */
export function paretoOf(found: readonly Found[]): Set<Found> {
  const beats = (a: Found, b: Found) =>
    a.tokensPerSecond >= b.tokensPerSecond && a.seconds <= b.seconds &&
    a.bytes <= b.bytes &&
    (a.tokensPerSecond > b.tokensPerSecond || a.seconds < b.seconds ||
      a.bytes < b.bytes);
  return new Set(found.filter((b) => !found.some((a) => beats(a, b))));
}
