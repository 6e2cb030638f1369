/** The result of a search, as printed by `switchyard search --json`: configurations, the best first. */

import type { NumericsClass } from "../spec/numerics.ts";
import { type Strategy, strategyWords } from "../spec/strategies.ts";

/** A configuration that fits. */
export interface FoundConfiguration {
  /** Its mesh, such as `dp=4,ep=2`. `dp` counts replicas. */
  readonly name: string;
  readonly strategy: Strategy & {
    readonly zero?: number;
    readonly recompute?: boolean;
  };
  /** Tokens and sequences per step, over all replicas. */
  readonly tokens: number;
  readonly sequences: number;
  /** Memory of the fullest rank, and its limit. */
  readonly bytes: number;
  readonly limit?: number;
  /** Seconds of a step. */
  readonly seconds: number;
  readonly tokensPerSecond: number;
  /** Why it is not the best. For the best: its limiting resource. */
  readonly why: string;
}

/** A search. */
export interface SearchResult {
  readonly machine: string;
  readonly phase: string;
  readonly objective: string;
  /** Positions of a sequence. */
  readonly context: number;
  /** The distribution of expert choices. */
  readonly experts: string;
  readonly numerics: NumericsClass;
  /** Rates and dtypes that the times of the best assume. Absent: nothing fits. */
  readonly assumes?: string;
  /** The best configuration of each mesh, best first. */
  readonly found: readonly FoundConfiguration[];
  /** Configurations that no other one beats in speed, step time and memory at once. */
  readonly pareto: readonly FoundConfiguration[];
  readonly thrownOut: readonly {
    readonly name: string;
    readonly why: string;
  }[];
}

/** Formats a strategy: `in 2 chunks, deduplicated`, `ZeRO-1, recomputed`. Empty for the default. */
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
