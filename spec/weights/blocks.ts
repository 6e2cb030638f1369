/**
 * Blocks of GGUF files, one row each: the positions of their codes, scales and offsets. Loader, byte counts, kernels
 * and quantizer derive from it. Formulas are those of ggml's `dequantize_row_*`.
 */

import { widenF16 } from "../half.ts";
import type { PackedElementName } from "./packed.ts";

/**
 * Bits of numbers, in bytes from `at` on: `stripe` bytes have the bits of `stripe` neighbours in their lowest bits,
 * those of the next `stripe` above them, and so on. The next bytes follow with the next numbers.
 */
export interface Plane {
  readonly at: number;
  readonly bits: 1 | 2 | 4 | 8;
  readonly stripe: number;
}

/** Scales or offsets: a factor, times an integer per group if there are several groups. */
export interface BlockScales {
  /** The byte of the factor: an f16, an f32, or the exponent of a power of two. */
  readonly at: number;
  readonly factor: "f16" | "f32" | "e8m0";
  /** Bytes between the factors of two groups. Absent: there is one factor. */
  readonly apart?: number;
  /** Integers, less `above`. `six`: the scales (0) or minimums (1) of six bits in twelve bytes. */
  readonly integers?:
    | { readonly planes: readonly Plane[]; readonly above: number }
    | { readonly six: 0 | 1; readonly at: number };
}

/** A block. */
export interface Block {
  /** Elements per block, and bytes. */
  readonly elements: 32 | 64 | 256;
  readonly bytes: number;
  readonly element: PackedElementName;
  /** Elements per scale. */
  readonly group: 16 | 32;
  /** Bits of codes, lowest first. */
  readonly codes: readonly Plane[];
  /** Number that is subtracted from codes of fewer than eight bits for an `int8`. Default: 0. */
  readonly above?: number;
  readonly scales: BlockScales;
  /** Absent: the element kind has none. `negative`: they are subtracted. */
  readonly offsets?: BlockScales & { readonly negative?: true };
}

function f16(at: number): BlockScales {
  return { at, factor: "f16" };
}

/** 32 four-bit codes: byte i has elements i and i + 16. */
function nibbles(at: number): Plane {
  return { at, bits: 4, stripe: 16 };
}

/** Eight groups of 32 with six-bit scales and minimums. */
const K = {
  elements: 256,
  group: 32,
  scales: { ...f16(0), integers: { six: 0, at: 4 } },
  offsets: { ...f16(2), integers: { six: 1, at: 4 }, negative: true },
} as const;

/** Blocks of 32 with one scale. */
const ONE = { elements: 32, group: 32, scales: f16(0) } as const;

/** The table. */
export const BLOCKS = {
  q4_0: { ...ONE, bytes: 18, element: "int4", codes: [nibbles(2)] },
  q4_1: {
    ...ONE,
    bytes: 20,
    element: "uint4",
    codes: [nibbles(4)],
    offsets: f16(2),
  },
  q5_0: {
    ...ONE,
    bytes: 22,
    element: "int8",
    codes: [nibbles(6), { at: 2, bits: 1, stripe: 1 }],
    above: 16,
  },
  q5_1: {
    ...ONE,
    bytes: 24,
    element: "uint8",
    codes: [nibbles(8), { at: 4, bits: 1, stripe: 1 }],
    offsets: f16(2),
  },
  q8_0: {
    ...ONE,
    bytes: 34,
    element: "int8",
    codes: [{ at: 2, bits: 8, stripe: 32 }],
  },
  q4_k: {
    ...K,
    bytes: 144,
    element: "uint4",
    codes: [{ at: 16, bits: 4, stripe: 32 }],
  },
  q5_k: {
    ...K,
    bytes: 176,
    element: "uint8",
    codes: [
      { at: 48, bits: 4, stripe: 32 },
      { at: 16, bits: 1, stripe: 32 },
    ],
  },
  q6_k: {
    elements: 256,
    bytes: 210,
    element: "int8",
    group: 16,
    codes: [
      { at: 0, bits: 4, stripe: 64 },
      { at: 128, bits: 2, stripe: 32 },
    ],
    above: 32,
    scales: {
      ...f16(208),
      integers: { planes: [{ at: 192, bits: 8, stripe: 16 }], above: 0 },
    },
  },
  iq4_nl: { ...ONE, bytes: 18, element: "iq4", codes: [nibbles(2)] },
  iq4_xs: {
    elements: 256,
    bytes: 136,
    element: "iq4",
    group: 32,
    codes: [nibbles(8)],
    scales: {
      ...f16(0),
      integers: {
        planes: [
          { at: 4, bits: 4, stripe: 1 },
          { at: 2, bits: 2, stripe: 1 },
        ],
        above: 32,
      },
    },
  },
  mxfp4_block: {
    ...ONE,
    bytes: 17,
    element: "fp4",
    codes: [nibbles(1)],
    scales: { at: 0, factor: "e8m0" },
  },
} as const satisfies { readonly [name: string]: Block };

/** A name in the table. */
export type BlockName = keyof typeof BLOCKS;

/** The byte and the shift of the bits of each number in a plane. */
function positions(
  { at, bits, stripe }: Plane,
  count: number,
): readonly (readonly [byte: number, shift: number])[] {
  return Array.from({ length: count }, (_, i) => {
    const round = stripe * 8 / bits;
    const inRound = i % round;
    return [
      at + Math.floor(i / round) * stripe + inRound % stripe,
      bits * Math.floor(inRound / stripe),
    ];
  });
}

/** Numbers in planes, for reading and writing. */
export class Planes {
  readonly #parts: readonly {
    readonly bytes: Uint16Array;
    readonly shifts: Uint8Array;
    readonly mask: number;
    /** The lowest of these bits in a number. */
    readonly low: number;
  }[];
  readonly #count: number;

  constructor(planes: readonly Plane[], count: number) {
    this.#count = count;
    let low = 0;
    this.#parts = planes.map((plane) => {
      const all = positions(plane, count);
      const part = {
        bytes: Uint16Array.from(all, ([byte]) => byte),
        shifts: Uint8Array.from(all, ([, shift]) => shift),
        mask: (1 << plane.bits) - 1,
        low,
      };
      low += plane.bits;
      return part;
    });
  }

  /** Reads the numbers of a block, less `above`, modulo 256. */
  read(block: Uint8Array, numbers: Uint8Array, above = 0): void {
    numbers.fill(-above);
    for (const { bytes, shifts, mask, low } of this.#parts) {
      for (let i = 0; i < this.#count; i++) {
        numbers[i]! += (block[bytes[i]!]! >> shifts[i]! & mask) << low;
      }
    }
  }

  /** Writes numbers, plus `above`, into a block of zeros. */
  write(block: Uint8Array, numbers: ArrayLike<number>, above = 0): void {
    for (const { bytes, shifts, mask, low } of this.#parts) {
      for (let i = 0; i < this.#count; i++) {
        const number = numbers[i]! + above;
        block[bytes[i]!]! |= (number >> low & mask) << shifts[i]!;
      }
    }
  }
}

/** The six-bit scale (0) or minimum (1) of group `i`, in twelve bytes. */
function sixBits(packed: Uint8Array, i: number, which: 0 | 1): number {
  if (i < 4) return packed[i + 4 * which]! & 63;
  return (packed[i + 4]! >> 4 * which & 15) |
    packed[i - 4 + 4 * which]! >> 6 << 4;
}

/** Stores the six-bit scale (0) or minimum (1) of group `i` into twelve bytes, which are zero. */
export function storeSixBits(
  packed: Uint8Array,
  i: number,
  { which, value }: { readonly which: 0 | 1; readonly value: number },
): void {
  if (i < 4) {
    packed[i + 4 * which]! |= value;
    return;
  }
  packed[i + 4]! |= (value & 15) << 4 * which;
  packed[i - 4 + 4 * which]! |= value >> 4 << 6;
}

/** The f16 at a byte. */
function half(block: Uint8Array, at: number): number {
  return widenF16(block[at]! | block[at + 1]! << 8);
}

/** Codes, scales and offsets of elements. */
export interface BlockParts {
  readonly codes: Uint8Array;
  readonly scales: Float32Array;
  /** Empty if the element kind has no offsets. */
  readonly offsets: Float32Array;
}

/** A decoder of blocks: fills codes of the element kind, scales and offsets. */
export function blockDecoder(
  name: BlockName,
): (block: Uint8Array, to: BlockParts) => void {
  const { elements, group, codes, above, scales, offsets }: Block =
    BLOCKS[name];
  const planes = new Planes(codes, elements);
  const first = scalesReader(scales, elements / group);
  const second = offsets && scalesReader(offsets, elements / group);
  return (block, to) => {
    planes.read(block, to.codes, above);
    first(block, to.scales);
    second?.(block, to.offsets);
  };
}

/** The scales or offsets of a file. */
export interface ScalesReader {
  /** The factor, with its sign. */
  factor(block: Uint8Array): number;
  /**
   * Reads an integer per group, modulo 256: eight-bit integers are signed, smaller ones after `above` is subtracted.
   */
  integers?(block: Uint8Array, to: Uint8Array): void;
}

/** A reader of the scales or offsets of `groups` groups. */
export function readerOfScales(
  { at, factor, integers, negative }: NonNullable<Block["offsets"]>,
  groups: number,
): ScalesReader {
  const sign = negative ? -1 : 1;
  const reader: ScalesReader = {
    factor: (block) =>
      sign * (factor === "f16" ? half(block, at) : 2 ** (block[at]! - 127)),
  };
  if (integers === undefined) return reader;
  if (!("six" in integers)) {
    const planes = new Planes(integers.planes, groups);
    return {
      ...reader,
      integers: (block, to) => planes.read(block, to, integers.above),
    };
  }
  return {
    ...reader,
    integers: (block, to) => {
      const packed = block.subarray(integers.at, integers.at + 12);
      for (let i = 0; i < groups; i++) {
        to[i] = sixBits(packed, i, integers.six);
      }
    },
  };
}

function scalesReader(
  part: NonNullable<Block["offsets"]>,
  groups: number,
): (block: Uint8Array, to: Float32Array) => void {
  const reader = readerOfScales(part, groups);
  const numbers = new Uint8Array(groups).fill(1);
  return (block, to) => {
    reader.integers?.(block, numbers);
    const value = reader.factor(block);
    for (let i = 0; i < groups; i++) {
      to[i] = value * (numbers[i]! << 24 >> 24);
    }
  };
}
