/** 16-bit floats from their definition: a list of all values, and the nearest of them. */

/** The value of the bits of a positive finite 16-bit float. */
function valueOf(stored: "f16" | "bf16", bits: number): number {
  const [fraction, bias] = stored === "f16" ? [10, 15] : [7, 127];
  const exponent = bits >> fraction;
  const part = (bits & (1 << fraction) - 1) / 2 ** fraction;
  return exponent === 0
    ? part * 2 ** (1 - bias)
    : (1 + part) * 2 ** (exponent - bias);
}

/** The bits of infinity: those before it are of finite values, in their order. */
const INFINITE = { f16: 0x7c00, bf16: 0x7f80 } as const;

/** The bits of what is no number, as rounding gives it. */
export const NAN = { f16: 0x7e00, bf16: 0x7fc0 } as const;

/** The positive finite values, by their bits. */
export function halves(stored: "f16" | "bf16"): Float64Array {
  return Float64Array.from(
    { length: INFINITE[stored] },
    (_, bits) => valueOf(stored, bits),
  );
}

/** The bits of the nearest 16-bit float, of two equally near ones the even; `values` are those of `halves`. */
export function nearest(values: Float64Array, x: number): number {
  const sign = Object.is(Math.sign(x), -0) || x < 0 ? 0x8000 : 0;
  const size = Math.abs(x);
  // After the largest there would be one more, that rounds to infinity.
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

/** Bytes in whole words, as buffers have them. */
export function inWords(bytes: ArrayLike<number>): Uint32Array {
  const words = new Uint32Array(Math.ceil(bytes.length / 4));
  new Uint8Array(words.buffer).set(bytes);
  return words;
}
