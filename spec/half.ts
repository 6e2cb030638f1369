/** Conversions of 16-bit floats. */

/** The nearest f16, ties to even, as a number. */
export function roundF16(x: number): number {
  const single = Math.fround(x);
  const size = Math.abs(single);
  if (!Number.isFinite(single) || size === 0) return single;
  if (size >= 65520) return Math.sign(single) * Infinity;
  // The step between neighbours: 2^(exponent - 10), or 2^-24 for subnormal numbers.
  const exponent = Math.max(Math.floor(Math.log2(size)), -14);
  const step = 2 ** (exponent - 10);
  return roundEven(single / step) * step;
}

/** The nearest integer, ties to even. A zero has the sign of `x`. */
export function roundEven(x: number): number {
  const floor = Math.floor(x);
  const rest = x - floor;
  const up = rest > 0.5 || (rest === 0.5 && floor % 2 !== 0);
  return (up ? floor + 1 : floor) || 0 * x;
}

/** The value of an f16's bits. */
export function widenF16(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return exponent === 0
    ? sign * fraction * 2 ** -24
    : sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
