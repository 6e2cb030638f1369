/** A sequence of a batch: its options, and the choice of its next token. */

import { penalize } from "./penalties.ts";
import { type LogitsHash, logitsHash } from "./receipt/receipt.ts";
import {
  allowedOf,
  type Candidates,
  candidatesOf,
  type Logprobs,
  logprobsOf,
  type RoutedExperts,
  sample,
  type SamplingOptions,
} from "./sampling.ts";
import { lengthOf, type Scheduled } from "./schedule.ts";

/** Data of a new token, if it was requested. */
export interface TokenRecord {
  /** The hash of the logits before the token, with `receipt`, before some tokens. */
  readonly hash?: LogitsHash | undefined;
  /** The experts of the token before. */
  readonly experts?: RoutedExperts | undefined;
  /** Prompt tokens whose keys and values were cached, with the first new token, if there are any. */
  readonly cached?: number | undefined;
}

/** Options of one sequence. */
export interface SequenceOptions extends SamplingOptions {
  /** Maximum new tokens. */
  readonly maxNewTokens: number;
  /** Tokens that end the sequence. */
  readonly stop: ReadonlySet<number>;
  /** Random stream of the seed. Default: the index of the sequence in its batch. */
  readonly stream?: number;
  /** First new tokens, given instead of sampled; they count as new tokens. Default: none. */
  readonly forced?: readonly number[];
  /** Whether logits are hashed for a receipt. Default: false. */
  readonly receipt?: boolean;
  /** Called with each new token. "stop" ends the sequence. With several processes, all must return the same. */
  readonly onToken?: (
    token: number,
    logprobs: Logprobs | undefined,
    record: TokenRecord,
  ) => void | "stop" | Promise<void | "stop">;
  /** Whether `onToken` receives the experts of the token before each new one. Default: false. */
  readonly experts?: boolean;
  /** Called when the sequence ends, but not when it is cancelled. */
  readonly onEnd?: (ending: Ending) => void;
}

/** Why a sequence ended. */
export type Ending = "stop token" | "stop text" | "length" | "context";

/** A sequence of a batch. */
export interface BatchSequence {
  readonly prompt: readonly number[];
  /** New tokens, including a stop token. */
  readonly tokens: readonly number[];
  /** Log-probabilities of each new token, if requested. */
  readonly logprobs: readonly Logprobs[];
  /** Hashes of logits before some new tokens, for a receipt. */
  readonly hashes: readonly LogitsHash[];
  /** Undefined for a running or cancelled sequence. */
  readonly ending: Ending | undefined;
}

/** A sequence that the batch schedules. */
export interface Growing extends Scheduled, BatchSequence {
  readonly tokens: number[];
  readonly logprobs: Logprobs[];
  readonly hashes: LogitsHash[];
  readonly options: SequenceOptions;
  readonly random: () => number;
  ending: Ending | undefined;
  cancelled: boolean;
}

/** Number of best tokens that each sequence needs. Undefined: all. */
export function neededBy(sequences: readonly Growing[]): number | undefined {
  let max = 0;
  for (const { options } of sequences) {
    const needed = options.receipt ? undefined : candidatesOf(options);
    if (needed === undefined) return undefined;
    max = Math.max(max, needed);
  }
  return max;
}

/** Chooses and reports the next token of a sequence. */
export async function grow(
  sequence: Growing,
  candidates: Candidates,
): Promise<void> {
  const { tokens, random, logprobs, hashes, options } = sequence;
  const hash = options.receipt &&
    await logitsHash(candidates.logits, tokens.length);
  if (hash) hashes.push(hash);
  let token = options.forced?.[tokens.length];
  if (token === undefined) {
    const { grammar, stop } = options;
    const logits = penalize(candidates.logits, sequence, options);
    const allowed = await grammar?.allowed();
    const from = grammar
      ? allowedOf(logits, { allowed, options })
      : { ...candidates, logits };
    if (from.logits.length === 0) {
      sequence.ending = "stop text";
      return;
    }
    token = sample(from, { ...options, random });
    if (!stop.has(token)) grammar?.accept(token);
  }
  tokens.push(token);
  const known = options.logprobs === undefined
    ? undefined
    : logprobsOf(candidates, token, options);
  if (known) logprobs.push(known);
  const record = {
    hash: hash || undefined,
    experts: options.experts ? candidates.experts : undefined,
    cached: tokens.length === 1 && sequence.cached > 0
      ? sequence.cached
      : undefined,
  };
  const stops = await options.onToken?.(token, known, record) === "stop";
  if (stops && !options.stop.has(token)) sequence.ending = "stop text";
}

/** Why a sequence ends with its last token. Undefined if it continues. */
export function endingOf(
  sequence: Growing,
  maxContext: number,
): Ending | undefined {
  const { tokens, options } = sequence;
  const forced = tokens.length <= (options.forced?.length ?? 0);
  if (!forced && options.stop.has(tokens.at(-1)!)) return "stop token";
  if (tokens.length >= options.maxNewTokens) return "length";
  // Position of the new token.
  const position = lengthOf(sequence) - 1;
  return position >= maxContext ? "context" : undefined;
}
