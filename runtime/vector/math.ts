/**
 * The f32 functions that processors do not have, in the vector IR, so that the bits are equal on all devices. `exp` is in f32
 * (about 1 ulp); the rest go through f64 polynomials and round once.
 */

import type { CallName } from "../../spec/kernel/tree.ts";
import {
  apply,
  constant,
  get,
  type Local,
  newLocal,
  type Op,
  type Value,
} from "./ir.ts";

/** A function of lanes. */
export interface MathFunction {
  readonly params: readonly Local[];
  readonly body: Value;
  /** Devices on which it is a function rather than inlined. */
  readonly called: readonly ("cpu" | "native")[];
}

function f32(value: number): Value {
  return constant("vf", value);
}
function f64(value: number): Value {
  return constant("vd", value);
}
function bits(value: number): Value {
  return constant("vu", value);
}
function long(value: bigint): Value {
  return constant("vl", value);
}
function by(value: number): Value {
  return constant("u", value);
}
function pick(mask: Value, a: Value, b: Value): Value {
  return apply("f.pick", a, b, mask);
}
function pickWide(mask: Value, a: Value, b: Value): Value {
  return apply("d.pick", a, b, mask);
}
function asF32(value: Value): Value {
  return apply("f.bits", value);
}
function asWords(value: Value): Value {
  return apply("v.bits", value);
}
function asF64(value: Value): Value {
  return apply("d.bits", value);
}
function asLong(value: Value): Value {
  return apply("l.bits", value);
}

/** c[0] + x*(c[1] + x*(c[2] + …)). */
function poly(type: "f" | "d", x: Value, c: readonly number[]): Value {
  const of = type === "f" ? f32 : f64;
  const [add, mul]: [Op, Op] = [`${type}.add`, `${type}.mul`];
  return c.slice(0, -1).reduceRight(
    (sum, k) => apply(add, apply(mul, sum, x), of(k)),
    of(c.at(-1)!),
  );
}

/** The f16 in the lower or upper half of each word, as f32. */
function unpackF16(packed: Value, half: "low" | "high"): Value {
  const low = half === "low";
  const moved = low
    ? apply("v.shl", packed, by(13))
    : apply("v.shr_u", packed, by(3));
  const magnitude = apply("v.and", moved, bits(0x0fffe000));
  // As an f32, these bits are 2^112 too small; infinities and NaNs need the full exponent.
  const scaled = apply("f.mul", asF32(magnitude), f32(2 ** 112));
  const special = apply(
    "v.and",
    apply("v.gt_s", magnitude, bits(0x0f7fffff)),
    bits(0x7f800000),
  );
  const top = low ? apply("v.shl", packed, by(16)) : packed;
  const sign = apply("v.and", top, bits(0x80000000));
  return asF32(
    apply("v.or", apply("v.or", asWords(scaled), special), sign),
  );
}

/** Rounds to the nearest f16, ties to even. */
function roundF16(x: Value): Value {
  const magnitude = apply("v.and", asWords(x), bits(0x7fffffff));
  const sign = apply("v.and", asWords(x), bits(0x80000000));
  const odd = apply("v.and", apply("v.shr_u", magnitude, by(13)), bits(1));
  const rounded = apply(
    "v.and",
    apply("v.add", apply("v.add", magnitude, bits(0xfff)), odd),
    bits(0xffffe000),
  );
  const normal = apply(
    "v.pick",
    bits(0x7f800000),
    rounded,
    apply("v.ge_u", rounded, bits(0x47800000)),
  );
  // Below 2^-14 an f16 counts in steps of 2^-24, which is the last place of numbers near a half.
  const half = f32(0.5);
  const tiny = asWords(
    apply("f.sub", apply("f.add", asF32(magnitude), half), half),
  );
  const isTiny = apply("v.lt_u", magnitude, bits(0x38800000));
  const isNan = apply("v.gt_u", magnitude, bits(0x7f800000));
  const number = apply("v.pick", tiny, normal, isTiny);
  return asF32(
    apply("v.or", apply("v.pick", magnitude, number, isNan), sign),
  );
}

/** e^x in f32: x = n ln 2 + r, a polynomial of r, and 2^n in two factors so that tiny results are right. */
function exp(value: Value): Value {
  const x = apply("f.max", apply("f.min", value, f32(100)), f32(-110));
  const n = apply("f.nearest", apply("f.mul", x, f32(1.4426950408889634)));
  const r = apply(
    "f.add",
    apply("f.sub", x, apply("f.mul", n, f32(0.693359375))),
    apply("f.mul", n, f32(2.12194440e-4)),
  );
  const p = poly("f", r, [
    5.0000001201e-1,
    1.6666665459e-1,
    4.1665795894e-2,
    8.3334519073e-3,
    1.3981999507e-3,
    1.9875691500e-4,
  ]);
  const square = apply("f.mul", apply("f.mul", p, r), r);
  const y = apply("f.add", apply("f.add", square, r), f32(1));
  // Of NaN, any factors are as good.
  const whole = apply("v.whole", n);
  const half = apply("v.shr_s", whole, by(1));
  const power = (k: Value) =>
    asF32(apply("v.shl", apply("v.add", k, bits(127)), by(23)));
  return apply(
    "f.mul",
    apply("f.mul", y, power(half)),
    power(apply("v.sub", whole, half)),
  );
}

/** e^x of f64, |x| clamped to 700. */
function exp64(value: Value): Value {
  const x = apply("d.max", apply("d.min", value, f64(700)), f64(-700));
  const n = apply("d.nearest", apply("d.mul", x, f64(Math.LOG2E)));
  const r = apply(
    "d.sub",
    apply("d.sub", x, apply("d.mul", n, f64(6.93147180369123816490e-1))),
    apply("d.mul", n, f64(1.90821492927058770002e-10)),
  );
  let factorial = 1;
  const y = poly(
    "d",
    r,
    Array.from({ length: 11 }, (_, i) => 1 / (factorial *= i || 1)),
  );
  const biased = apply("l.add", apply("l.from_d", n), long(1023n));
  return apply("d.mul", y, asF64(apply("l.shl", biased, by(52))));
}

/** ln x of positive f64. */
function log64(x: Value): Value {
  const fraction = apply("l.and", asLong(x), long(0x000fffffffffffffn));
  const m1 = asF64(apply("l.or", fraction, asLong(f64(1))));
  const high = apply("d.lt", f64(Math.SQRT2), m1);
  const m = pickWide(high, apply("d.mul", m1, f64(0.5)), m1);
  const exponent = apply("d.from_l", apply("l.shr_u", asLong(x), by(52)));
  const e = apply(
    "d.add",
    apply("d.sub", exponent, f64(1023)),
    asF64(apply("l.and", high, asLong(f64(1)))),
  );
  const s = apply(
    "d.div",
    apply("d.sub", m, f64(1)),
    apply("d.add", m, f64(1)),
  );
  const series = poly(
    "d",
    apply("d.mul", s, s),
    [0, 1, 2, 3, 4, 5, 6, 7].map((i) => 2 / (2 * i + 1)),
  );
  return apply(
    "d.add",
    apply("d.mul", e, f64(Math.LN2)),
    apply("d.mul", series, s),
  );
}

/** sin(x + quarter * pi / 2) of f64; good to |x| of about a million. */
function sin64(x: Value, quarter: 0 | 1): Value {
  const n = apply("d.nearest", apply("d.mul", x, f64(2 / Math.PI)));
  const r = apply(
    "d.sub",
    apply("d.sub", x, apply("d.mul", n, f64(1.57079632673412561417))),
    apply("d.mul", n, f64(6.07710050650619224932e-11)),
  );
  const r2 = apply("d.mul", r, r);
  const series = (first: number) => {
    let factorial = 1;
    const terms = Array.from({ length: 7 }, (_, i) => {
      const k = 2 * i + first;
      if (k > 1) factorial *= -k * (k - 1);
      return 1 / factorial;
    });
    return poly("d", r2, terms);
  };
  const sine = apply("d.mul", series(1), r);
  const q = apply("l.add", apply("l.from_d", n), long(BigInt(quarter)));
  const odd = apply("l.sub", long(0n), apply("l.and", q, long(1n)));
  const sign = apply("l.shl", apply("l.and", q, long(2n)), by(62));
  const positive = asLong(pickWide(odd, series(0), sine));
  return asF64(apply("l.xor", positive, sign));
}

/** tanh of f64. */
function tanh64(x: Value): Value {
  const magnitude = apply("d.abs", x);
  const t = exp64(apply("d.mul", magnitude, f64(-2)));
  const y = apply(
    "d.div",
    apply("d.sub", f64(1), t),
    apply("d.add", f64(1), t),
  );
  const sign = apply("l.and", asLong(x), long(0x8000000000000000n));
  // Near zero 1 - t has lost its digits, and tanh x is x.
  return pickWide(
    apply("d.lt", magnitude, f64(2 ** -12)),
    x,
    asF64(apply("l.or", asLong(y), sign)),
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
  const below = pick(apply("f.lt", x, f32(0)), f32(NaN), x);
  const edge = pick(apply("f.eq", x, f32(0)), f32(-Infinity), below);
  const finite = apply("f.lt", x, f32(Infinity));
  const inside = apply("v.and", apply("f.gt", x, f32(0)), finite);
  return pick(inside, wide(log64, x), edge);
}

/** x^y; a negative x is allowed where y is an integer. */
function pow(x: Value, y: Value): Value {
  const magnitude = apply("f.abs", x);
  const infinite = apply("f.eq", magnitude, f32(Infinity));
  const finite = wide(
    (a, b) => exp64(apply("d.mul", b!, log64(a!))),
    magnitude,
    y,
  );
  const rising = apply("f.gt", y, f32(0));
  const positive = pick(
    apply("f.eq", magnitude, f32(0)),
    pick(rising, f32(0), f32(Infinity)),
    pick(infinite, pick(rising, f32(Infinity), f32(0)), finite),
  );
  const half = apply("f.mul", y, f32(0.5));
  const odd = apply("f.ne", half, apply("f.nearest", half));
  const flip = apply("v.and", odd, bits(0x80000000));
  const negative = pick(
    apply("f.eq", y, apply("f.nearest", y)),
    asF32(apply("v.xor", asWords(positive), flip)),
    pick(apply("f.lt", magnitude, f32(Infinity)), f32(NaN), positive),
  );
  const nan = apply("v.or", apply("f.ne", x, x), apply("f.ne", y, y));
  const number = pick(apply("f.lt", x, f32(0)), negative, positive);
  return pick(apply("f.eq", y, f32(0)), f32(1), pick(nan, f32(NaN), number));
}

/** NaN and infinity give NaN. */
function trig(x: Value, quarter: 0 | 1): Value {
  return pick(
    apply("f.lt", apply("f.abs", x), f32(Infinity)),
    wide((d) => sin64(d!, quarter), x),
    f32(NaN),
  );
}

function sign(x: Value): Value {
  const bit = apply("v.and", asWords(x), bits(0x80000000));
  const one = asF32(apply("v.or", asWords(f32(1)), bit));
  return pick(apply("f.eq", x, f32(0)), f32(0), one);
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

/** Functions by their names; others are operators. */
export const MATH: { readonly [F in CallName]?: MathFunction } = {
  exp: fn(["vf"], (x) => exp(x!), ["cpu"]),
  log: fn(["vf"], (x) => log(x!), BOTH),
  sin: fn(["vf"], (x) => trig(x!, 0), BOTH),
  cos: fn(["vf"], (x) => trig(x!, 1), BOTH),
  tanh: fn(["vf"], (x) => wide((d) => tanh64(d!), x!), BOTH),
  pow: fn(["vf", "vf"], (x, y) => pow(x!, y!), BOTH),
  sign: fn(["vf"], (x) => sign(x!)),
  roundF16: fn(["vf"], (x) => roundF16(x!), ["native"]),
  unpackF16Lo: fn(["vu"], (x) => unpackF16(x!, "low")),
  unpackF16Hi: fn(["vu"], (x) => unpackF16(x!, "high")),
};
