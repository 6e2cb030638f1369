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
  /** With speculation: drafted tokens, accepted ones, and the speedup that they give, if it was measured. */
  readonly draftedTokens?: number;
  readonly acceptedTokens?: number;
  readonly speculationGain?: number;
}

/** Computes the rates of a generation. */
export function statsOf(generated: Generated): GenerationStats {
  const { sequences, firstMs, prefillMs, prefillTokens, decodeMs } = generated;
  const newTokens = sequences.reduce((n, { tokens }) => n + tokens.length, 0);
  const rounded = (value: number) => Math.round(value * 100) / 100;
  const rate = (tokens: number, ms: number) =>
    ms > 0 ? rounded(1000 * tokens / ms) : 0;
  const { speculation } = generated;
  return {
    promptTokens: prefillTokens,
    newTokens,
    ttftMs: rounded(firstMs),
    prefillTokensPerSecond: rate(prefillTokens, prefillMs),
    decodeTokensPerSecond: rate(newTokens - sequences.length, decodeMs),
    ...speculation
      ? {
        draftedTokens: speculation.drafted,
        acceptedTokens: speculation.accepted,
      }
      : {},
    ...speculation?.gain === undefined
      ? {}
      : { speculationGain: rounded(speculation.gain) },
  };
}

/** Two lines, three with speculation. */
export function statsText(stats: GenerationStats): string {
  const { promptTokens, newTokens, ttftMs } = stats;
  const { draftedTokens, acceptedTokens, speculationGain } = stats;
  const gain = speculationGain === undefined
    ? ""
    : `, ${speculationGain} times as fast as without (estimated)`;
  return [
    `prefill: ${promptTokens} tokens, ${stats.prefillTokensPerSecond} tokens/s, first token after ${ttftMs} ms (TTFT)`,
    `decode: ${newTokens} tokens, ${stats.decodeTokensPerSecond} tokens/s`,
    ...draftedTokens === undefined ? [] : [
      `speculation: ${acceptedTokens} of ${draftedTokens} drafted tokens accepted${gain}`,
    ],
  ].join("\n");
}
