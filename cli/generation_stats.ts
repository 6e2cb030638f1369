/** Speed of text generation. */

import type { Generated, Streaming } from "../engine/mod.ts";
import { sizeText } from "../spec/size_text.ts";

/** Times and rates of a generation. */
export interface GenerationStats {
  readonly promptTokens: number;
  readonly newTokens: number;
  /** Time until the first token of the first prompts was chosen. */
  readonly ttftMs: number;
  readonly prefillTokensPerSecond: number;
  /** Excludes the first token of each sequence. */
  readonly decodeTokensPerSecond: number;
  /** Milliseconds of steps with prompt tokens, and of all others. */
  readonly prefillMs: number;
  readonly decodeMs: number;
  /** Milliseconds of loading, and those until the first token, loading included. */
  readonly loadMs?: number;
  readonly loadTtftMs?: number;
  /** Bytes read from disk: while loading, and afterwards. */
  readonly loadDiskBytes?: number;
  readonly diskBytes?: number;
  /** With streamed experts: hit rate, bytes read, and milliseconds of reading and of waiting. */
  readonly hitRate?: number;
  readonly expertBytes?: number;
  readonly expertReadMs?: number;
  readonly expertWaitMs?: number;
  /** With speculation: drafted tokens, accepted ones, and the speedup that they give, if it was measured. */
  readonly draftedTokens?: number;
  readonly acceptedTokens?: number;
  readonly speculationGain?: number;
}

/** Loading before a generation, and reads from disk. */
export interface LoadStats {
  readonly loadMs: number;
  /** Bytes that the process had read from disk at its start, when it was loaded, and at the end. */
  readonly read: readonly [started: number, loaded: number, ended: number];
  readonly streaming: Streaming | undefined;
}

/** Computes the rates of a generation. `load`: for the first one of a process. */
export function statsOf(
  generated: Generated,
  load?: LoadStats,
): GenerationStats {
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
    prefillMs: rounded(prefillMs),
    decodeMs: rounded(decodeMs),
    ...load ? loadStats(load, firstMs) : {},
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

function loadStats(
  { loadMs, read: [started, loaded, ended], streaming }: LoadStats,
  firstMs: number,
): Partial<GenerationStats> {
  return {
    loadMs: Math.round(loadMs),
    loadTtftMs: Math.round(loadMs + firstMs),
    loadDiskBytes: loaded - started,
    diskBytes: ended - loaded,
    ...streaming && {
      hitRate: streaming.hits / Math.max(1, streaming.hits + streaming.misses),
      expertBytes: streaming.bytesRead,
      expertReadMs: Math.round(streaming.readMs),
      expertWaitMs: Math.round(streaming.waitedMs),
    },
  };
}

/** A line for each phase, and for streamed experts and speculation. */
export function statsText(stats: GenerationStats): string {
  const { loadMs, loadTtftMs, loadDiskBytes = 0, diskBytes = 0 } = stats;
  const { hitRate, expertBytes = 0, expertReadMs, expertWaitMs } = stats;
  const { promptTokens, newTokens, ttftMs } = stats;
  const { draftedTokens, acceptedTokens, speculationGain } = stats;
  const gain = speculationGain === undefined
    ? ""
    : `, ${speculationGain} times as fast as without (estimated)`;
  return [
    ...loadMs === undefined ? [] : [
      `load: ${loadMs} ms, ${sizeText(loadDiskBytes)} read from disk, ${
        sizeText(diskBytes)
      } afterwards`,
    ],
    `prefill: ${promptTokens} tokens in ${stats.prefillMs} ms, ${stats.prefillTokensPerSecond} tokens/s, first token after ${ttftMs} ms (TTFT)${
      loadTtftMs === undefined ? "" : `, ${loadTtftMs} ms with loading`
    }`,
    `decode: ${newTokens} tokens in ${stats.decodeMs} ms, ${stats.decodeTokensPerSecond} tokens/s`,
    ...hitRate === undefined ? [] : [
      `experts: ${Math.round(100 * hitRate)} % of uses in memory, ${
        sizeText(expertBytes)
      } read in ${expertReadMs} ms, ${expertWaitMs} ms of waiting`,
    ],
    ...draftedTokens === undefined ? [] : [
      `speculation: ${acceptedTokens} of ${draftedTokens} drafted tokens accepted${gain}`,
    ],
  ].join("\n");
}
