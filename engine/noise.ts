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
const MULTIPLIERS = [0xd2511f53, 0xcd9e8d57] as const;
const WEYL = [0x9e3779b9, 0xbb67ae85] as const;

/** The high word of a product of two u32. */
function highWord(a: number, b: number): number {
  const [a1, a0] = [a >>> 16, a & 0xffff];
  const [b1, b0] = [b >>> 16, b & 0xffff];
  const middle = a1 * b0 + ((a0 * b0) >>> 16);
  const low = (middle & 0xffff) + a0 * b1;
  return (a1 * b1 + Math.floor(middle / 65536) + Math.floor(low / 65536)) >>> 0;
}

/** Philox 4×32-10 (Salmon et al., 2011): four random words of a counter of four words, by a key of two. */
export function philox(
  counter: readonly number[],
  key: readonly number[],
): number[] {
  let [a, b, c, d] = counter as [number, number, number, number];
  let [k0, k1] = key as [number, number];
  for (let round = 0; round < ROUNDS; round++) {
    const [high0, low0] = [
      highWord(MULTIPLIERS[0], a),
      Math.imul(MULTIPLIERS[0], a) >>> 0,
    ];
    const [high1, low1] = [
      highWord(MULTIPLIERS[1], c),
      Math.imul(MULTIPLIERS[1], c) >>> 0,
    ];
    [a, b, c, d] = [
      (high1 ^ b ^ k0) >>> 0,
      low1,
      (high0 ^ d ^ k1) >>> 0,
      low0,
    ];
    k0 = (k0 + WEYL[0]) >>> 0;
    k1 = (k1 + WEYL[1]) >>> 0;
  }
  return [a, b, c, d];
}

/** 24-bit numbers strictly between 0 and 1. */
function unit(
  count: number,
  { seed, stream = 0, first = 0 }: NoiseOptions,
): Float64Array {
  for (const [name, value] of Object.entries({ count, seed, stream, first })) {
    const limit = name === "stream" ? 2 ** 32 - 1 : Number.MAX_SAFE_INTEGER;
    if (!Number.isSafeInteger(value) || value < 0 || value > limit) {
      throw new DataError(
        `Cannot draw noise with ${name} ${value}: expected a whole number from 0 to ${limit}`,
      );
    }
  }
  const key = [seed >>> 0, Math.floor(seed / 2 ** 32)];
  const numbers = new Float64Array(count);
  let words: number[] = [];
  let at = -1;
  for (let i = 0; i < count; i++) {
    const index = first + i;
    const block = Math.floor(index / 4);
    if (block !== at) {
      words = philox(
        [block >>> 0, Math.floor(block / 2 ** 32), stream, 0],
        key,
      );
      at = block;
    }
    numbers[i] = ((words[index % 4]! >>> 8) + 0.5) / 2 ** 24;
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
  return Float32Array.from(
    unit(count, options),
    (x) => low + x * (high - low),
  );
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
  return Float32Array.from(
    unit(count, options),
    (u) => -Math.log(-Math.log(u)),
  );
}
