/**
 * Random inputs for routers, from a seed. An element depends only on the seed, the stream and its index, so a run can
 * be replayed, and ranks with a shard of an input draw the same.
 */

import { DataError } from "../spec/errors.ts";

/** Selection of random numbers. */
export interface NoiseOptions {
  /** Seed, an integer below 2^53. The same seed gives the same numbers. */
  readonly seed: number;
  /** Separates draws from one seed: a layer, or a run. An integer below 2^32. Default: 0. */
  readonly stream?: number;
  /** The index of the first number. Default: 0. */
  readonly first?: number;
}

/** Options of `uniformNoise`. */
export interface UniformOptions extends NoiseOptions {
  /** Exclusive bounds. Default: 0 and 1. For a jitter of e: 1 - e and 1 + e. */
  readonly low?: number;
  readonly high?: number;
}

const ROUNDS = 10;
const MULTIPLIER_0 = 0xd2511f53, MULTIPLIER_1 = 0xcd9e8d57;
const WEYL_0 = 0x9e3779b9, WEYL_1 = 0xbb67ae85;

/** The high word of a product of two u32, as i32. Every sum of its halves is below 2^32. */
function highWord(a: number, b: number): number {
  const a1 = a >>> 16, a0 = a & 0xffff, b1 = b >>> 16, b0 = b & 0xffff;
  const middle = (Math.imul(a1, b0) + (Math.imul(a0, b0) >>> 16)) | 0;
  const low = ((middle & 0xffff) + Math.imul(a0, b1)) | 0;
  return (Math.imul(a1, b1) + (middle >>> 16) + (low >>> 16)) | 0;
}

/**
 * Philox 4×32-10 (Salmon et al., 2011): replaces a counter of four words by four random words, by a key of two. It
 * allocates nothing, because a large tensor has millions of counters.
 */
export function philox(
  counter: Uint32Array,
  key: readonly [number, number],
): void {
  let a = counter[0]! | 0, b = counter[1]! | 0;
  let c = counter[2]! | 0, d = counter[3]! | 0;
  let k0 = key[0] | 0, k1 = key[1] | 0;
  for (let round = 0; round < ROUNDS; round++) {
    const high0 = highWord(MULTIPLIER_0, a), low0 = Math.imul(MULTIPLIER_0, a);
    const high1 = highWord(MULTIPLIER_1, c), low1 = Math.imul(MULTIPLIER_1, c);
    a = high1 ^ b ^ k0;
    b = low1;
    c = high0 ^ d ^ k1;
    d = low0;
    k0 = (k0 + WEYL_0) | 0;
    k1 = (k1 + WEYL_1) | 0;
  }
  counter[0] = a;
  counter[1] = b;
  counter[2] = c;
  counter[3] = d;
}

/** Applies a function to 24-bit random numbers strictly between 0 and 1. */
function draw(
  map: (unit: number) => number,
  count: number,
  { seed, stream = 0, first = 0 }: NoiseOptions,
): Float32Array {
  for (const [name, value] of Object.entries({ count, seed, stream, first })) {
    const limit = name === "stream" ? 2 ** 32 - 1 : Number.MAX_SAFE_INTEGER;
    if (!Number.isSafeInteger(value) || value < 0 || value > limit) {
      throw new DataError(
        `Cannot draw noise with ${name} ${value}: expected a whole number from 0 to ${limit}`,
      );
    }
  }
  const key = [seed >>> 0, Math.floor(seed / 2 ** 32)] as const;
  const numbers = new Float32Array(count);
  const words = new Uint32Array(4);
  let at = -1;
  for (let i = 0; i < count; i++) {
    const index = first + i;
    const block = Math.floor(index / 4);
    if (block !== at) {
      words[0] = block >>> 0;
      words[1] = Math.floor(block / 2 ** 32);
      words[2] = stream;
      words[3] = 0;
      philox(words, key);
      at = block;
    }
    numbers[i] = map(((words[index % 4]! >>> 8) + 0.5) / 2 ** 24);
  }
  return numbers;
}

/**
 * Uniform numbers, for `random` of a router, or for an input that multiplies logits for jitter.
 *
 * @example
 * ```ts
 * const once = uniformNoise(4, { seed: 1 });
 * console.assert(once.every((x) => x > 0 && x < 1));
 * console.assert(String(uniformNoise(2, { seed: 1, first: 2 })) === String(once.slice(2)));
 * ```
 */
export function uniformNoise(
  count: number,
  options: UniformOptions,
): Float32Array {
  const { low = 0, high = 1 } = options;
  return draw((u) => low + u * (high - low), count, options);
}

/**
 * Numbers of the standard Gumbel distribution, `-log(-log(u))`, for `noise` of a router: the best of `logits + noise`
 * is then distributed by their softmax.
 *
 * @example
 * ```ts
 * const noise = gumbelNoise(1000, { seed: 1 });
 * const mean = noise.reduce((a, b) => a + b) / noise.length;
 * console.assert(Math.abs(mean - 0.5772) < 0.2);
 * ```
 */
export function gumbelNoise(
  count: number,
  options: NoiseOptions,
): Float32Array {
  return draw((u) => -Math.log(-Math.log(u)), count, options);
}
