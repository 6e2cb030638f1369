/** The sampling and stop flags of `generate` and `chat`. */

import type { Command } from "commander";
import type { GenerateOptions } from "../../engine/mod.ts";
import {
  integer,
  notNegative,
  positive,
  refuseFlags,
  UsageError,
} from "./values.ts";

/** The sampling flags. */
export interface SamplingFlags {
  readonly maxNewTokens?: number;
  readonly stop?: readonly string[];
  readonly temperature?: number;
  readonly topK?: number;
  readonly topP?: number;
  readonly minP?: number;
  readonly repeatPenalty?: number;
  readonly seed?: number;
  readonly stats?: boolean;
}

/** Adds the flags to a command. */
export function samplingFlags(command: Command): Command {
  return command
    .option(
      "-n, --max-new-tokens <n>",
      "Maximum new tokens per sequence. Default: generation_config.json, else 128 (chat: 1024).",
      integer("--max-new-tokens", 1),
    )
    .option(
      "--stop <text>",
      "Stop before this text. Repeatable.",
      (text: string, before: readonly string[] = []) => [...before, text],
    )
    .option(
      "--temperature <t>",
      "Sampling temperature. Default: 0 (greedy).",
      notNegative("--temperature"),
    )
    .option(
      "--top-k <k>",
      "Sample from the k most likely tokens.",
      integer("--top-k", 1),
    )
    .option(
      "--top-p <p>",
      "Nucleus sampling: sample from the smallest set with total probability p.",
      positive("--top-p", 1),
    )
    .option(
      "--min-p <p>",
      "Sample from tokens with at least p times the maximum probability.",
      positive("--min-p", 1),
    )
    .option(
      "--repeat-penalty <x>",
      "Repetition penalty over the last 64 tokens. Default: 1.",
      positive("--repeat-penalty", 1e6),
    )
    .option(
      "--seed <s>",
      "Sampling seed; prompts of a batch draw different numbers. Default: 0.",
      integer("--seed", 0),
    )
    .option(
      "--stats",
      "Print time to first token (TTFT) with and without loading, times and tokens per second of the phases, and bytes read from disk.",
    );
}

/** Converts the flags to the options of `generate`. */
export function samplingOf(
  { temperature, topK, topP, minP, repeatPenalty, seed }: SamplingFlags,
): Partial<GenerateOptions> {
  return {
    ...temperature === undefined ? {} : { temperature },
    ...topK === undefined ? {} : { topK },
    ...topP === undefined ? {} : { topP },
    ...minP === undefined ? {} : { minP },
    ...repeatPenalty === undefined ? {} : { repeatPenalty },
    ...seed === undefined ? {} : { seed },
  };
}

/** Throws UsageError for flags without effect. */
export function checkSampling(flags: SamplingFlags): void {
  const { topK, topP, minP, seed } = flags;
  if (flags.temperature === undefined) {
    refuseFlags(
      { "--top-k": topK, "--top-p": topP, "--min-p": minP, "--seed": seed },
      "without --temperature: tokens are then chosen greedily. Give --temperature",
    );
  }
  if (flags.stop?.includes("")) {
    throw new UsageError(
      "Cannot use --stop '': it is everywhere. Give a text",
    );
  }
}
