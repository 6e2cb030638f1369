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
  type Logprobs,
  logprobsOf,
  penalize,
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
  /** Called with each new token as it is chosen; "stop" ends the sequence. Ranks that are processes must all say the same. */
  readonly onToken?: (
    sequence: number,
    token: number,
    logprobs: Logprobs | undefined,
  ) => void | "stop" | Promise<void | "stop">;
  /** Tokens that the decoder has the keys and values of, in the place of the first prompt. Default: none. */
  readonly cached?: readonly number[];
  /** Time in milliseconds. */
  readonly now?: () => number;
}

/** Why a sequence ended. */
export type Ending = "stop token" | "stop text" | "length" | "context";

/** One continued prompt. */
export interface GeneratedSequence {
  readonly prompt: readonly number[];
  /** New tokens, a stop token included. */
  readonly tokens: readonly number[];
  readonly ending: Ending;
  /** Of each new token, if they are asked for. */
  readonly logprobs?: readonly Logprobs[];
}

/** What was generated, and how long it took. */
export interface Generated {
  readonly sequences: readonly GeneratedSequence[];
  /** Until the first token of the first prompts was chosen. */
  readonly firstMs: number;
  /** All steps that take prompts, and how many tokens of prompts there were. */
  readonly prefillMs: number;
  readonly prefillTokens: number;
  /** All further steps, and how many there were. */
  readonly decodeMs: number;
  readonly decodeSteps: number;
}

interface Growing {
  readonly index: number;
  readonly prompt: readonly number[];
  readonly tokens: number[];
  readonly logprobs: Logprobs[];
  readonly random: () => number;
  ending: Ending | undefined;
}

/** Sequences by the place in the cache that they have. */
type Slots = (Growing | undefined)[];

/**
 * Continue prompts (token ids), as many at a time as the decoder has room for: where a sequence ends, the next prompt takes
 * its place. What a sequence becomes does not depend on the others.
 */
export async function generate(
  decoder: Decoder,
  prompts: readonly (readonly number[])[],
  options: GenerateOptions,
): Promise<Generated> {
  checkPrompts(decoder, prompts);
  checkSampling(decoder, options);
  const now = options.now ?? (() => 0);
  const sequences = prompts.map((prompt, index): Growing => ({
    ...{ index, prompt, tokens: [], logprobs: [], ending: undefined },
    random: randomNumbers(options.seed ?? 0, index),
  }));
  const waiting = [...sequences];
  const slots: Slots = Array.from({ length: decoder.maxSequences });
  const choose = async (slot: number, candidates: Candidates) => {
    const sequence = slots[slot]!;
    await grow(sequence, candidates, options);
    sequence.ending ??= endingOf(sequence, decoder.maxContext, options);
    if (sequence.ending) slots[slot] = undefined;
  };
  let { cached = [] } = options;
  let [firstMs, prefillMs, prefillTokens, decodeMs, decodeSteps] = [
    ...[0, 0, 0, 0, 0],
  ] as [number, number, number, number, number];
  for (;;) {
    const begun = now();
    const admitted = admit(slots, waiting);
    if (admitted.length > 0) {
      const packed = packAdmitted(admitted, cached);
      cached = [];
      await feed(decoder, packed, choose);
      const ms = now() - begun;
      if (prefillTokens === 0) firstMs = ms;
      prefillMs += ms;
      prefillTokens += packed.ids.length;
      continue;
    }
    const next = nextTokens(slots);
    if (next.ids.length === 0) break;
    await feed(decoder, next, choose);
    decodeMs += now() - begun;
    decodeSteps++;
  }
  return {
    sequences: sequences.map(({ prompt, tokens, ending, logprobs }) => ({
      ...{ prompt, tokens, ending: ending! },
      ...options.logprobs === undefined ? {} : { logprobs },
    })),
    ...{ firstMs, prefillMs, prefillTokens, decodeMs, decodeSteps },
  };
}

/** Choose the next token of a sequence, and report it. */
async function grow(
  sequence: Growing,
  candidates: Candidates,
  options: GenerateOptions,
): Promise<void> {
  const { index, prompt, tokens, random, logprobs } = sequence;
  const { repeatPenalty = 1 } = options;
  const logits = repeatPenalty === 1
    ? candidates.logits
    : penalize(candidates.logits, [...prompt, ...tokens], repeatPenalty);
  const token = sample({ ...candidates, logits }, { ...options, random });
  tokens.push(token);
  const known = options.logprobs === undefined
    ? undefined
    : logprobsOf(candidates.logits, token, options.logprobs);
  if (known) logprobs.push(known);
  const stops = await options.onToken?.(index, token, known) === "stop";
  if (stops && !options.stop.has(token)) sequence.ending = "stop text";
}

/** Give waiting sequences the places that are free. */
function admit(
  slots: Slots,
  waiting: Growing[],
): [slot: number, sequence: Growing][] {
  const admitted: [number, Growing][] = [];
  for (let slot = 0; slot < slots.length && waiting.length > 0; slot++) {
    if (slots[slot]) continue;
    slots[slot] = waiting.shift()!;
    admitted.push([slot, slots[slot]!]);
  }
  return admitted;
}

/** The prompts of sequences that begin. Of the first, what is cached is left out, but for its last token. */
function packAdmitted(
  admitted: readonly (readonly [slot: number, sequence: Growing])[],
  cached: readonly number[],
): PackedTokens {
  const packed = packPrompts(admitted.map(([, { prompt }]) => prompt));
  const first = admitted[0]![1].prompt;
  const differs = first.findIndex((token, i) => token !== cached[i]);
  const skipped = differs < 0 ? first.length - 1 : differs;
  const rest = slicePacked(packed, skipped, packed.ids.length);
  return { ...rest, sequence: rest.sequence.map((i) => admitted[i]![0]) };
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

function nextTokens(slots: Slots): PackedTokens {
  const live = slots.flatMap((sequence, slot) =>
    sequence ? [[slot, sequence] as const] : []
  );
  return {
    ids: Int32Array.from(live, ([, { tokens }]) => tokens.at(-1)!),
    sequence: Int32Array.from(live, ([slot]) => slot),
    position: Int32Array.from(
      live,
      ([, { prompt, tokens }]) => prompt.length + tokens.length - 1,
    ),
    cell: new Int32Array(live.length),
  };
}

function endingOf(
  { prompt, tokens }: Growing,
  maxContext: number,
  options: GenerateOptions,
): Ending | undefined {
  if (options.stop.has(tokens.at(-1)!)) return "stop token";
  if (tokens.length >= options.maxNewTokens) return "length";
  // The new token would be fed at this position.
  const position = prompt.length + tokens.length - 1;
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
