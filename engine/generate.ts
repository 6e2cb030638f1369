/** Text from a decoder: every step takes one token of each sequence that grows, and what else there is room for of prompts. */

import { DataError } from "../spec/errors.ts";
import type { Decoder } from "./decoder.ts";
import { checkTokens } from "./packing.ts";
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
import { admit, nextStep, type Scheduled, type Slots } from "./schedule.ts";

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

interface Growing extends Scheduled {
  readonly index: number;
  readonly tokens: number[];
  readonly logprobs: Logprobs[];
  readonly random: () => number;
  ending: Ending | undefined;
}

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
    index,
    prompt,
    tokens: [],
    logprobs: [],
    fed: 0,
    ending: undefined,
    random: randomNumbers(options.seed ?? 0, index),
  }));
  const waiting = [...sequences];
  const slots: Slots<Growing> = Array.from({ length: decoder.maxSequences });
  const choose = async (slot: number, candidates: Candidates) => {
    const sequence = slots[slot]!;
    await grow(sequence, candidates, options);
    sequence.ending ??= endingOf(sequence, decoder.maxContext, options);
    if (!sequence.ending) return;
    slots[slot] = undefined;
    // What the last one has may be gone on with.
    if (waiting.length > 0 || slots.some((other) => other)) {
      decoder.pages?.keep(slot, 0);
    }
  };
  const [first] = sequences;
  if (first) first.fed = keptLength(decoder, first.prompt, options);
  if (first && decoder.pages) {
    const kept = decoder.pages.keep(0, first.fed);
    const whole = kept === first.fed || !decoder.recurrent;
    first.fed = whole ? kept : decoder.pages.keep(0, 0);
    for (let slot = 1; slot < slots.length; slot++) decoder.pages.keep(slot, 0);
  }
  let [firstMs, prefillMs, decodeMs] = [0, 0, 0];
  let [prefillTokens, decodeSteps] = [0, 0];
  const started = now();
  for (;;) {
    const begun = now();
    const places = { slots, waiting, pages: decoder.pages };
    admit(places);
    const { tokens, ends, prompted } = nextStep(places, decoder.maxTokens);
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
      prompt,
      tokens,
      ending: ending!,
      ...options.logprobs === undefined ? {} : { logprobs },
    })),
    firstMs,
    prefillMs,
    prefillTokens,
    decodeMs,
    decodeSteps,
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

/** How many tokens of a prompt need not be fed, as the decoder has them: not the last one, which the next follows. */
function sharedLength(
  prompt: readonly number[],
  cached: readonly number[],
): number {
  const differs = prompt.findIndex((token, i) => token !== cached[i]);
  return differs < 0 ? prompt.length - 1 : differs;
}

/** The same of a decoder; one with recurrent states goes on from the last token that it has, or begins anew. */
function keptLength(
  { recurrent }: Decoder,
  prompt: readonly number[],
  { cached = [] }: GenerateOptions,
): number {
  const length = sharedLength(prompt, cached);
  return recurrent && length < cached.length ? 0 : length;
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
