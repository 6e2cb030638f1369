/**
 * Encoders of GGUF blocks: they choose codes and scales for a block's elements, in the layout of
 * `spec/weights/blocks.ts`.
 */

import { nearestF16 } from "../../runtime/half.ts";
import {
  type Block,
  type BlockName,
  BLOCKS,
  Planes,
  storeSixBits,
} from "../../spec/weights/blocks.ts";
import { widenF16 } from "../../spec/half.ts";
import { nearestCode } from "../encodings/nearest.ts";
import {
  affineScale,
  clamped,
  largestOf,
  symmetricScale,
  type Weighted,
} from "./fit.ts";

/** Encodes elements into the block at the start of the bytes, which are all zero. */
export type Encode = (elements: Weighted, block: Uint8Array) => void;

/** The largest f16. */
const LARGEST = 65504;

/** Stores the nearest finite f16 at a byte offset and returns its value. */
function storeHalf(block: Uint8Array, at: number, value: number): number {
  const bounded = Math.min(LARGEST, Math.max(-LARGEST, value));
  const bits = nearestF16(bounded);
  block[at] = bits & 255;
  block[at + 1] = bits >> 8;
  return widenF16(bits);
}

function inverseOf(scale: number): number {
  return scale === 0 ? 0 : 1 / scale;
}

/** A writer of the codes of blocks: integers, or the codes of a table. */
function codeWriter(
  name: BlockName,
  above = 0,
): (block: Uint8Array, integers: Uint8Array) => void {
  const { codes, elements }: Block = BLOCKS[name];
  const planes = new Planes(codes, elements);
  return (block, integers) => planes.write(block, integers, above);
}

const storeQ8 = codeWriter("q8_0");
const storeQ4 = codeWriter("q4_0", 8);
const storeQ5 = codeWriter("q5_0", 16);
const storeQ4K = codeWriter("q4_k");
const storeQ6K = codeWriter("q6_k", 32);
const storeMxfp4 = codeWriter("mxfp4_block");

/** Elements of a block of one scale. */
const ELEMENTS = 32;

/** Codes of the current block, modulo 256: of one scale, and of `q4_k` and `q6_k`. */
const CODES = new Uint8Array(ELEMENTS);
const K_CODES = new Uint8Array(256);

/** Returns the integers from `low` to `high` nearest to the scaled elements, until the next call. */
function scaledCodes(
  values: Float64Array,
  inverse: number,
  [low, high]: readonly [number, number],
): Uint8Array {
  for (let i = 0; i < ELEMENTS; i++) {
    CODES[i] = clamped(values[i]! * inverse, low, high);
  }
  return CODES;
}

/** Q8_0: an f16 scale and 32 integers of eight bits. */
export function encodeQ8({ values }: Weighted, block: Uint8Array): void {
  const inverse = inverseOf(storeHalf(block, 0, largestOf(values) / 127));
  storeQ8(block, scaledCodes(values, inverse, [-127, 127]));
}

/** Stores an f16 scale, and returns the inverse of its value. */
function storeScale(
  elements: Weighted,
  block: Uint8Array,
  bound: number,
): number {
  const part = { ...elements, begin: 0, end: ELEMENTS };
  return inverseOf(storeHalf(block, 0, symmetricScale(part, bound)));
}

/** Q4_0: an f16 scale and 32 four-bit integers with an offset of 8. */
export function encodeQ4(elements: Weighted, block: Uint8Array): void {
  const inverse = storeScale(elements, block, 8);
  storeQ4(block, scaledCodes(elements.values, inverse, [-8, 7]));
}

/** Q5_0: an f16 scale, the fifth bits of 32 integers with an offset of 16, and their four low bits. */
export function encodeQ5(elements: Weighted, block: Uint8Array): void {
  const inverse = storeScale(elements, block, 16);
  storeQ5(block, scaledCodes(elements.values, inverse, [-16, 15]));
}

/** Scales and minimums of the groups of the current block. */
const SCALES = new Float64Array(16);
const MINIMUMS = new Float64Array(8);

/** Q4_K: eight sub-blocks of 32 with six-bit scales and minimums and two f16 factors. */
export function encodeQ4K(elements: Weighted, block: Uint8Array): void {
  const { values, weights } = elements;
  let largest = -Infinity, lowest = -Infinity;
  for (let i = 0; i < 8; i++) {
    const part = { values, weights, begin: 32 * i, end: 32 * i + 32 };
    const { scale, minimum } = affineScale(part, 15);
    SCALES[i] = scale;
    MINIMUMS[i] = minimum;
    largest = Math.max(largest, scale);
    lowest = Math.max(lowest, minimum);
  }
  const factor = storeHalf(block, 0, largest / 63);
  const minimumFactor = storeHalf(block, 2, lowest / 63);
  const packed = block.subarray(4, 16);
  for (let i = 0; i < 8; i++) {
    const six = clamped(SCALES[i]! * inverseOf(factor), 0, 63);
    const low = clamped(MINIMUMS[i]! * inverseOf(minimumFactor), 0, 63);
    storeSixBits(packed, i, { which: 0, value: six });
    storeSixBits(packed, i, { which: 1, value: low });
    const inverse = inverseOf(factor * six);
    const shift = minimumFactor * low;
    for (let n = 32 * i; n < 32 * i + 32; n++) {
      K_CODES[n] = clamped((values[n]! + shift) * inverse, 0, 15);
    }
  }
  storeQ4K(block, K_CODES);
}

/**
 * Q6_K: 16 groups of 16 with eight-bit scales and an f16 factor; four low bits and two high bits are stored separately.
 */
export function encodeQ6K(elements: Weighted, block: Uint8Array): void {
  const { values, weights } = elements;
  let extreme = 0;
  for (let i = 0; i < 16; i++) {
    const part = { values, weights, begin: 16 * i, end: 16 * i + 16 };
    const scale = symmetricScale(part, 32);
    SCALES[i] = scale;
    if (Math.abs(scale) > Math.abs(extreme)) extreme = scale;
  }
  const factor = storeHalf(block, 208, -extreme / 128);
  for (let i = 0; i < 16; i++) {
    const eight = clamped(SCALES[i]! * inverseOf(factor), -128, 127);
    block[192 + i] = eight;
    const inverse = inverseOf(factor * eight);
    for (let n = 16 * i; n < 16 * i + 16; n++) {
      K_CODES[n] = clamped(values[n]! * inverse, -32, 31);
    }
  }
  storeQ6K(block, K_CODES);
}

/** MXFP4: a power of two and 32 floats of four bits. */
export function encodeMxfp4(elements: Weighted, block: Uint8Array): void {
  const { exponent, codes } = fitMxfp4(elements);
  block[0] = exponent;
  storeMxfp4(block, codes);
}

const fp4 = nearestCode("fp4");

/** Codes of the two candidates of `fitMxfp4`. */
const FP4_CODES = [new Uint8Array(32), new Uint8Array(32)] as const;

/**
 * Returns the biased exponent of the scale of 32 E2M1 codes, and the codes, until the next call. The largest element
 * becomes about 4 or about 6.
 */
export function fitMxfp4(
  elements: Weighted,
): { readonly exponent: number; readonly codes: Uint8Array } {
  const largest = largestOf(elements.values);
  const first = largest === 0 ? 0 : Math.floor(Math.log2(largest)) - 2 + 127;
  const [low, high] = [first, first + 1].map((exponent) =>
    Math.min(254, Math.max(0, exponent))
  ) as [number, number];
  const lowError = storeFp4(elements, low, FP4_CODES[0]);
  const highError = storeFp4(elements, high, FP4_CODES[1]);
  return highError < lowError
    ? { exponent: high, codes: FP4_CODES[1] }
    : { exponent: low, codes: FP4_CODES[0] };
}

/** Stores the codes for a biased exponent, and returns their weighted squared error. */
function storeFp4(
  { values, weights }: Weighted,
  exponent: number,
  codes: Uint8Array,
): number {
  const scale = 2 ** (exponent - 127);
  let error = 0;
  for (let i = 0; i < codes.length; i++) {
    const code = fp4.code(values[i]! / scale);
    const difference = fp4.value(code) * scale - values[i]!;
    codes[i] = code;
    error += weights[i]! * difference * difference;
  }
  return error;
}
