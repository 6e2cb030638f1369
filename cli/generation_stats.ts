/** Speed of text generation. */

import type { Generated } from "../engine/mod.ts";

/** Times and rates of a generation. */
export interface GenerationStats {
  readonly promptTokens: number;
  readonly newTokens: number;
  /** Time until the first token of the first prompts was chosen. */
  readonly ttftMs: number;
  readonly prefillTokensPerSecond: number;
  /** Excludes the first token of each sequence. */
  readonly decodeTokensPerSecond: number;
}

/** Computes the rates of a generation. */
export function statsOf(generated: Generated): GenerationStats {
  const { sequences, firstMs, prefillMs, prefillTokens, decodeMs } = generated;
  const newTokens = sequences.reduce((n, { tokens }) => n + tokens.length, 0);
  const rate = (tokens: number, ms: number) =>
    ms > 0 ? Math.round(tokens / ms * 1e5) / 100 : 0;
  return {
    promptTokens: prefillTokens,
    newTokens,
    ttftMs: Math.round(firstMs * 100) / 100,
    prefillTokensPerSecond: rate(prefillTokens, prefillMs),
    decodeTokensPerSecond: rate(newTokens - sequences.length, decodeMs),
  };
}

/** Two lines. */
export function statsText(stats: GenerationStats): string {
  const { promptTokens, newTokens, ttftMs } = stats;
  return [
    `prefill: ${promptTokens} tokens, ${stats.prefillTokensPerSecond} tokens/s, first token after ${ttftMs} ms (TTFT)`,
    `decode: ${newTokens} tokens, ${stats.decodeTokensPerSecond} tokens/s`,
  ].join("\n");
}
