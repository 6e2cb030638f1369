/** Text from a decoder: every step takes one token of each sequence that grows, and what else there is room for of prompts. */

import { DataError } from "../spec/errors.ts";
import type { Decoder } from "./decoder.ts";
import { checkTokens, type PackedTokens } from "./packing.ts";
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
  /** All steps that take tokens of prompts, and how many of these there were. */
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
  /** Tokens of the prompt that the decoder has. */
  fed: number;
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
    ...{ index, prompt, tokens: [], logprobs: [], fed: 0, ending: undefined },
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
  const [first] = sequences;
  if (first) first.fed = sharedLength(first.prompt, options.cached ?? []);
  let [firstMs, prefillMs, prefillTokens, decodeMs, decodeSteps] = [
    ...[0, 0, 0, 0, 0],
  ] as [number, number, number, number, number];
  const started = now();
  for (;;) {
    const begun = now();
    admit(slots, waiting);
    const { tokens, ends, prompted } = nextStep(slots, decoder.maxTokens);
    if (tokens.ids.length === 0) break;
    const next = await decoder.next(tokens, ends);
    for (let i = 0; i < ends.length; i++) {
      await choose(tokens.sequence[ends[i]!]!, next[i]!);
    }
    const ended = now();
    if (firstMs === 0 && ends.length > 0) firstMs = ended - started;
    prefillTokens += prompted;
    if (prompted > 0) prefillMs += ended - begun;
    else {
      decodeMs += ended - begun;
      decodeSteps++;
    }
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
function admit(slots: Slots, waiting: Growing[]): void {
  for (let slot = 0; slot < slots.length && waiting.length > 0; slot++) {
    slots[slot] ??= waiting.shift()!;
  }
}

/** How many tokens of a prompt need not be fed, as the decoder has them: not the last one, which the next follows. */
function sharedLength(
  prompt: readonly number[],
  cached: readonly number[],
): number {
  const differs = prompt.findIndex((token, i) => token !== cached[i]);
  return differs < 0 ? prompt.length - 1 : differs;
}

/** Tokens of one step, those that a next token follows, and how many are of prompts. */
interface StepTokens {
  readonly tokens: PackedTokens;
  readonly ends: readonly number[];
  readonly prompted: number;
}

/**
 * The next step, of at most `most` tokens: the last token of every sequence that grows, so that none waits for the prompt of
 * another, then as much of prompts as there is room for. Where a step has two tokens, one is left to prompts in any case.
 */
function nextStep(slots: Slots, most: number): StepTokens {
  const taken: { slot: number; id: number; at: number }[] = [];
  const ends: number[] = [];
  const live = [...slots.entries()].flatMap(([slot, growing]) =>
    growing ? [{ slot, growing }] : []
  );
  const isFresh = ({ growing: { fed, prompt } }: typeof live[number]) =>
    fed < prompt.length;
  const fresh = live.filter(isFresh);
  const grown = live.filter((one) => !isFresh(one))
    .sort((a, b) => a.growing.tokens.length - b.growing.tokens.length);
  const room = fresh.length > 0 ? Math.max(1, most - 1) : most;
  for (const { slot, growing: { prompt, tokens } } of grown.slice(0, room)) {
    ends.push(taken.length);
    const at = prompt.length + tokens.length - 1;
    taken.push({ slot, id: tokens.at(-1)!, at });
  }
  const before = taken.length;
  for (const { slot, growing } of fresh) {
    const { prompt } = growing;
    for (; growing.fed < prompt.length && taken.length < most; growing.fed++) {
      if (growing.fed + 1 === prompt.length) ends.push(taken.length);
      taken.push({ slot, id: prompt[growing.fed]!, at: growing.fed });
    }
  }
  return {
    ends,
    prompted: taken.length - before,
    tokens: {
      ids: Int32Array.from(taken, ({ id }) => id),
      sequence: Int32Array.from(taken, ({ slot }) => slot),
      position: Int32Array.from(taken, ({ at }) => at),
      cell: new Int32Array(taken.length),
    },
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
