/** Choosing the next token from logits: greedy, or temperature with top-k and top-p, from a seed. */

import { DataError } from "../spec/errors.ts";
import { sum } from "../spec/sum.ts";
import { changesLogits, type PenaltyOptions } from "./penalties.ts";

/** How a token is drawn. Without a temperature, or with 0: the largest logit, the lowest id among equals. */
export interface SamplingOptions extends PenaltyOptions {
  /** Divides the logits. Absent or 0: greedy. */
  readonly temperature?: number;
  /** Only the k largest logits can be drawn. */
  readonly topK?: number;
  /** Only the fewest tokens whose probabilities reach p can be drawn; the likeliest always can. */
  readonly topP?: number;
  /** Only tokens can be drawn whose probability is at least this part of that of the likeliest. */
  readonly minP?: number;
  /** Log-probabilities are wanted, of the chosen token and of so many of the likeliest. */
  readonly logprobs?: number;
  /** Same seed, same tokens. Default 0. */
  readonly seed?: number;
}

/**
 * Random numbers in [0, 1) with 32 bits each: Chris Doty-Humphrey's sfc32, started from (0, stream, seed, 1)
 * and run 15 times. `stream` separates the sequences of a batch, so that each draws the same tokens in any batch.
 *
 * @param seed any integer from 0 to 2^32 - 1
 * @param stream the number of the sequence
 */
export function randomNumbers(seed: number, stream: number): () => number {
  let a = 0, b = stream | 0, c = seed | 0, counter = 1;
  const next = (): number => {
    const result = (a + b + counter) | 0;
    counter = (counter + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = ((c << 21) | (c >>> 11)) + result | 0;
    return (result >>> 0) / 2 ** 32;
  };
  for (let i = 0; i < 15; i++) next();
  return next;
}

/** The tokens that a choice is made from: all of the vocabulary, or the best of it. */
export interface Candidates {
  readonly logits: Float32Array;
  /** Tokens by logit, descending, the lowest id first among equals; absent: logits of all tokens, by id. */
  readonly ids?: Int32Array | undefined;
}

/**
 * How many of the best tokens, by logit, have to be known to draw one: undefined where it may be any of the vocabulary,
 * or more than are worth choosing on a device.
 */
export function candidatesOf(options: SamplingOptions): number | undefined {
  if (changesLogits(options) || options.logprobs !== undefined) {
    return undefined;
  }
  if (!options.temperature) return 1;
  const { topK = Infinity } = options;
  return topK <= MOST_CANDIDATES ? topK : undefined;
}

const MOST_CANDIDATES = 128;

/** A token and the logarithm of its probability, as the model has it before anything is divided or left out. */
export interface Logprob {
  readonly token: number;
  readonly logprob: number;
}

/** That of the chosen token, and of the likeliest. */
export interface Logprobs extends Logprob {
  readonly top: readonly Logprob[];
}

/** Log-probabilities of a token and the `count` likeliest, from the logits of the whole vocabulary. */
export function logprobsOf(
  logits: Float32Array,
  token: number,
  count: number,
): Logprobs {
  const total = logNormalizer(logits);
  const of = (token: number): Logprob => ({
    token,
    logprob: logits[token]! - total,
  });
  const top = [...byLogit(logits).subarray(0, count)].map(of);
  return { ...of(token), top };
}

/** The logarithm of the sum of the exponentials of logits, in f64. Throws DataError for one that is not finite. */
export function logNormalizer(logits: Float32Array): number {
  const max = logits[greedy(logits)]!;
  let total = 0;
  for (const logit of logits) total += Math.exp(logit - max);
  return max + Math.log(total);
}

/** The index of the largest logit, the lowest among equals. */
export function greedy(logits: Float32Array): number {
  let best = 0;
  for (let i = 0; i < logits.length; i++) {
    if (!Number.isFinite(logits[i]!)) {
      throw new DataError(
        `Cannot choose a token: logit ${i} is ${
          logits[i]
        }. Check the weights for values that overflow`,
      );
    }
    if (logits[i]! > logits[best]!) best = i;
  }
  return best;
}

/**
 * Draw a token. `random` gives numbers in [0, 1), and is called once unless the choice is greedy. The same token is drawn
 * from all of the vocabulary as from the best of it, as many as `candidatesOf` says or more.
 */
export function sample(
  { logits, ids }: Candidates,
  options: SamplingOptions & { readonly random: () => number },
): number {
  const best = greedy(logits);
  if (!options.temperature) return ids ? ids[best]! : best;
  const order = ids ? Uint32Array.from(logits.keys()) : byLogit(logits);
  const kept = order.subarray(0, options.topK ?? order.length);
  const weights = Float64Array.from(
    kept,
    (i) => Math.exp((logits[i]! - logits[best]!) / options.temperature!),
  );
  const reach = (options.topP ?? 1) * sum(weights);
  let count = 0;
  for (let total = 0; count < weights.length && total < reach; count++) {
    total += weights[count]!;
  }
  const { minP = 0 } = options;
  const likely = weights.findIndex((weight) => weight < minP * weights[0]!);
  if (likely >= 0) count = Math.min(count, likely);
  const candidates = weights.subarray(0, Math.max(1, count));
  const target = options.random() * sum(candidates);
  let at = 0;
  for (let total = candidates[0]!; total <= target; total += candidates[at]!) {
    if (at === candidates.length - 1) break;
    at++;
  }
  return ids ? ids[kept[at]!]! : kept[at]!;
}

/**
 * Tokens by logit, descending, the lowest id first among equals. A draw adds up probabilities in this order, so it is part
 * of what a seed gives.
 */
function byLogit(logits: Float32Array): Uint32Array {
  // Adding 0 makes -0 the same as 0.
  const bits = new Uint32Array(Float32Array.from(logits, (x) => x + 0).buffer);
  // Numbers of 64 bits that rise as logits fall, then by id: these are sorted without a call for each pair.
  const keys = new Uint32Array(2 * bits.length);
  bits.forEach((x, id) => {
    keys[2 * id] = id;
    keys[2 * id + 1] = x >>> 31 ? x : ~x & 0x7fffffff;
  });
  new BigUint64Array(keys.buffer).sort();
  return bits.map((_, i) => keys[2 * i]!);
}
