/**
 * Formats of the rows that dispatch and combine exchange. Rows are rounded to their format on every mesh, also where
 * they stay on their rank, so that bits do not depend on the mesh. Encoding a rounded row is exact. See `numerics.md`.
 */

import { PACKED_ELEMENTS } from "./weights/packed.ts";

/** A format that rounds. */
export type WireFormat = "bf16" | "fp8";

/** The format of exchanged rows: of dispatched ones, if those of combine differ. */
export type Wire = "f32" | WireFormat;

/** All formats, the default first. */
export const WIRE_NAMES: readonly Wire[] = ["f32", "bf16", "fp8"];

/** The formats of the rows of dispatch and combine. Absent: f32. */
export const WIRES: {
  readonly [W in Wire]: {
    readonly dispatch?: WireFormat;
    readonly combine?: WireFormat;
  };
} = {
  f32: {},
  bf16: { dispatch: "bf16", combine: "bf16" },
  fp8: { dispatch: "fp8", combine: "bf16" },
};

/** Elements per scale of `fp8`. */
export const FP8_BLOCK = 128;

/** Bits of the magnitude below which all elements of a block are 0. */
export const FP8_ZERO = 72 << 23;

/** Words of an encoded row of `length` elements. `fp8`: four codes per word, then an f32 scale per block. */
export function wireWords(format: WireFormat, length: number): number {
  return format === "bf16"
    ? Math.ceil(length / 2)
    : Math.ceil(length / 4) + Math.ceil(length / FP8_BLOCK);
}

const BITS = new Uint32Array(1);
const FLOAT = new Float32Array(BITS.buffer);

/** The f32 numbers that a row has after the exchange. */
export function roundToWire(
  format: WireFormat,
  row: readonly number[],
): number[] {
  if (format === "bf16") return row.map(roundToBf16);
  const rounded: number[] = [];
  for (let first = 0; first < row.length; first += FP8_BLOCK) {
    rounded.push(...roundBlock(row.slice(first, first + FP8_BLOCK)));
  }
  return rounded;
}

function roundToBf16(x: number): number {
  FLOAT[0] = x;
  const bits = BITS[0]!;
  if (Number.isNaN(x)) return NaN;
  BITS[0] = bits + 0x7fff + (bits >>> 16 & 1) & 0xffff0000;
  return FLOAT[0]!;
}

/** Rounds a block to the nearest E4M3 codes times the smallest power of two that keeps them finite. */
function roundBlock(block: readonly number[]): number[] {
  FLOAT[0] = Math.max(...block.map(Math.abs));
  const largest = BITS[0]!;
  if (largest >= 0x7f800000) return block.map(() => NaN);
  if (largest < FP8_ZERO) return block.map(() => 0);
  const fits = (largest & 0x7fffff) <= 0x600000;
  const scale = 2 ** ((largest >>> 23) - 127 - (fits ? 8 : 7));
  return block.map((x) => Math.sign(x) * nearest(Math.abs(x) / scale) * scale);
}

/** The nearest magnitude of E4M3, ties to the even code. `x` is at most 448. */
function nearest(x: number): number {
  const { value } = PACKED_ELEMENTS.fp8;
  let [low, high] = [0, 0x7e];
  while (high - low > 1) {
    const middle = low + high >> 1;
    if (value(middle) <= x) low = middle;
    else high = middle;
  }
  const [below, above] = [x - value(low), value(high) - x];
  const up = below === above ? low % 2 === 1 : above < below;
  return value(up ? high : low);
}
