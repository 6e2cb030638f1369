/**
 * Metrics of steps and tokens, for Prometheus. The thread of the loop counts them, so that routes handle only tokens
 * that they send.
 */

import { Counter, Histogram, Registry } from "prom-client";
import type { BatchStep } from "../generation/batch.ts";

/** Upper bounds of buckets in seconds. */
export const SECONDS = [
  ...[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5],
  ...[1, 2.5, 5, 10, 25, 50, 100, 250, 500],
];

/** Upper bounds of buckets of tokens. */
const TOKENS = Array.from({ length: 14 }, (_, i) => 2 ** i);

/** Options of a metric of a registry. */
export function named<O extends { readonly name: string }>(
  options: O,
  registry: Registry,
): O & { registers: Registry[] } {
  return {
    ...options,
    name: `switchyard_${options.name}`,
    registers: [registry],
  };
}

/** Counts steps and tokens. */
export class LoopMetrics {
  readonly #registry = new Registry();
  readonly #stepSeconds = this.#histogram({
    name: "step_seconds",
    help: "Time of a step of the batch.",
    buckets: SECONDS,
  });
  readonly #stepTokens = this.#histogram({
    name: "step_tokens",
    help: "Tokens that a step fed.",
    buckets: TOKENS,
  });
  readonly #promptTokens = this.#counter({
    name: "prompt_tokens_total",
    help: "Prompt tokens that were fed; shared prefixes are fed once.",
  });
  readonly #newTokens = this.#counter({
    name: "generated_tokens_total",
    help: "Tokens that were generated.",
  });
  readonly #first = this.#histogram({
    name: "time_to_first_token_seconds",
    help: "Time from when a sequence is queued to its first token.",
    buckets: SECONDS,
  });
  readonly #next = this.#histogram({
    name: "inter_token_seconds",
    help: "Time from a token of a sequence to the next.",
    buckets: SECONDS,
  });

  /** Counts a step and its duration in milliseconds. */
  step({ tokens, prompted, chosen }: BatchStep, ms: number): void {
    this.#stepSeconds.observe(ms / 1000);
    this.#stepTokens.observe(tokens);
    this.#promptTokens.inc(prompted);
    this.#newTokens.inc(chosen);
  }

  /** Counts a token: milliseconds since its sequence was queued, or since the previous token. */
  token(ms: number, { first }: { readonly first: boolean }): void {
    (first ? this.#first : this.#next).observe(ms / 1000);
  }

  /** The metrics as Prometheus reads them. */
  async text(): Promise<string> {
    return await this.#registry.metrics();
  }

  #histogram(
    options: { name: string; help: string; buckets: number[] },
  ): Histogram {
    return new Histogram(named(options, this.#registry));
  }

  #counter(options: { name: string; help: string }): Counter {
    return new Counter(named(options, this.#registry));
  }
}
