/** What a search found, as `switchyard search --json` prints it: configurations, the best first. */

import { type Strategy, strategyWords } from "../spec/strategies.ts";

/** A configuration that fits. */
export interface FoundConfiguration {
  /** Its mesh: `dp=4,ep=2`; `dp` counts replicas. */
  readonly name: string;
  readonly strategy: Strategy & {
    readonly zero?: number;
    readonly recompute?: boolean;
  };
  /** Tokens of a step of all replicas, and of how many sequences. */
  readonly tokens: number;
  readonly sequences: number;
  /** Of the fullest rank, and what it may hold. */
  readonly bytes: number;
  readonly limit?: number;
  /** Of a step. */
  readonly seconds: number;
  readonly tokensPerSecond: number;
  /** Why it is not the best; of that, what bounds it. */
  readonly why: string;
}

/** A search. */
export interface SearchResult {
  readonly machine: string;
  readonly phase: string;
  readonly objective: string;
  /** Positions of a sequence. */
  readonly context: number;
  /** How experts are chosen. */
  readonly experts: string;
  /** The best of each mesh, best first. */
  readonly found: readonly FoundConfiguration[];
  /** What nothing else beats in speed, time of a step and memory at once. */
  readonly pareto: readonly FoundConfiguration[];
  readonly thrownOut: readonly {
    readonly name: string;
    readonly why: string;
  }[];
}

/** `in 2 chunks, deduplicated`, `ZeRO-1, recomputed`; empty for a dispatch as ever. */
export function strategyText(
  { strategy: { zero = 0, recompute, ...sent } }: Pick<
    FoundConfiguration,
    "strategy"
  >,
): string {
  return [
    ...strategyWords(sent),
    ...zero > 0 ? [`ZeRO-${zero}`] : [],
    ...recompute ? ["recomputed"] : [],
  ].join(", ");
}
