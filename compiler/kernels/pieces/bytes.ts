/** Packed integers as four bytes per word. */

import {
  PACKED_ELEMENTS,
  type PackedElement,
  type PackedElementName,
} from "../../../spec/weights/packed.ts";
import { invariant } from "../../../spec/errors.ts";
import {
  type Hole,
  type KernelText,
  wgsl,
} from "../../../spec/kernel/text/text.ts";

/** Integers of an element kind as bytes. */
export interface Bytes {
  /**
   * Converts a word of elements to words of four bytes. Four-bit elements give two words: the lower and the upper
   * halves of bytes.
   */
  of(word: Hole): readonly KernelText[];
  /** The offset of bytes from integers. */
  readonly above: number;
  /** Factor from integers to elements. */
  readonly step: number;
}

/** Signed or unsigned bytes of an element kind. */
export function elementBytes(
  element: PackedElementName,
  sign: "signed" | "unsigned",
): Bytes {
  const { bits, value, step }: PackedElement = PACKED_ELEMENTS[element];
  invariant(step !== undefined, "elements are integers");
  const integers = Array.from(
    { length: 1 << bits },
    (_, code) => value(code) / step,
  );
  const min = Math.min(...integers);
  if (bits === 8) {
    // Codes are integers modulo 256.
    const above = sign === "unsigned" ? -min : min < 0 ? 0 : -128;
    return {
      of: (word) => [
        above % 256 === 0 ? wgsl`${word}` : wgsl`(${word} ^ 0x80808080u)`,
      ],
      above,
      step,
    };
  }
  const inOrder = integers.every((integer, code) => integer === code + min);
  const above = inOrder || sign === "unsigned" ? -min : 0;
  const table = [0, 1, 2, 3].map((word) =>
    integers.slice(4 * word, 4 * word + 4).reduce(
      (n, integer, i) => n + ((integer + above) & 255) * 2 ** (8 * i),
      0,
    )
  );
  const [a, b, c, d] = table.map((word) => wgsl`${word}u`);
  const byte = (nibbles: KernelText) =>
    inOrder
      ? wgsl`(${nibbles} & 0x0f0f0f0fu)`
      : wgsl`lookup16(${nibbles}, ${a!}, ${b!}, ${c!}, ${d!})`;
  return {
    of: (word) => [byte(wgsl`${word}`), byte(wgsl`(${word} >> 4)`)],
    above,
    step,
  };
}
