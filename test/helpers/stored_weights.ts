/** Random weights in storage formats of checkpoints, with their values. */

import { randoms } from "./random_values.ts";

/** Values of the sixteen codes of a four-bit float. */
const FP4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6].flatMap((x, i, all) =>
  i < 7 ? [x] : [x, ...all.map((v) => -v)]
);

/** Values of all 16-bit patterns: sign, exponent, fraction of `width` bits. */
function values16(width: number, bias: number): Float32Array {
  return Float32Array.from({ length: 0x10000 }, (_, bits) => {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits & 0x7fff) >> width;
    const fraction = (bits & (1 << width) - 1) / 2 ** width;
    return sign *
      (exponent === 0
        ? fraction * 2 ** (1 - bias)
        : (1 + fraction) * 2 ** (exponent - bias));
  });
}

const VALUES = { f16: values16(10, 15), bf16: values16(7, 127) };

/** Returns the value of a finite 16-bit float. */
export function value16(bits: number, stored: keyof typeof VALUES): number {
  return VALUES[stored][bits]!;
}

/** Weights [k, columns] as stored, and their values. */
export interface StoredWeights {
  readonly words: Uint32Array;
  /** Bytes, bits of 16-bit floats, these with zero points above them, or factors. */
  readonly scales?: Uint32Array | Uint16Array | Float32Array;
  /** Factors of the scales of columns, expert by expert. */
  readonly factors?: Float32Array;
  readonly rowStride: number;
  readonly values: Float32Array;
}

/** Random 16-bit floats without infinities and NaN, two per word, with rows padded to a multiple of four. */
export function weights16(
  [k, columns]: readonly [number, number],
  stored: "f16" | "bf16",
  seed: number,
): StoredWeights {
  const rowStride = Math.ceil(columns / 4) * 4;
  const halves = new Uint16Array(k * rowStride);
  const noise = randoms(k * columns, seed);
  // In bf16, exponents around 1, so that sums stay finite; in f16, all, including zero and subnormals.
  const [min, max] = stored === "f16" ? [0, 0x7bff] : [0x3800, 0x4700];
  const values = noise.map((x, at) => {
    const size = min + Math.floor(Math.abs(x) * (max - min + 1));
    const bits = x < 0 ? size | 0x8000 : size;
    halves[Math.floor(at / columns) * rowStride + at % columns] = bits;
    return value16(bits, stored);
  });
  return { words: new Uint32Array(halves.buffer), rowStride, values };
}

/** Random four-bit floats: all codes, and exponents of published weights. */
export function weights4(
  [k, columns]: readonly [number, number],
  seed: number,
): StoredWeights {
  const words = new Uint32Array(k / 8 * columns);
  const scales = new Uint32Array(k / 32 * columns);
  const noise = randoms(k * columns, seed).map(Math.abs);
  const values = noise.map((x, at) => {
    const [i, c] = [Math.floor(at / columns), at % columns];
    const scale = Math.floor(i / 32) * columns + c;
    if (i % 32 === 0) scales[scale] = 118 + Math.floor(x * 14);
    const code = Math.floor(x * 16000) % 16;
    words[Math.floor(i / 8) * columns + c]! |= code << 4 * (i % 8);
    return FP4[code]! * 2 ** (scales[scale]! - 127);
  });
  return { words, scales, rowStride: columns, values };
}

/** Random four-bit floats with an E4M3 scale per 16 elements along k, and a factor per column of each expert. */
export function weightsNv4(
  [k, columns]: readonly [number, number],
  seed: number,
  experts: number,
): StoredWeights {
  const words = new Uint32Array(k / 8 * columns);
  const noise = randoms(k * columns, seed).map(Math.abs);
  const scales = Uint32Array.from(
    { length: k / 16 * columns },
    (_, i) => Math.floor(noise[i]! * 1270000) % 127,
  );
  const factors = randoms(experts * columns, seed + 1);
  const values = noise.map((x, at) => {
    const [i, c] = [Math.floor(at / columns), at % columns];
    const code = Math.floor(x * 16000) % 16;
    words[Math.floor(i / 8) * columns + c]! |= code << 4 * (i % 8);
    const scale = scales[Math.floor(i / 16) * columns + c]!;
    const factor = factors[Math.floor(i * experts / k) * columns + c]!;
    return FP4[code]! * Math.fround(value8(scale) * factor);
  });
  return { words, scales, factors, rowStride: columns, values };
}

/** Random four-bit integers with a 16-bit scale per 32 elements along k, and a zero point if they are unsigned. */
function weightsInt4(
  [k, columns]: readonly [number, number],
  seed: number,
  { scale: stored, zeros }: {
    readonly scale: keyof typeof VALUES;
    readonly zeros: boolean;
  },
): StoredWeights {
  const words = new Uint32Array(k / 8 * columns);
  const noise = randoms(k * columns, seed).map(Math.abs);
  const scales = Uint16Array.from(
    { length: k / 32 * columns },
    (_, i) => (stored === "f16" ? 0x1 : 0x3c00) + Math.floor(noise[i]! * 1000),
  );
  const offsets = scales.map((_, i) =>
    zeros ? Math.floor(noise[i]! * 1700000) % 17 : 8
  );
  const values = noise.map((x, at) => {
    const [i, c] = [Math.floor(at / columns), at % columns];
    const code = Math.floor(x * 16000) % 16;
    words[Math.floor(i / 8) * columns + c]! |= code << 4 * (i % 8);
    const group = Math.floor(i / 32) * columns + c;
    return (code - offsets[group]!) * value16(scales[group]!, stored);
  });
  return {
    words,
    scales: zeros
      ? new Float32Array(
        Uint32Array.from(scales, (scale, i) => scale | offsets[i]! << 16)
          .buffer,
      )
      : scales,
    rowStride: columns,
    values,
  };
}

/** Random four-bit integers by encoding. */
export const INTEGERS = {
  int4x32_bf16: (size: readonly [number, number], seed: number) =>
    weightsInt4(size, seed, { scale: "bf16", zeros: false }),
  uint4x32_f16_zero: (size: readonly [number, number], seed: number) =>
    weightsInt4(size, seed, { scale: "f16", zeros: true }),
} as const;

/** Returns the value of a code of E4M3. */
function value8(code: number): number {
  const [exponent, fraction] = [code % 128 >> 3, code % 8];
  const size = exponent === 0
    ? fraction * 2 ** -9
    : (8 + fraction) * 2 ** (exponent - 10);
  return code < 128 ? size : -size;
}

/** Random E4M3: all codes except NaN, including subnormals, and a scale per 32 elements along k. */
export function weights8(
  [k, columns]: readonly [number, number],
  seed: number,
): StoredWeights {
  const words = new Uint32Array(k / 4 * columns);
  const scales = randoms(k / 32 * columns, seed + 1);
  const noise = randoms(k * columns, seed).map(Math.abs);
  const values = noise.map((x, at) => {
    const [i, c] = [Math.floor(at / columns), at % columns];
    const code = Math.floor(x * 16000) % 256;
    const finite = code % 128 === 127 ? code - 1 : code;
    words[Math.floor(i / 4) * columns + c]! |= finite << 8 * (i % 4);
    const scale = scales[Math.floor(i / 32) * columns + c]!;
    return Math.fround(value8(finite) * scale);
  });
  return { words, scales, rowStride: columns, values };
}
