/** 16-bit floats in host memory: widening and rounding. */

import { type HalfDType, QUIET_NAN } from "../spec/dtype.ts";
import { widenF16 } from "../spec/half.ts";

/** The f32 values of 16-bit floats: exact. */
export function widen(
  stored: HalfDType,
  halves: Uint16Array,
): Float32Array {
  // `map` of an array is many times faster than `from` with a function, and a loop than `map`.
  if (stored === "f16") return new Float32Array(halves).map(widenF16);
  const words = new Uint32Array(halves.length);
  for (let i = 0; i < halves.length; i++) words[i] = halves[i]! << 16;
  return new Float32Array(words.buffer);
}

/**
 * Rounds numbers to the nearest 16-bit floats, ties to even, like kernels that update parameters. NaN becomes the
 * positive quiet NaN.
 */
export function narrow(
  stored: HalfDType,
  values: Float32Array,
): Uint16Array {
  const bits = new Uint32Array(
    values.buffer,
    values.byteOffset,
    values.length,
  );
  const bitsOf = stored === "f16" ? narrowF16 : narrowBf16;
  const halves = bits.map((all) => {
    const size = all & 0x7fffffff;
    if (size > 0x7f800000) return QUIET_NAN[stored];
    return all >>> 16 & 0x8000 | bitsOf(size);
  });
  return new Uint16Array(halves);
}

const FLOAT = new Float32Array(1), BITS = new Uint32Array(FLOAT.buffer);

/** Returns the bits of the f16 nearest to a finite f32, ties to even. */
export function nearestF16(value: number): number {
  FLOAT[0] = value;
  const all = BITS[0]!;
  return all >>> 16 & 0x8000 | narrowF16(all & 0x7fffffff);
}

function narrowBf16(size: number): number {
  return Math.min(rounded(size, 16), 0x7f80);
}

/** Exponents of f32 have a bias larger by 112. Below 2^-14, f16 has steps of 2^-24. */
function narrowF16(size: number): number {
  if (size >= 113 << 23) {
    return Math.min(rounded(size, 13) - (112 << 10), 0x7c00);
  }
  // With all 24 bits of the fraction, shifted by the distance of its exponent from that of the step.
  const exponent = size >>> 23;
  if (exponent < 102) return 0;
  return rounded(size & 0x7fffff | 0x800000, 126 - exponent);
}

/** Removes the last `drop` bits with rounding to nearest, ties to even. */
function rounded(size: number, drop: number): number {
  const odd = size >>> drop & 1;
  return (size + 2 ** (drop - 1) - 1 + odd) / 2 ** drop >>> 0;
}
