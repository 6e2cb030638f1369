/** Text from a decoder: prompts continued as one batch, and how long it took. */

import { Batch, type Ending, type SequenceOptions } from "./batch.ts";
import type { Decoder } from "./decoder.ts";
import type { Logprobs } from "./sampling.ts";

/** What to generate. */
export interface GenerateOptions
  extends Omit<SequenceOptions, "stream" | "forced" | "onToken" | "onEnd"> {
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

/**
 * Continue prompts (token ids), as many at a time as the decoder has room for: where a sequence ends, the next prompt takes
 * its place. What a sequence becomes does not depend on the others.
 */
export async function generate(
  decoder: Decoder,
  prompts: readonly (readonly number[])[],
  { onToken, cached = [], now = () => 0, ...options }: GenerateOptions,
): Promise<Generated> {
  // What the last one has may be gone on with.
  const batch = new Batch(decoder, { retainsLast: true });
  const sequences = prompts.map((prompt, index) =>
    batch.add(prompt, {
      ...options,
      ...onToken ? { onToken: (...of) => onToken(index, ...of) } : {},
    }, index === 0 ? { fed: keptLength(decoder, prompt, cached) } : {})
  );
  let [firstMs, prefillMs, decodeMs] = [0, 0, 0];
  let [prefillTokens, decodeSteps] = [0, 0];
  const started = now();
  for (;;) {
    const begun = now();
    const step = await batch.step();
    if (!step) break;
    const ended = now();
    if (firstMs === 0 && step.chosen > 0) firstMs = ended - started;
    prefillTokens += step.prompted;
    if (step.prompted > 0) prefillMs += ended - begun;
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

/**
 * Tokens of the first prompt that need not be fed, as the caches have them: not the last one, which the next follows. Frees
 * all other pages. A decoder with recurrent states goes on from the last token that it has, or begins anew.
 */
function keptLength(
  { pages, recurrent, maxSequences }: Decoder,
  prompt: readonly number[],
  cached: readonly number[],
): number {
  const differs = prompt.findIndex((token, i) => token !== cached[i]);
  const shared = differs < 0 ? Math.max(0, prompt.length - 1) : differs;
  const length = recurrent && shared < cached.length ? 0 : shared;
  if (!pages) return length;
  for (let slot = 1; slot < maxSequences; slot++) pages.keep(slot, 0);
  const kept = pages.keep(0, length);
  return kept === length || !recurrent ? kept : pages.keep(0, 0);
}
