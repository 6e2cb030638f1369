/**
 * Activations of products with packed weights: f32, or blocks of 32 8-bit integers with one scale each (`q8`).
 * `numerics.md` defines both.
 */

import { invariant } from "../errors.ts";
import { EXACT } from "../numerics.ts";
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

/** Whether a scale or an offset is one that files may have: finite and of at most 2^40. */
export function isAllowedScale(x: number): boolean {
  return Math.abs(x) <= 2 ** 40;
}
