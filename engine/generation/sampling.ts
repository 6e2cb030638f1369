/** Sampling of the next token from logits: greedy, or temperature with top-k and top-p, from a seed. */

import { DataError } from "../../spec/errors.ts";
import type { TokenGrammar } from "../text/grammar.ts";
import { changesLogits, type PenaltyOptions } from "./penalties.ts";

/** Sampling options. With temperature 0 or none: the largest logit, the lowest id among equals. */
export interface SamplingOptions extends PenaltyOptions {
  /** Divides the logits. Absent or 0: greedy. */
  readonly temperature?: number;
  /** Restricts sampling to the k largest logits. */
  readonly topK?: number;
  /** Restricts sampling to the smallest set of tokens whose probabilities reach p, including at least the likeliest. */
  readonly topP?: number;
  /** Restricts sampling to tokens with at least this fraction of the probability of the likeliest. */
  readonly minP?: number;
  /** Requests log-probabilities of the chosen token and of this many likeliest ones. */
  readonly logprobs?: number;
  /** Restricts sampling to the tokens that a grammar allows after the generated ones. */
  readonly grammar?: TokenGrammar | undefined;
  /** With `logprobs`: whether the entropy of each distribution is computed. Default: false. */
  readonly entropy?: boolean;
  /** Seed. The same seed gives the same tokens at the same index of a batch. Default: 0. */
  readonly seed?: number;
}

/**
 * Random numbers in [0, 1) with 32 bits each: Chris Doty-Humphrey's sfc32, initialized with (0, stream, seed, 1) and
 * run 15 times. `stream` separates the sequences of a batch, so that each draws the same tokens in any batch.
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

/** Chosen experts of one token, by layer with a router. */
export type RoutedExperts = readonly (readonly number[])[];

/** Candidate tokens: the entire vocabulary, or the best of it. */
export interface Candidates {
  readonly logits: Float32Array;
  /** Tokens by logit, descending, the lowest id first among equals. Absent: logits of all tokens, by id. */
  readonly ids?: Int32Array | undefined;
  /** The log-sum-exp of the logits of the entire vocabulary, computed by the device. */
  readonly normalizer?: number | undefined;
  /** The experts that the routers of layers chose for the token before, by layer, if they were requested. */
  readonly experts?: RoutedExperts | undefined;
}

/**
 * Number of best tokens, by logit, that a draw needs. Undefined if it needs the entire vocabulary, or more than is
 * worth selecting on a device.
 */
export function candidatesOf(options: SamplingOptions): number | undefined {
  if (
    changesLogits(options) || options.logprobs !== undefined || options.grammar
  ) return undefined;
  if (!options.temperature) return 1;
  const { topK = Infinity } = options;
  return topK <= MAX_CANDIDATES ? topK : undefined;
}

const MAX_CANDIDATES = 128;

/** A token and its log-probability, before any sampling options. */
export interface Logprob {
  readonly token: number;
  readonly logprob: number;
}

/** Log-probabilities of the chosen token and of the likeliest ones. */
export interface Logprobs extends Logprob {
  readonly top: readonly Logprob[];
  /** Entropy of the distribution in nats, if requested. */
  readonly entropy?: number;
}

/**
 * Log-probabilities of a token and of the `logprobs` likeliest, from the logits of the entire vocabulary. With a
 * normalizer of the device they have the bits of the op `logProbabilities`; otherwise they are computed in f64.
 */
export function logprobsOf(
  { logits, normalizer }: Candidates,
  token: number,
  { logprobs = 0, entropy = false }: Pick<
    SamplingOptions,
    "logprobs" | "entropy"
  >,
): Logprobs {
  const total = normalizer ?? logNormalizer(logits);
  const of = (token: number): Logprob => {
    const logprob = logits[token]! - total;
    return {
      token,
      logprob: normalizer === undefined ? logprob : Math.fround(logprob),
    };
  };
  const top = logprobs === 0 ? [] : largest(logits, logprobs).map(of);
  const known = { ...of(token), top };
  return entropy ? { ...known, entropy: entropyOf(logits, total) } : known;
}

/** The `count` tokens with the largest logits, as `byLogit` orders them. A few are selected without sorting. */
function largest(logits: Float32Array, count: number): number[] {
  if (count > MAX_SELECTED) return [...byLogit(logits).subarray(0, count)];
  const best: number[] = [];
  let least = -Infinity;
  for (let token = 0; token < logits.length; token++) {
    const logit = logits[token]!;
    if (best.length === count && !(logit > least)) continue;
    let at = best.length;
    while (at > 0 && logit > logits[best[at - 1]!]!) at--;
    best.splice(at, 0, token);
    if (best.length > count) best.pop();
    least = logits[best.at(-1)!]!;
  }
  return best;
}

/** More tokens are sorted. */
const MAX_SELECTED = 64;

function entropyOf(logits: Float32Array, normalizer: number): number {
  let entropy = 0;
  for (const logit of logits) {
    entropy += Math.exp(logit - normalizer) * (normalizer - logit);
  }
  return entropy;
}

/** The log-sum-exp of logits, in f64. Throws DataError for a non-finite one. */
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
 * The allowed tokens of the entire vocabulary. A greedy choice needs only the best. Empty if none is allowed.
 *
 * @param allowed as `TokenGrammar.allowed` returns them
 */
export function allowedOf(
  logits: Float32Array,
  { allowed = new Int32Array(), options: { temperature = 0 } }: {
    readonly allowed: Int32Array | undefined;
    readonly options: SamplingOptions;
  },
): Candidates {
  const isAllowed = (token: number) =>
    (allowed[token >>> 5]! >>> (token & 31) & 1) === 1;
  // Throws for a logit that is not finite.
  greedy(logits);
  let ids: Int32Array;
  if (temperature > 0) ids = Int32Array.from(byLogit(logits).filter(isAllowed));
  else {
    let best: number | undefined;
    for (let token = 0; token < logits.length; token++) {
      if (!isAllowed(token)) continue;
      if (best === undefined || logits[token]! > logits[best]!) best = token;
    }
    ids = Int32Array.from(best === undefined ? [] : [best]);
  }
  return { logits: Float32Array.from(ids, (token) => logits[token]!), ids };
}

/**
 * Samples a token. `random` returns numbers in [0, 1), and is called once unless the choice is greedy. The result is
 * the same for the entire vocabulary and for its best tokens, if there are at least `candidatesOf` of them.
 */
export function sample(
  { logits, ids }: Candidates,
  options: SamplingOptions & { readonly random: () => number },
): number {
  const best = greedy(logits);
  if (!options.temperature) return ids ? ids[best]! : best;
  const { temperature, topK = Infinity, topP = 1, minP = 0, random } = options;
  const order = ids ? undefined : byLogit(logits);
  const weights = new Float64Array(Math.min(topK, logits.length));
  for (let i = 0; i < weights.length; i++) {
    const logit = logits[order ? order[i]! : i]!;
    weights[i] = Math.exp((logit - logits[best]!) / temperature);
  }
  const threshold = topP * totalOf(weights);
  let count = 0;
  for (let total = 0; count < weights.length && total < threshold; count++) {
    total += weights[count]!;
  }
  const likely = minP === 0
    ? -1
    : weights.findIndex((weight) => weight < minP * weights[0]!);
  if (likely >= 0) count = Math.min(count, likely);
  const candidates = weights.subarray(0, Math.max(1, count));
  const target = random() * totalOf(candidates);
  let at = 0;
  for (let total = candidates[0]!; total <= target; total += candidates[at]!) {
    if (at === candidates.length - 1) break;
    at++;
  }
  return (order ?? ids!)[at]!;
}

/** The same as `sum`, faster on a vocabulary: without an iterator. */
function totalOf(weights: Float64Array): number {
  let total = 0;
  for (let i = 0; i < weights.length; i++) total += weights[i]!;
  return total;
}

/**
 * Tokens by logit, descending, the lowest id first among equals. A draw adds probabilities in this order, so it
 * determines the tokens of a seed.
 */
function byLogit(logits: Float32Array): Uint32Array {
  const count = logits.length;
  // Adding 0 makes -0 equal to 0. Keys that increase as logits decrease are radix-sorted, which is stable.
  let keys = new Uint32Array(count);
  const numbers = new Float32Array(keys.buffer);
  let ids = new Uint32Array(count);
  for (let i = 0; i < count; i++) {
    numbers[i] = logits[i]! + 0;
    const bits = keys[i]!;
    keys[i] = bits >>> 31 ? bits : ~bits & 0x7fffffff;
    ids[i] = i;
  }
  let [toKeys, toIds] = [new Uint32Array(count), new Uint32Array(count)];
  for (let shift = 0; shift < 32; shift += DIGIT_BITS) {
    const starts = new Uint32Array(DIGITS + 1);
    for (let i = 0; i < count; i++) {
      starts[((keys[i]! >>> shift) & (DIGITS - 1)) + 1]!++;
    }
    for (let digit = 1; digit < DIGITS; digit++) {
      starts[digit]! += starts[digit - 1]!;
    }
    for (let i = 0; i < count; i++) {
      const at = starts[(keys[i]! >>> shift) & (DIGITS - 1)]!++;
      toKeys[at] = keys[i]!;
      toIds[at] = ids[i]!;
    }
    [keys, toKeys, ids, toIds] = [toKeys, keys, toIds, ids];
  }
  return ids;
}

/** Bits per digit of the radix sort. */
const DIGIT_BITS = 11, DIGITS = 2 ** DIGIT_BITS;
