/** Codes of numbers: those of the nearest elements of a kind. */

import {
  PACKED_ELEMENTS,
  type PackedElement,
  type PackedElementName,
} from "../../spec/packed.ts";

/** A kind of elements, both ways. */
export interface Coder {
  /** The code of the nearest element, the one with an even code among two; beyond the largest element, its code. */
  code(value: number): number;
  /** What a code stands for. */
  value(code: number): number;
}

/** Codes of elements of a kind. Codes of fp8 that are no numbers are not used. */
export function nearestCode(element: PackedElementName): Coder {
  const { bits, value }: PackedElement = PACKED_ELEMENTS[element];
  const codes = Array.from({ length: 1 << bits }, (_, code) => code)
    .filter((code) => element !== "fp8" || (code & 127) !== 127)
    // Of the two zeros the positive one is used.
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
