/** Text generation: continues prompts as one batch, and measures time. */

import { Batch } from "./batch.ts";
import type { Decoder } from "./decoder.ts";
import type { TokenGrammar } from "../text/grammar.ts";
import type { Logprobs } from "./sampling.ts";
import type { BatchSequence, Ending, SequenceOptions } from "./sequence.ts";
import type {
  Speculation,
  SpeculationStats,
} from "./speculation/speculation.ts";

/** Options of generation. */
export interface GenerateOptions extends
  Omit<
    SequenceOptions,
    "stream" | "forced" | "grammar" | "onToken" | "onEnd"
  > {
  /** The grammar of each prompt's new tokens. Default: any tokens. */
  readonly grammars?: readonly TokenGrammar[];
  /** Called with each new token. "stop" ends the sequence. With several processes, all must return the same. */
  readonly onToken?: (
    sequence: number,
    token: number,
    logprobs: Logprobs | undefined,
  ) => void | "stop" | Promise<void | "stop">;
  /** Tokens whose keys and values are cached in the slot of the first prompt. Default: none. */
  readonly cached?: readonly number[];
  /** Drafts tokens. Default: none are drafted. */
  readonly speculation?: Speculation | undefined;
  /** A clock in milliseconds. */
  readonly now?: () => number;
}

/** One continued prompt. */
export interface GeneratedSequence {
  readonly prompt: readonly number[];
  /** New tokens, including a stop token. */
  readonly tokens: readonly number[];
  readonly ending: Ending;
  /** Log-probabilities of each new token, if requested. */
  readonly logprobs?: readonly Logprobs[];
  /** Hashes of logits, with `receipt`. */
  readonly hashes: BatchSequence["hashes"];
}

/** Generated sequences, and times. */
export interface Generated {
  readonly sequences: readonly GeneratedSequence[];
  /** Milliseconds until the first token of the first prompts. */
  readonly firstMs: number;
  /** Milliseconds of all steps with prompt tokens, and the number of these tokens. */
  readonly prefillMs: number;
  readonly prefillTokens: number;
  /** Milliseconds of all other steps, and their number. */
  readonly decodeMs: number;
  readonly decodeSteps: number;
  /** Results of speculation, with it. */
  readonly speculation?: SpeculationStats;
}

/**
 * Continues prompts (token ids), as many at a time as the decoder has room for; when a sequence ends, the next prompt
 * is added. Sequences are independent of each other.
 */
export async function generate(
  decoder: Decoder,
  prompts: readonly (readonly number[])[],
  {
    onToken,
    cached = [],
    speculation,
    grammars,
    now = () => 0,
    ...options
  }: GenerateOptions,
): Promise<Generated> {
  // The pages of the last sequence may be reused.
  const batch = new Batch(decoder, { retainsLast: true, speculation });
  const sequences = prompts.map((prompt, index) =>
    batch.add(prompt, {
      ...options,
      grammar: grammars?.[index],
      ...onToken
        ? { onToken: (token, logprobs) => onToken(index, token, logprobs) }
        : {},
    }, index === 0 ? { fed: cachedLength(decoder, prompt, cached) } : {})
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
    sequences: sequences.map((
      { prompt, tokens, ending, logprobs, hashes },
    ) => ({
      prompt,
      tokens,
      hashes,
      ending: ending!,
      ...options.logprobs === undefined ? {} : { logprobs },
    })),
    firstMs,
    prefillMs,
    prefillTokens,
    decodeMs,
    decodeSteps,
    ...speculation ? { speculation: speculation.stats } : {},
  };
}

/**
 * Number of cached tokens of the first prompt that need not be fed: not the last one, which the next token follows.
 * Frees all other pages. A decoder with recurrent states continues from its last token, or starts again.
 */
function cachedLength(
  { pages, shape: { recurrent, maxSequences } }: Decoder,
  prompt: readonly number[],
  cached: readonly number[],
): number {
  const differs = prompt.findIndex((token, i) => token !== cached[i]);
  const shared = differs < 0 ? Math.max(0, prompt.length - 1) : differs;
  const length = recurrent && shared < cached.length ? 0 : shared;
  if (!pages) return length;
  for (let slot = 1; slot < maxSequences; slot++) pages.keep(slot, 0);
  const retained = pages.keep(0, length);
  return retained === length || !recurrent ? retained : pages.keep(0, 0);
}
