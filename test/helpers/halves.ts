/** Reference for 16-bit floats: all values, and rounding to the nearest. */

/** Returns the value of a positive finite 16-bit float. */
function valueOf(stored: "f16" | "bf16", bits: number): number {
  const [fraction, bias] = stored === "f16" ? [10, 15] : [7, 127];
  const exponent = bits >> fraction;
  const part = (bits & (1 << fraction) - 1) / 2 ** fraction;
  return exponent === 0
    ? part * 2 ** (1 - bias)
    : (1 + part) * 2 ** (exponent - bias);
}

/** Bits of infinity. Smaller bits are finite values in ascending order. */
const INFINITE = { f16: 0x7c00, bf16: 0x7f80 } as const;

/** Bits of NaN after rounding. */
export const NAN = { f16: 0x7e00, bf16: 0x7fc0 } as const;

/** Returns the positive finite values, by their bits. */
export function halves(stored: "f16" | "bf16"): Float64Array {
  return Float64Array.from(
    { length: INFINITE[stored] },
    (_, bits) => valueOf(stored, bits),
  );
}

/** Returns the bits of the nearest 16-bit float, ties to even. `values`: result of `halves`. */
export function nearest(values: Float64Array, x: number): number {
  const sign = Object.is(Math.sign(x), -0) || x < 0 ? 0x8000 : 0;
  const size = Math.abs(x);
  // The value after the largest rounds to infinity.
  const at = (bits: number) =>
    values[bits] ?? 2 * values[bits - 1]! - values[bits - 2]!;
  let [low, high] = [0, values.length];
  if (size >= at(high)) return sign | high;
  while (high - low > 1) {
    const middle = low + high >> 1;
    if (at(middle) <= size) low = middle;
    else high = middle;
  }
  const [below, above] = [size - at(low), at(high) - size];
  const up = above < below || above === below && low % 2 === 1;
  return sign | (up ? high : low);
}

/** Packs bytes into u32 words, padded with zeros. */
export function inWords(bytes: ArrayLike<number>): Uint32Array {
  const words = new Uint32Array(Math.ceil(bytes.length / 4));
  new Uint8Array(words.buffer).set(bytes);
  return words;
}
