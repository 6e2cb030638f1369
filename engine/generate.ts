/** Text from a decoder: feed the prompts, then one token of every unfinished sequence per step. */

import { DataError } from "../spec/errors.ts";
import type { Decoder } from "./decoder.ts";
import {
  checkTokens,
  type PackedTokens,
  packPrompts,
  slicePacked,
} from "./packing.ts";
import {
  type Candidates,
  candidatesOf,
  randomNumbers,
  sample,
  type SamplingOptions,
} from "./sampling.ts";

/** What to generate. */
export interface GenerateOptions extends SamplingOptions {
  /** New tokens of each sequence, at most. */
  readonly maxNewTokens: number;
  /** Tokens that end a sequence. */
  readonly stop: ReadonlySet<number>;
  /** Called with each new token as it is chosen. */
  readonly onToken?: (sequence: number, token: number) => void | Promise<void>;
  /** Time in milliseconds. */
  readonly now?: () => number;
}

/** Why a sequence ended. */
export type Ending = "stop token" | "length" | "context";

/** One continued prompt. */
export interface GeneratedSequence {
  readonly prompt: readonly number[];
  /** New tokens, a stop token included. */
  readonly tokens: readonly number[];
  readonly ending: Ending;
}

/** What was generated, and how long it took. */
export interface Generated {
  readonly sequences: readonly GeneratedSequence[];
  /** Until the first token of the last prompt was chosen. */
  readonly prefillMs: number;
  /** All further steps, and how many there were. */
  readonly decodeMs: number;
  readonly decodeSteps: number;
}

interface Growing {
  readonly prompt: readonly number[];
  readonly tokens: number[];
  readonly random: () => number;
  ending: Ending | undefined;
}

/** Continue prompts (token ids) as one batch. */
export async function generate(
  decoder: Decoder,
  prompts: readonly (readonly number[])[],
  options: GenerateOptions,
): Promise<Generated> {
  checkPrompts(decoder, prompts);
  checkSampling(decoder, options);
  const now = options.now ?? (() => 0);
  const sequences = prompts.map((prompt, i): Growing => ({
    prompt,
    tokens: [],
    random: randomNumbers(options.seed ?? 0, i),
    ending: undefined,
  }));
  const choose = async (number: number, candidates: Candidates) => {
    const sequence = sequences[number]!;
    const token = sample(candidates, { ...options, random: sequence.random });
    sequence.tokens.push(token);
    sequence.ending = endingOf(sequence, token, decoder.maxContext, options);
    await options.onToken?.(number, token);
  };
  const started = now();
  await feed(decoder, packPrompts(prompts), choose);
  const prefilled = now();
  let decodeSteps = 0;
  for (;; decodeSteps++) {
    const next = nextTokens(sequences);
    if (next.ids.length === 0) break;
    await feed(decoder, next, choose);
  }
  return {
    sequences: sequences.map(({ prompt, tokens, ending }) => ({
      prompt,
      tokens,
      ending: ending!,
    })),
    prefillMs: prefilled - started,
    decodeMs: now() - prefilled,
    decodeSteps,
  };
}

// Run tokens in steps that the plan has room for, and give what may follow the last token of each sequence.
async function feed(
  decoder: Decoder,
  packed: PackedTokens,
  choose: (sequence: number, candidates: Candidates) => Promise<void>,
): Promise<void> {
  const count = packed.ids.length;
  for (let from = 0; from < count; from += decoder.maxTokens) {
    const step = slicePacked(
      packed,
      from,
      Math.min(count, from + decoder.maxTokens),
    );
    const ends: number[] = [];
    step.sequence.forEach((sequence, i) => {
      if (packed.sequence[from + i + 1] !== sequence) ends.push(i);
    });
    const next = await decoder.next(step, ends);
    for (let i = 0; i < ends.length; i++) {
      await choose(step.sequence[ends[i]!]!, next[i]!);
    }
  }
}

function nextTokens(sequences: readonly Growing[]): PackedTokens {
  const live = [...sequences.entries()].filter(([, { ending }]) => !ending);
  return {
    ids: Int32Array.from(live, ([, { tokens }]) => tokens.at(-1)!),
    sequence: Int32Array.from(live, ([number]) => number),
    position: Int32Array.from(
      live,
      ([, { prompt, tokens }]) => prompt.length + tokens.length - 1,
    ),
    cell: new Int32Array(live.length),
  };
}

function endingOf(
  sequence: Growing,
  token: number,
  maxContext: number,
  options: GenerateOptions,
): Ending | undefined {
  if (options.stop.has(token)) return "stop token";
  if (sequence.tokens.length >= options.maxNewTokens) return "length";
  // The new token would be fed at this position.
  const position = sequence.prompt.length + sequence.tokens.length - 1;
  return position >= maxContext ? "context" : undefined;
}

function checkSampling(decoder: Decoder, options: SamplingOptions): void {
  const { gives, vocabulary } = decoder;
  if (typeof gives === "string") return;
  const needed = Math.min(candidatesOf(options) ?? vocabulary, vocabulary);
  if (needed <= gives.candidates) return;
  throw new DataError(
    `Cannot draw from the best ${needed} tokens: the plan gives the best ${gives.candidates}. Compile it for more candidates`,
  );
}

function checkPrompts(
  decoder: Decoder,
  prompts: readonly (readonly number[])[],
): void {
  if (prompts.length > decoder.maxSequences) {
    throw new DataError(
      `Cannot generate from ${prompts.length} prompts: there is room for ${decoder.maxSequences}. Raise --max-sequences`,
    );
  }
  prompts.forEach((prompt, i) => {
    if (prompt.length === 0) {
      throw new DataError(
        `Cannot generate from prompt ${
          i + 1
        }: it has no tokens. Give it some text`,
      );
    }
    if (prompt.length > decoder.maxContext) {
      throw new DataError(
        `Cannot generate from prompt ${
          i + 1
        }: it has ${prompt.length} tokens, and the context has ${decoder.maxContext}. Shorten it or raise --max-context`,
      );
    }
    checkTokens(
      prompt,
      decoder.vocabulary,
      (at) => `prompt ${i + 1}, token ${at + 1}`,
    );
  });
}
