/**
 * Activations of products with packed weights: f32, or blocks of 32 8-bit integers with one scale each (`q8`).
 * `numerics.md` defines both; this file implements `q8`.
 */

import { invariant } from "./errors.ts";
import { addAsTree, EXACT } from "./numerics.ts";
import {
  PACKED_ELEMENTS,
  type PackedElement,
  type Packing,
  type ScaleKind,
  SCALES,
} from "./packed.ts";

/** Formats of the left operands of products with packed weights. */
export const ACTIVATIONS = ["q8", "f32"] as const;

/** A name in the list. */
export type Activations = typeof ACTIVATIONS[number];

/** Elements per block of activations. */
export const Q8_BLOCK = 32;

/**
 * Bits of the limits of a block's maximum magnitude: below the first all elements are 0; from the second on the block
 * is NaN.
 */
export const Q8_LIMITS = { zero: 72 << 23, none: 191 << 23 } as const;

/** Bits of the NaN scale of a block without finite numbers. */
export const Q8_NAN = 0x7fc00000;

/** Bits of the f32 nearest to 1 / 127. */
export const Q8_STEP = 0x3c010204;

/** Magnitude below which scales and offsets of weights count as 0. */
export const Q8_MIN = 2 ** -40;

/**
 * Elements per integer sum of weights with this packing: 32, or 16 if so few share a scale. Undefined: these weights
 * are decoded to f32.
 */
export function q8SumOf(
  { element, perScale = Q8_BLOCK, scale }: Packing,
): 16 | 32 | undefined {
  const { step }: PackedElement = PACKED_ELEMENTS[element];
  const { factor }: ScaleKind = SCALES[scale];
  if (step === undefined || factor) return undefined;
  if (perScale % Q8_BLOCK === 0) return Q8_BLOCK;
  return perScale === 16 && step === 1 ? 16 : undefined;
}

/**
 * Parts of a sum of `blocks` blocks of equal length: the largest power of two that divides their number, up to that of
 * segments of an f32 sum. If `ranks` ranks have equal shares of the blocks, each has an equal number of the parts.
 */
export function q8PartsOf(blocks: number, ranks = 1): number {
  let parts: number = EXACT.segments;
  while (blocks * ranks % parts !== 0) parts /= 2;
  invariant(parts % ranks === 0, "ranks have whole parts of a sum");
  return parts / ranks;
}

/** Rows of activations as integers. */
export interface QuantizedActivations {
  readonly codes: Int8Array;
  /** One per 32 elements. */
  readonly scales: Float32Array;
}

const BITS = new Uint32Array(1);
const FLOAT = new Float32Array(BITS.buffer);

function bitsOf(x: number): number {
  FLOAT[0] = x;
  return BITS[0]!;
}

function floatOf(bits: number): number {
  BITS[0] = bits;
  return FLOAT[0]!;
}

/** Quantizes rows of complete blocks. */
export function quantizeActivations(x: Float32Array): QuantizedActivations {
  const codes = new Int8Array(x.length);
  const scales = new Float32Array(x.length / Q8_BLOCK);
  for (let b = 0; b < scales.length; b++) {
    const block = x.subarray(b * Q8_BLOCK, (b + 1) * Q8_BLOCK);
    const largest = block.reduce(
      (max, value) => Math.max(max, bitsOf(value) & 0x7fffffff),
      0,
    );
    if (largest >= Q8_LIMITS.none) scales[b] = floatOf(Q8_NAN);
    if (largest >= Q8_LIMITS.none || largest < Q8_LIMITS.zero) continue;
    const exponent = largest >>> 23;
    const m = ((largest & 0x7fffff | 0x800000) + 0xff) >>> 8;
    const inverse = Math.floor(127 * 2 ** 24 / m) * 2 ** (118 - exponent);
    scales[b] = Math.fround(m * floatOf(Q8_STEP)) * 2 ** (exponent - 142);
    block.forEach((value, i) => {
      codes[b * Q8_BLOCK + i] = toEven(Math.fround(value * inverse));
    });
  }
  return { codes, scales };
}

/** Rounds to the nearest integer, ties to even. */
function toEven(x: number): number {
  const down = Math.floor(x);
  const apart = x - down;
  if (apart !== 0.5) return apart < 0.5 ? down : down + 1;
  return down % 2 === 0 ? down : down + 1;
}

/** Whether a scale or an offset is one that files may have: finite and of at most 2^40. */
export function isAllowedScale(x: number): boolean {
  return Math.abs(x) <= 2 ** 40;
}

/** A row of a packed matrix. */
export interface PackedRow {
  readonly packing: Packing;
  readonly codes: Uint8Array;
  /** One per `perScale` codes of the packing. */
  readonly scales: Float32Array;
  /** As many as scales, if the element kind has offsets. */
  readonly offsets?: Float32Array | undefined;
}

/** The product of a row of activations and a row of weights. `parts`: parts of the sum, if it is sharded. */
export function q8Dot(
  left: QuantizedActivations,
  { packing, codes, scales, offsets }: PackedRow,
  parts = q8PartsOf(left.scales.length),
): number {
  const { value, step = 1 }: PackedElement = PACKED_ELEMENTS[packing.element];
  const size = q8SumOf(packing);
  invariant(size, "weights are integers");
  const { perScale = codes.length } = packing;
  const { fround } = Math;
  const factor = (x: number) => Math.abs(x) < Q8_MIN ? 0 : x;
  const sums = codes.length / size;
  const ofPart = sums / parts;
  return addAsTree(
    Array.from({ length: parts }, (_, part) => {
      let total = 0;
      for (let n = part * ofPart; n < (part + 1) * ofPart; n++) {
        let [sum, all] = [0, 0];
        for (let i = n * size; i < (n + 1) * size; i++) {
          sum += left.codes[i]! * value(codes[i]!) / step;
          all += left.codes[i]!;
        }
        const scale = left.scales[Math.floor(n * size / Q8_BLOCK)]!;
        const at = Math.floor(n * size / perScale);
        const term = (sum: number, by: number) =>
          fround(sum * fround(factor(by) * scale));
        total = fround(total + term(sum, fround(scales[at]! * step)));
        if (offsets) total = fround(total + term(all, offsets[at]!));
      }
      return total;
    }),
    (a, b) => fround(a + b),
  );
}
