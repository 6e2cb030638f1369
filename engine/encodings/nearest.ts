/** Rounding of numbers to the codes of an element kind. */

import {
  PACKED_ELEMENTS,
  type PackedElement,
  type PackedElementName,
} from "../../spec/weights/packed.ts";

/** Conversion between numbers and codes of an element kind. */
export interface Coder {
  /**
   * Returns the code of the nearest element; of two equally near ones, the even code. Values beyond the largest element
   * get its code.
   */
  code(value: number): number;
  /** Returns the value of a code. */
  value(code: number): number;
}

/** Returns the rounding of an element kind. NaN codes of fp8 are not used. */
export function nearestCode(element: PackedElementName): Coder {
  const { bits, value }: PackedElement = PACKED_ELEMENTS[element];
  const codes = Array.from({ length: 1 << bits }, (_, code) => code)
    .filter((code) => element !== "fp8" || (code & 127) !== 127)
    // The positive zero is used.
    .filter((code) => value(code) !== 0 || 1 / value(code) > 0)
    .sort((a, b) => value(a) - value(b));
  const values = codes.map(value);
  return {
    value,
    code: (x) => {
      let [low, high] = [0, codes.length - 1];
      while (high - low > 1) {
        const middle = (low + high) >> 1;
        if (values[middle]! <= x) low = middle;
        else high = middle;
      }
      const [below, above] = [x - values[low]!, values[high]! - x];
      const even = codes[low]! % 2 === 0;
      return codes[below < above || (below === above && even) ? low : high]!;
    },
  };
}
