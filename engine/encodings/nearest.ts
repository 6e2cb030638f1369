/** Rounding of numbers to the codes of small floats. */

import { PACKED_ELEMENTS } from "../../spec/weights/packed.ts";

/** Conversion between numbers and codes of an element kind. */
export interface Coder {
  /**
   * Returns the code of the nearest element; of two equally near ones, the even code. Zero is positive. Values beyond
   * the largest element get its code. NaN is not allowed.
   */
  code(value: number): number;
  /** Returns the value of a code. */
  value(code: number): number;
}

/** Bits of mantissa, bias of the exponent, and the code of the largest element: of fp8, the one below NaN. */
const FLOATS = {
  fp4: { mantissa: 1, bias: 1, largest: 7 },
  fp8: { mantissa: 3, bias: 7, largest: 126 },
} as const;

/** Mantissa bits in the upper word of an f64, and the bias of its exponent. */
const UPPER = 20, F64_BIAS = 1023;

/** An f64 and its words. */
const float = new Float64Array(1);
const words = new Uint32Array(float.buffer);

/** Returns the rounding of an element kind. */
export function nearestCode(element: keyof typeof FLOATS): Coder {
  const { mantissa, bias, largest } = FLOATS[element];
  const { bits, value } = PACKED_ELEMENTS[element];
  const values = Float64Array.from({ length: 1 << bits }, (_, i) => value(i));
  const sign = 1 << (bits - 1);
  const normal = 2 ** (1 - bias);
  const subnormal = normal / 2 ** mantissa;
  // Sums with this number have the precision of integers.
  const integers = 1.5 * 2 ** 52;
  // Exponent and mantissa are adjacent in codes, as in an f64.
  const dropped = UPPER - mantissa;
  const half = 1 << (dropped - 1);
  const offset = (F64_BIAS - bias) << mantissa;
  const magnitudeCode = (size: number): number => {
    if (size < normal) return size / subnormal + integers - integers;
    float[0] = size;
    const upper = words[1]!;
    const code = (upper >>> dropped) - offset;
    const rest = upper & (2 * half - 1) | (words[0] === 0 ? 0 : 1);
    const up = rest > half || rest === half && (code & 1) === 1;
    return Math.min(largest, up ? code + 1 : code);
  };
  return {
    value: (code) => values[code]!,
    code: (x) => {
      const code = magnitudeCode(Math.abs(x));
      return x < 0 && code > 0 ? code | sign : code;
    },
  };
}
