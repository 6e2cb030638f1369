/**
 * f32 functions without processor instructions, in the vector IR, so that bits are equal on all devices. `exp` is in
 * f32 (about 1 ulp); the others use f64 polynomials and round once.
 */

import type { CallName } from "../../spec/kernel/tree.ts";
import {
  constant,
  d,
  f,
  get,
  l,
  type Local,
  newLocal,
  v,
  type Value,
} from "./ir.ts";

/** A function of lanes. */
export interface MathFunction {
  readonly params: readonly Local[];
  readonly body: Value;
  /** Devices on which it is a function instead of inlined. */
  readonly called: readonly ("cpu" | "native")[];
}

/** c[0] + x*(c[1] + x*(c[2] + …)). */
function poly(
  { add, mul }: typeof f | typeof d,
  x: Value,
  c: readonly number[],
): Value {
  const [last, ...rest] = c.toReversed();
  return rest.reduce<Value | number>(
    (sum, k) => add(mul(sum, x), k),
    last!,
  ) as Value;
}

/** The f16 in the lower or upper half of each word, as f32. */
function unpackF16(packed: Value, half: "low" | "high"): Value {
  const low = half === "low";
  const moved = low ? v.shl(packed, 13) : v.shr_u(packed, 3);
  const magnitude = v.and(moved, 0x0fffe000);
  // As an f32, these bits are too small by 2^112; infinities and NaNs need the full exponent.
  const scaled = v.bits(f.mul(f.bits(magnitude), 2 ** 112));
  const special = v.and(v.gt_s(magnitude, 0x0f7fffff), 0x7f800000);
  const sign = v.and(low ? v.shl(packed, 16) : packed, 0x80000000);
  return f.bits(v.or(v.or(scaled, special), sign));
}

/** Rounds to the nearest f16, ties to even. */
function roundF16(x: Value): Value {
  const magnitude = v.and(v.bits(x), 0x7fffffff);
  const odd = v.and(v.shr_u(magnitude, 13), 1);
  const rounded = v.and(v.add(v.add(magnitude, 0xfff), odd), 0xffffe000);
  const normal = v.pick(0x7f800000, rounded, v.ge_u(rounded, 0x47800000));
  // Below 2^-14 an f16 has steps of 2^-24, the last digit of numbers near a half.
  const tiny = v.bits(f.sub(f.add(f.bits(magnitude), 0.5), 0.5));
  const number = v.pick(tiny, normal, v.lt_u(magnitude, 0x38800000));
  const isNan = v.gt_u(magnitude, 0x7f800000);
  const sign = v.and(v.bits(x), 0x80000000);
  return f.bits(v.or(v.pick(magnitude, number, isNan), sign));
}

/** e^x in f32: x = n ln 2 + r, a polynomial of r, and 2^n in two factors so that tiny results are right. */
function exp(value: Value): Value {
  const x = f.max(f.min(value, 100), -110);
  const n = f.nearest(f.mul(x, 1.4426950408889634));
  const r = f.add(
    f.sub(x, f.mul(n, 0.693359375)),
    f.mul(n, 2.12194440e-4),
  );
  const p = poly(f, r, [
    5.0000001201e-1,
    1.6666665459e-1,
    4.1665795894e-2,
    8.3334519073e-3,
    1.3981999507e-3,
    1.9875691500e-4,
  ]);
  const y = f.add(f.add(f.mul(f.mul(p, r), r), r), 1);
  // For NaN, the factors do not matter.
  const integer = v.whole(n);
  const half = v.shr_s(integer, 1);
  const power = (k: Value) => f.bits(v.shl(v.add(k, 127), 23));
  return f.mul(f.mul(y, power(half)), power(v.sub(integer, half)));
}

/** e^x of f64, |x| clamped to 700. */
function exp64(value: Value): Value {
  const x = d.max(d.min(value, 700), -700);
  const n = d.nearest(d.mul(x, Math.LOG2E));
  const r = d.sub(
    d.sub(x, d.mul(n, 6.93147180369123816490e-1)),
    d.mul(n, 1.90821492927058770002e-10),
  );
  let factorial = 1;
  const terms = Array.from(
    { length: 11 },
    (_, i) => 1 / (factorial *= i || 1),
  );
  const power = l.shl(l.add(l.from_d(n), 1023n), 52);
  return d.mul(poly(d, r, terms), d.bits(power));
}

/** ln x of positive f64. */
function log64(x: Value): Value {
  const one = l.bits(constant("vd", 1));
  const m1 = d.bits(l.or(l.and(l.bits(x), 0x000fffffffffffffn), one));
  const high = d.lt(Math.SQRT2, m1);
  const m = d.pick(d.mul(m1, 0.5), m1, high);
  const exponent = d.sub(d.from_l(l.shr_u(l.bits(x), 52)), 1023);
  const e = d.add(exponent, d.bits(l.and(high, one)));
  const s = d.div(d.sub(m, 1), d.add(m, 1));
  const terms = [0, 1, 2, 3, 4, 5, 6, 7].map((i) => 2 / (2 * i + 1));
  const series = poly(d, d.mul(s, s), terms);
  return d.add(d.mul(e, Math.LN2), d.mul(series, s));
}

/** sin(x + quarter * pi / 2) of f64, accurate for |x| up to about a million. */
function sin64(x: Value, quarter: 0n | 1n): Value {
  const n = d.nearest(d.mul(x, 2 / Math.PI));
  const r = d.sub(
    d.sub(x, d.mul(n, 1.57079632673412561417)),
    d.mul(n, 6.07710050650619224932e-11),
  );
  const r2 = d.mul(r, r);
  const series = (first: number) => {
    let factorial = 1;
    const terms = Array.from({ length: 7 }, (_, i) => {
      const k = 2 * i + first;
      if (k > 1) factorial *= -k * (k - 1);
      return 1 / factorial;
    });
    return poly(d, r2, terms);
  };
  const q = l.add(l.from_d(n), quarter);
  const odd = l.sub(0n, l.and(q, 1n));
  const positive = d.pick(series(0), d.mul(series(1), r), odd);
  return d.bits(l.xor(l.bits(positive), l.shl(l.and(q, 2n), 62)));
}

/** tanh of f64. */
function tanh64(x: Value): Value {
  const magnitude = d.abs(x);
  const t = exp64(d.mul(magnitude, -2));
  const y = d.div(d.sub(1, t), d.add(1, t));
  const sign = l.and(l.bits(x), 0x8000000000000000n);
  // Near zero 1 - t has lost its digits, and tanh x is x.
  return d.pick(
    x,
    d.bits(l.or(l.bits(y), sign)),
    d.lt(magnitude, 2 ** -12),
  );
}

/** A function of f64, rounded once. */
function wide(
  fn: (...args: readonly Value[]) => Value,
  ...args: readonly Value[]
): Value {
  const params = args.map(() => newLocal("wide", "vd"));
  const body = fn(...params.map(get));
  return { op: "wide", type: "vf", params, body, args };
}

/** ln x with its special values: infinity and NaN are their own logarithms. */
function log(x: Value): Value {
  const below = f.pick(NaN, x, f.lt(x, 0));
  const edge = f.pick(-Infinity, below, f.eq(x, 0));
  const inside = v.and(f.gt(x, 0), f.lt(x, Infinity));
  return f.pick(wide((x) => log64(x!), x), edge, inside);
}

/** x^y; a negative x is allowed where y is an integer. */
function pow(x: Value, y: Value): Value {
  const magnitude = f.abs(x);
  const finite = wide((x, y) => exp64(d.mul(y!, log64(x!))), magnitude, y);
  const rising = f.gt(y, 0);
  const large = f.pick(
    f.pick(Infinity, 0, rising),
    finite,
    f.eq(magnitude, Infinity),
  );
  const at0 = f.pick(0, Infinity, rising);
  const positive = f.pick(at0, large, f.eq(magnitude, 0));
  const half = f.mul(y, 0.5);
  const odd = v.and(f.ne(half, f.nearest(half)), 0x80000000);
  const negative = f.pick(
    f.bits(v.xor(v.bits(positive), odd)),
    f.pick(NaN, positive, f.lt(magnitude, Infinity)),
    f.eq(y, f.nearest(y)),
  );
  const number = f.pick(negative, positive, f.lt(x, 0));
  const nan = v.or(f.ne(x, x), f.ne(y, y));
  return f.pick(1, f.pick(NaN, number, nan), f.eq(y, 0));
}

/** NaN and infinity return NaN. */
function trig(x: Value, quarter: 0n | 1n): Value {
  const finite = f.lt(f.abs(x), Infinity);
  return f.pick(wide((x) => sin64(x!, quarter), x), NaN, finite);
}

function sign(x: Value): Value {
  const one = v.or(v.bits(constant("vf", 1)), v.and(v.bits(x), 0x80000000));
  return f.pick(0, f.bits(one), f.eq(x, 0));
}

function fn(
  types: readonly ("vf" | "vu")[],
  build: (...args: Value[]) => Value,
  called: MathFunction["called"] = [],
): MathFunction {
  const params = types.map((type) => newLocal("x", type));
  return { params, body: build(...params.map(get)), called };
}

const BOTH = ["cpu", "native"] as const;

/** Functions by name; others are operators. */
export const MATH: { readonly [F in CallName]?: MathFunction } = {
  exp: fn(["vf"], (x) => exp(x!), ["cpu"]),
  log: fn(["vf"], (x) => log(x!), BOTH),
  sin: fn(["vf"], (x) => trig(x!, 0n), BOTH),
  cos: fn(["vf"], (x) => trig(x!, 1n), BOTH),
  tanh: fn(["vf"], (x) => wide((x) => tanh64(x!), x!), BOTH),
  pow: fn(["vf", "vf"], (x, y) => pow(x!, y!), BOTH),
  sign: fn(["vf"], (x) => sign(x!)),
  roundF16: fn(["vf"], (x) => roundF16(x!), ["native"]),
  unpackF16Lo: fn(["vu"], (x) => unpackF16(x!, "low")),
  unpackF16Hi: fn(["vu"], (x) => unpackF16(x!, "high")),
};
