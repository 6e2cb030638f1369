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
  partOf,
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
): (block: Uint8Array, integers: ArrayLike<number>) => void {
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

/** Returns the integers from `low` to `high` nearest to the scaled elements. */
function scaledCodes(
  values: Float32Array,
  inverse: number,
  [low, high]: readonly [number, number],
): Int8Array {
  const codes = new Int8Array(ELEMENTS);
  for (let i = 0; i < ELEMENTS; i++) {
    codes[i] = clamped(values[i]! * inverse, low, high);
  }
  return codes;
}

/** Q8_0: an f16 scale and 32 integers of eight bits. */
export function encodeQ8({ values }: Weighted, block: Uint8Array): void {
  const inverse = inverseOf(storeHalf(block, 0, largestOf(values) / 127));
  storeQ8(block, scaledCodes(values, inverse, [-127, 127]));
}

/** Q4_0: an f16 scale and 32 four-bit integers with an offset of 8. */
export function encodeQ4(elements: Weighted, block: Uint8Array): void {
  const inverse = inverseOf(storeHalf(block, 0, symmetricScale(elements, 8)));
  storeQ4(block, scaledCodes(elements.values, inverse, [-8, 7]));
}

/** Q5_0: an f16 scale, the fifth bits of 32 integers with an offset of 16, and their four low bits. */
export function encodeQ5(elements: Weighted, block: Uint8Array): void {
  const inverse = inverseOf(storeHalf(block, 0, symmetricScale(elements, 16)));
  storeQ5(block, scaledCodes(elements.values, inverse, [-16, 15]));
}

/** Q4_K: eight sub-blocks of 32 with six-bit scales and minimums and two f16 factors. */
export function encodeQ4K(elements: Weighted, block: Uint8Array): void {
  const parts = Array.from(
    { length: 8 },
    (_, i) => partOf(elements, 32 * i, 32 * i + 32),
  );
  const fits = parts.map((part) => affineScale(part, 15));
  const maxOf = (of: (fit: typeof fits[number]) => number) =>
    Math.max(...fits.map(of));
  const factor = storeHalf(block, 0, maxOf(({ scale }) => scale) / 63);
  const minimumFactor = storeHalf(block, 2, maxOf((fit) => fit.minimum) / 63);
  const packed = block.subarray(4, 16);
  const codes = new Uint8Array(256);
  parts.forEach(({ values }, i) => {
    const { scale, minimum } = fits[i]!;
    const six = clamped(scale * inverseOf(factor), 0, 63);
    const low = clamped(minimum * inverseOf(minimumFactor), 0, 63);
    storeSixBits(packed, i, { which: 0, value: six });
    storeSixBits(packed, i, { which: 1, value: low });
    const inverse = inverseOf(factor * six);
    const shift = minimumFactor * low;
    for (let n = 0; n < 32; n++) {
      codes[32 * i + n] = clamped((values[n]! + shift) * inverse, 0, 15);
    }
  });
  storeQ4K(block, codes);
}

/**
 * Q6_K: 16 groups of 16 with eight-bit scales and an f16 factor; four low bits and two high bits are stored separately.
 */
export function encodeQ6K(elements: Weighted, block: Uint8Array): void {
  const scales = Array.from(
    { length: 16 },
    (_, i) => symmetricScale(partOf(elements, 16 * i, 16 * i + 16), 32),
  );
  const extreme = scales.reduce(
    (max, scale) => Math.abs(scale) > Math.abs(max) ? scale : max,
    0,
  );
  const factor = storeHalf(block, 208, -extreme / 128);
  const codes = new Int8Array(256);
  for (let i = 0; i < 16; i++) {
    const eight = clamped(scales[i]! * inverseOf(factor), -128, 127);
    block[192 + i] = eight;
    const inverse = inverseOf(factor * eight);
    for (let at = 16 * i; at < 16 * i + 16; at++) {
      codes[at] = clamped(elements.values[at]! * inverse, -32, 31);
    }
  }
  storeQ6K(block, codes);
}

/** MXFP4: a power of two and 32 floats of four bits. */
export function encodeMxfp4(elements: Weighted, block: Uint8Array): void {
  const { exponent, codes } = fitMxfp4(elements);
  block[0] = exponent;
  storeMxfp4(block, codes);
}

const fp4 = nearestCode("fp4");

/** Codes of the two candidates of `fitMxfp4`. */
const CODES = [new Uint8Array(32), new Uint8Array(32)] as const;

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
  const lowError = storeFp4(elements, low, CODES[0]);
  const highError = storeFp4(elements, high, CODES[1]);
  return highError < lowError
    ? { exponent: high, codes: CODES[1] }
    : { exponent: low, codes: CODES[0] };
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
