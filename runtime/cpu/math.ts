/**
 * The f32 functions that WebAssembly does not have, four lanes at a time. The scalar form is one lane of the vector
 * form, so the bits are equal. `exp` is in f32 (about 1 ulp); the rest go through f64 polynomials and round once.
 */

import type { CallName } from "../../spec/kernel/tree.ts";
import { WasmFunction, type WasmModule, type WasmOp } from "./wasm.ts";

/** Something that pushes one value. */
export type Push = () => void;

/** Builds vector arithmetic in a function: nodes push, `bind` keeps a value in a local. */
export class VectorCode {
  readonly f: WasmFunction;
  constructor(f: WasmFunction) {
    this.f = f;
  }
  op = (name: WasmOp, ...args: readonly Push[]): Push => () => {
    for (const arg of args) arg();
    this.f.op(name);
  };
  bind = (value: Push): Push => {
    const local = this.f.local("v128");
    value();
    this.f.set(local);
    return () => this.f.get(local);
  };
  f32 = (value: number): Push => () => this.f.f32x4(value);
  f64 = (value: number): Push => () => this.f.f64x2(value);
  word = (value: number): Push => () =>
    this.f.words(value, value, value, value);
  /** Both halves of a 64-bit lane. */
  long = (high: number, low: number): Push => () =>
    this.f.words(low, high, low, high);
  i32 = (value: number): Push => () => this.f.i32(value);
  /** `mask ? a : b`, bit by bit. */
  pick = (mask: Push, a: Push, b: Push): Push =>
    this.op("v128.bitselect", a, b, mask);
  /** c[0] + x*(c[1] + x*(c[2] + …)). */
  poly = (type: "f32x4" | "f64x2", x: Push, c: readonly number[]): Push => {
    const constant = type === "f32x4" ? this.f32 : this.f64;
    return c.slice(0, -1).reduceRight<Push>(
      (sum, k) =>
        this.op(`${type}.add`, this.op(`${type}.mul`, sum, x), constant(k)),
      constant(c.at(-1)!),
    );
  };
  shuffle = (
    a: Push,
    b: Push,
    words: readonly [number, number, number, number],
  ): Push =>
  () => {
    a();
    b();
    this.f.shuffle(...words);
  };
}

/** The f16 in the lower or upper half of each u32 lane, as f32. */
export function unpackF16(
  v: VectorCode,
  value: Push,
  half: "low" | "high",
): Push {
  const { op, word, bind, i32 } = v;
  const packed = bind(value);
  const moved = half === "low"
    ? op("i32x4.shl", packed, i32(13))
    : op("i32x4.shr_u", packed, i32(3));
  const magnitude = bind(op("v128.and", moved, word(0x0fffe000)));
  // As an f32, these bits are 2^112 too small; infinities and NaNs need the full exponent.
  const scaled = op("f32x4.mul", magnitude, v.f32(2 ** 112));
  const special = op(
    "v128.and",
    op("i32x4.gt_s", magnitude, word(0x0f7fffff)),
    word(0x7f800000),
  );
  const top = half === "low" ? op("i32x4.shl", packed, i32(16)) : packed;
  const sign = op("v128.and", top, word(0x80000000));
  return op("v128.or", op("v128.or", scaled, special), sign);
}

/** f32 lanes rounded to the nearest f16, ties to even. */
export function roundF16(v: VectorCode, value: Push): Push {
  const { op, word, bind, pick } = v;
  const x = bind(value);
  const magnitude = bind(op("v128.and", x, word(0x7fffffff)));
  const sign = op("v128.and", x, word(0x80000000));
  const odd = op(
    "v128.and",
    op("i32x4.shr_u", magnitude, v.i32(13)),
    word(1),
  );
  const rounded = bind(op(
    "v128.and",
    op("i32x4.add", op("i32x4.add", magnitude, word(0xfff)), odd),
    word(0xffffe000),
  ));
  const normal = pick(
    op("i32x4.ge_u", rounded, word(0x47800000)),
    word(0x7f800000),
    rounded,
  );
  // Below 2^-14 an f16 counts in steps of 2^-24, which is the last place of numbers near a half.
  const tiny = op(
    "f32x4.sub",
    op("f32x4.add", magnitude, v.f32(0.5)),
    v.f32(0.5),
  );
  const isTiny = op("i32x4.lt_u", magnitude, word(0x38800000));
  const isNan = op("i32x4.gt_u", magnitude, word(0x7f800000));
  return op(
    "v128.or",
    pick(isNan, magnitude, pick(isTiny, tiny, normal)),
    sign,
  );
}

/** e^x in f32: x = n ln 2 + r, a polynomial of r, and 2^n in two factors so that tiny results are right. */
function expF32(v: VectorCode, value: Push): Push {
  const { op, bind, f32 } = v;
  const x = bind(
    op("f32x4.pmax", op("f32x4.pmin", value, f32(100)), f32(-110)),
  );
  const n = bind(
    op("f32x4.nearest", op("f32x4.mul", x, f32(1.4426950408889634))),
  );
  const r = bind(op(
    "f32x4.add",
    op("f32x4.sub", x, op("f32x4.mul", n, f32(0.693359375))),
    op("f32x4.mul", n, f32(2.12194440e-4)),
  ));
  const p = v.poly("f32x4", r, [
    5.0000001201e-1,
    1.6666665459e-1,
    4.1665795894e-2,
    8.3334519073e-3,
    1.3981999507e-3,
    1.9875691500e-4,
  ]);
  const y = op(
    "f32x4.add",
    op("f32x4.add", op("f32x4.mul", op("f32x4.mul", p, r), r), r),
    f32(1),
  );
  const whole = bind(op("i32x4.trunc_sat_f32x4_s", n));
  const half = bind(op("i32x4.shr_s", whole, v.i32(1)));
  const power = (k: Push) =>
    op("i32x4.shl", op("i32x4.add", k, v.word(127)), v.i32(23));
  return op(
    "f32x4.mul",
    op("f32x4.mul", y, power(half)),
    power(op("i32x4.sub", whole, half)),
  );
}

/** e^x of two f64 lanes, |x| clamped to 700. */
function expF64(v: VectorCode, value: Push): Push {
  const { op, bind, f64 } = v;
  const x = bind(
    op("f64x2.pmax", op("f64x2.pmin", value, f64(700)), f64(-700)),
  );
  const n = bind(op("f64x2.nearest", op("f64x2.mul", x, f64(Math.LOG2E))));
  const r = bind(op(
    "f64x2.sub",
    op("f64x2.sub", x, op("f64x2.mul", n, f64(6.93147180369123816490e-1))),
    op("f64x2.mul", n, f64(1.90821492927058770002e-10)),
  ));
  let factorial = 1;
  const y = v.poly(
    "f64x2",
    r,
    Array.from({ length: 11 }, (_, i) => 1 / (factorial *= i || 1)),
  );
  const power = op(
    "i64x2.shl",
    op(
      "i64x2.add",
      op("i64x2.extend_low_i32x4_s", op("i32x4.trunc_sat_f64x2_s_zero", n)),
      v.long(0, 1023),
    ),
    v.i32(52),
  );
  return op("f64x2.mul", y, power);
}

/** ln x of two positive f64 lanes. */
function logF64(v: VectorCode, value: Push): Push {
  const { op, bind, f64 } = v;
  const x = bind(value);
  const m1 = bind(op(
    "v128.or",
    op("v128.and", x, v.long(0x000fffff, 0xffffffff)),
    f64(1),
  ));
  const high = bind(op("f64x2.lt", f64(Math.SQRT2), m1));
  const m = bind(
    v.pick(high, op("f64x2.mul", m1, f64(0.5)), m1),
  );
  const bits = bind(op("i64x2.shr_u", x, v.i32(52)));
  const e = bind(op(
    "f64x2.add",
    op(
      "f64x2.sub",
      op("f64x2.convert_low_i32x4_s", v.shuffle(bits, bits, [0, 2, 0, 2])),
      f64(1023),
    ),
    op("v128.and", high, f64(1)),
  ));
  const s = bind(op(
    "f64x2.div",
    op("f64x2.sub", m, f64(1)),
    op("f64x2.add", m, f64(1)),
  ));
  const s2 = bind(op("f64x2.mul", s, s));
  const series = v.poly(
    "f64x2",
    s2,
    [0, 1, 2, 3, 4, 5, 6, 7].map((i) => 2 / (2 * i + 1)),
  );
  return op(
    "f64x2.add",
    op("f64x2.mul", e, f64(Math.LN2)),
    op("f64x2.mul", series, s),
  );
}

/** sin(x + quarter * pi / 2) of two f64 lanes; good to |x| of about a million. */
function sinF64(v: VectorCode, value: Push, quarter: 0 | 1): Push {
  const { op, bind, f64 } = v;
  const x = bind(value);
  const n = bind(op("f64x2.nearest", op("f64x2.mul", x, f64(2 / Math.PI))));
  const r = bind(op(
    "f64x2.sub",
    op("f64x2.sub", x, op("f64x2.mul", n, f64(1.57079632673412561417))),
    op("f64x2.mul", n, f64(6.07710050650619224932e-11)),
  ));
  const r2 = bind(op("f64x2.mul", r, r));
  const series = (first: number) => {
    let factorial = 1;
    return Array.from({ length: 7 }, (_, i) => {
      const k = 2 * i + first;
      if (k > 1) factorial *= -k * (k - 1);
      return 1 / factorial;
    });
  };
  const sine = op("f64x2.mul", v.poly("f64x2", r2, series(1)), r);
  const cosine = v.poly("f64x2", r2, series(0));
  const q = bind(op(
    "i64x2.add",
    op("i64x2.extend_low_i32x4_s", op("i32x4.trunc_sat_f64x2_s_zero", n)),
    v.long(0, quarter),
  ));
  const odd = op(
    "i64x2.sub",
    v.long(0, 0),
    op("v128.and", q, v.long(0, 1)),
  );
  const sign = op(
    "i64x2.shl",
    op("v128.and", q, v.long(0, 2)),
    v.i32(62),
  );
  return op("v128.xor", v.pick(odd, cosine, sine), sign);
}

/** tanh of two f64 lanes. */
function tanhF64(v: VectorCode, value: Push): Push {
  const { op, bind, f64 } = v;
  const x = bind(value);
  const magnitude = bind(op("f64x2.abs", x));
  const t = bind(expF64(v, op("f64x2.mul", magnitude, f64(-2))));
  const y = op(
    "f64x2.div",
    op("f64x2.sub", f64(1), t),
    op("f64x2.add", f64(1), t),
  );
  const sign = op("v128.and", x, v.long(0x80000000, 0));
  // Near zero 1 - t has lost its digits, and tanh x is x.
  return v.pick(
    op("f64x2.lt", magnitude, f64(2 ** -12)),
    x,
    op("v128.or", y, sign),
  );
}

/** Run a function of f64 pairs over four f32 lanes. */
function throughF64(
  v: VectorCode,
  fn: (...args: Push[]) => Push,
  ...args: readonly Push[]
): Push {
  const half = (words: readonly [number, number, number, number]) =>
    v.bind(v.op(
      "f32x4.demote_f64x2_zero",
      fn(
        ...args.map((arg) =>
          v.op("f64x2.promote_low_f32x4", v.shuffle(arg, arg, words))
        ),
      ),
    ));
  return v.shuffle(half([0, 1, 0, 1]), half([2, 3, 2, 3]), [0, 1, 4, 5]);
}

/** ln x with its special values. */
function logF32(v: VectorCode, x: Push): Push {
  const { op, f32, pick } = v;
  const y = throughF64(v, (d) => logF64(v, d), x);
  const positive = op("f32x4.gt", x, f32(0));
  const finite = op("f32x4.lt", x, f32(Infinity));
  // Infinity and NaN are their own logarithms.
  const edge = pick(
    op("f32x4.eq", x, f32(0)),
    f32(-Infinity),
    pick(op("f32x4.lt", x, f32(0)), f32(NaN), x),
  );
  return pick(op("v128.and", positive, finite), y, edge);
}

/** x^y; a negative x is allowed where y is an integer. */
function powF32(v: VectorCode, x: Push, y: Push): Push {
  const { op, f32, pick, bind } = v;
  const magnitude = bind(op("f32x4.abs", x));
  const finite = throughF64(
    v,
    (a, b) => expF64(v, op("f64x2.mul", b, logF64(v, a))),
    magnitude,
    y,
  );
  const rising = op("f32x4.gt", y, f32(0));
  const at0 = pick(rising, f32(0), f32(Infinity));
  const atInfinity = pick(rising, f32(Infinity), f32(0));
  const positive = bind(pick(
    op("f32x4.eq", magnitude, f32(0)),
    at0,
    pick(op("f32x4.eq", magnitude, f32(Infinity)), atInfinity, finite),
  ));
  const half = bind(op("f32x4.mul", y, f32(0.5)));
  const odd = op("f32x4.ne", half, op("f32x4.nearest", half));
  const signed = pick(
    op("f32x4.eq", y, op("f32x4.nearest", y)),
    op("v128.xor", positive, op("v128.and", odd, v.word(0x80000000))),
    pick(op("f32x4.lt", magnitude, f32(Infinity)), f32(NaN), positive),
  );
  const nan = op(
    "v128.or",
    op("f32x4.ne", x, x),
    op("f32x4.ne", y, y),
  );
  return pick(
    op("f32x4.eq", y, f32(0)),
    f32(1),
    pick(
      nan,
      f32(NaN),
      pick(op("f32x4.lt", x, f32(0)), signed, positive),
    ),
  );
}

/** NaN and infinity of the argument give NaN. */
function trigF32(v: VectorCode, x: Push, quarter: 0 | 1): Push {
  return v.pick(
    v.op("f32x4.lt", v.op("f32x4.abs", x), v.f32(Infinity)),
    throughF64(v, (d) => sinF64(v, d, quarter), x),
    v.f32(NaN),
  );
}

/** The functions that are WebAssembly functions of their own, called rather than inlined. */
const CALLED: {
  readonly [N in CallName]?: (v: VectorCode, a: Push, b: Push) => Push;
} = {
  exp: expF32,
  log: logF32,
  sin: (v, x) => trigF32(v, x, 0),
  cos: (v, x) => trigF32(v, x, 1),
  tanh: (v, x) => throughF64(v, (d) => tanhF64(v, d), x),
  pow: powF32,
};

/** Whether a function is called rather than inlined. */
export function isCalled(fn: CallName): boolean {
  return fn in CALLED;
}

/** The functions that a module needs, added at their first use. */
export class MathLibrary {
  #module: WasmModule;
  #index = new Map<CallName, number>();
  constructor(module: WasmModule) {
    this.#module = module;
  }
  /** The index of a function: v128 (two for pow) to v128. */
  index(fn: CallName): number {
    const known = this.#index.get(fn);
    if (known !== undefined) return known;
    const two = fn === "pow";
    const code = new WasmFunction(two ? ["v128", "v128"] : ["v128"], ["v128"]);
    const result = CALLED[fn]!(
      new VectorCode(code),
      () => code.get(0),
      () => code.get(1),
    );
    result();
    const index = this.#module.add(code);
    this.#index.set(fn, index);
    return index;
  }
}
