/** Math functions and random kernels in WebAssembly: accuracy, and the bits of the interpreter. */

import fc from "fast-check";
import t, { type Test } from "tap";
import {
  add,
  binary,
  bitcast,
  call,
  convert,
  eq,
  f32,
  fma,
  for_,
  i32,
  id,
  if_,
  let_,
  load,
  local,
  lt,
  mul,
  neg,
  rem,
  select,
  set,
  store,
  sub,
  u32,
  var_,
} from "../spec/kernel/build.ts";
import type { CallName, Expr, Kernel, Stmt } from "../spec/kernel/tree.ts";
import { interpretKernel } from "./helpers/interpret_kernel.ts";
import { runWasm } from "./helpers/run_wasm.ts";
import "./helpers/seed.ts";

const i = local("i", "u32");

function kernelOf(body: readonly Stmt[]): Kernel {
  return {
    name: "test",
    workgroupSize: 8,
    shared: [],
    bindings: [
      { name: "x", type: "f32", access: "read" },
      { name: "n", type: "u32", access: "read" },
      { name: "y", type: "f32", access: "read_write" },
    ],
    body: [let_("i", add(mul(id("group.x"), u32(8)), id("local"))), ...body],
  };
}

/** Computes fn(x, z) for all x in vectors; checks that single invocations give the same bits. */
function apply(
  t: Test,
  fn: CallName,
  x: Float32Array,
  second?: Float32Array,
): Float32Array {
  const kernel = kernelOf([
    store(
      "y",
      i,
      second
        ? call(fn, load("x", i), bitcast("f32", load("n", i, "u32")))
        : call(fn, load("x", i)),
    ),
  ]);
  const run = (lanes?: 1) => {
    const y = new Uint32Array(x.length);
    const n = new Uint32Array((second ?? x).slice().buffer);
    runWasm(
      kernel,
      { x: new Uint32Array(x.slice().buffer), n, y },
      [Math.ceil(x.length / 8), 1, 1],
      lanes ? { lanes } : {},
    );
    return y;
  };
  const y = run();
  t.same(run(1), y, "the same bits in scalar form");
  return new Float32Array(y.buffer);
}

/** Error in units in the last place of the exact result. */
function ulps(actual: number, wanted: number): number {
  const rounded = Math.fround(wanted);
  if (Object.is(actual, rounded) || actual === rounded) return 0;
  if (Number.isNaN(actual) && Number.isNaN(rounded)) return 0;
  if (!Number.isFinite(rounded) || !Number.isFinite(actual)) return Infinity;
  const ulp = 2 **
    (Math.max(-126, Math.floor(Math.log2(Math.abs(rounded)))) - 23);
  return Math.abs(actual - wanted) / ulp;
}

function worst(
  actual: Float32Array,
  wanted: (i: number) => number,
): { ulps: number; at: number } {
  return actual.reduce((worst, value, i) => {
    const off = ulps(value, wanted(i));
    return off > worst.ulps ? { ulps: off, at: i } : worst;
  }, { ulps: 0, at: -1 });
}

const SPECIAL = [0, -0, 1, -1, Infinity, -Infinity, NaN, 1e-45, 1.2e-38];
const CASES: {
  readonly [fn: string]: {
    low: number;
    high: number;
    of: (x: number) => number;
  };
} = {
  exp: { low: -104, high: 89, of: Math.exp },
  log: { low: 0, high: 20, of: Math.log },
  sin: { low: -300, high: 300, of: Math.sin },
  cos: { low: -300, high: 300, of: Math.cos },
  tanh: { low: -12, high: 12, of: Math.tanh },
};
for (const [fn, { low, high, of }] of Object.entries(CASES)) {
  t.test(`${fn} is within 2 units in the last place`, (t) => {
    const x = Float32Array.from(
      { length: 4096 },
      (_, k) =>
        k < SPECIAL.length
          ? SPECIAL[k]!
          : k < 1000
          ? (k % 2 ? 1 : low < 0 ? -1 : 1) * 2 ** (-k / 12)
          : low + (high - low) * (k - 1000) / 3095,
    );
    const y = apply(t, fn as CallName, x);
    const off = worst(y, (k) => of(x[k]!));
    t.ok(off.ulps <= 2, `off by ${off.ulps} at ${x[off.at]}`);
    t.end();
  });
}

t.test("pow is within 2 units in the last place", (t) => {
  const bases = [...SPECIAL, 0.3, 2, 3.7, 10, 250, 1e-3, -2, -3.5];
  const powers = [...SPECIAL, 0.5, 2, 3, -2, 7.25, -0.1, 11];
  const pairs = bases.flatMap((x) => powers.map((y) => [x, y] as const))
    // JavaScript alone returns NaN for 1 to an infinite power.
    .filter(([x, y]) => !(Math.abs(x) === 1 && !Number.isFinite(y)))
    .filter(([x, y]) => x >= 0 || Number.isFinite(y) || Number.isNaN(x));
  const x = Float32Array.from(pairs, ([x]) => x);
  const p = Float32Array.from(pairs, ([, y]) => y);
  const y = apply(t, "pow", x, p);
  const off = worst(y, (k) => {
    const wanted = Math.pow(x[k]!, p[k]!);
    return Object.is(Math.abs(x[k]!), 0) ? Math.abs(wanted) : wanted;
  });
  t.ok(off.ulps <= 2, `off by ${off.ulps} at ${x[off.at]} ** ${p[off.at]}`);
  t.end();
});

t.test("all f16 values are unpacked, and roundF16 returns them", (t) => {
  const words = Uint32Array.from(
    { length: 32768 },
    (_, k) => 2 * k | (2 * k + 1) << 16,
  );
  const f16 = (half: number) => {
    const [e, m] = [(half >> 10) & 31, half & 1023];
    const magnitude = e === 31
      ? (m ? NaN : Infinity)
      : e
      ? (1 + m / 1024) * 2 ** (e - 15)
      : m * 2 ** -24;
    return half & 0x8000 ? -magnitude : magnitude;
  };
  for (const [fn, shift] of [["unpackF16Lo", 0], ["unpackF16Hi", 1]] as const) {
    const y = new Uint32Array(words.length);
    const word = load("n", i, "u32");
    const kernel = (value: Expr) => kernelOf([store("y", i, value)]);
    const inputs = () => ({ x: new Uint32Array(4), n: words, y });
    runWasm(kernel(call(fn, word)), inputs(), [4096, 1, 1]);
    const values = new Float32Array(y.slice().buffer);
    t.ok(values.every((value, k) => Object.is(value, f16(2 * k + shift))), fn);
    runWasm(kernel(call("roundF16", call(fn, word))), inputs(), [4096, 1, 1]);
    const again = new Float32Array(y.buffer);
    t.ok(again.every((value, k) => Object.is(value, values[k])), "roundF16");
  }
  t.end();
});

/** Random u32 and f32 expressions, without functions whose last bits the interpreter does not define. */
const { uint, float } = fc.letrec<{ uint: Expr; float: Expr; bool: Expr }>(
  (tie) => ({
    uint: fc.oneof(
      { maxDepth: 4, depthSize: "small" },
      fc.nat(40).map(u32),
      fc.constantFrom(i, id("local"), id("group.x"), local("k", "u32")),
      fc.tuple(
        fc.constantFrom(
          "add",
          "sub",
          "mul",
          "div",
          "rem",
          "and",
          "or",
          "xor",
          "min",
          "max",
          "shl",
          "shr",
        ),
        tie("uint"),
        tie("uint"),
      ).map(([fn, a, b]) => binary(fn, a, b)),
      tie("uint").map((a) => load("n", rem(a, u32(50)), "u32")),
      tie("float").map((a) => bitcast("u32", a)),
      tie("float").map((a) => convert("u32", a)),
      fc.tuple(tie("bool"), tie("uint"), tie("uint")).map(([c, a, b]) =>
        select(c, a, b)
      ),
      tie("uint").map((a) =>
        bitcast("u32", binary("shr", sub(bitcast("i32", a), i32(9)), u32(2)))
      ),
    ),
    float: fc.oneof(
      { maxDepth: 4, depthSize: "small" },
      fc.float({ noNaN: true, min: -8, max: 8 }).map(f32),
      fc.constant(local("s", "f32")),
      tie("uint").map((a) => load("x", rem(a, u32(50)))),
      tie("uint").map((a) => convert("f32", a)),
      fc.tuple(
        fc.constantFrom("add", "sub", "mul", "div", "min", "max"),
        tie("float"),
        tie("float"),
      )
        .map(([fn, a, b]) => binary(fn as "add", a, b)),
      fc.tuple(tie("float"), tie("float"), tie("float")).map(([a, b, c]) =>
        fma(a, b, c)
      ),
      fc.tuple(fc.constantFrom("abs", "floor", "trunc", "round"), tie("float"))
        .map(([fn, a]) => call(fn as "abs", a)),
      tie("float").map((a) => neg(a)),
      fc.tuple(tie("bool"), tie("float"), tie("float")).map(([c, a, b]) =>
        select(c, a, b)
      ),
    ),
    bool: fc.oneof(
      fc.tuple(tie("uint"), tie("uint")).map(([a, b]) => lt(a, b)),
      fc.tuple(tie("float"), tie("float")).map(([a, b]) => binary("le", a, b)),
      fc.tuple(tie("uint"), tie("uint")).map(([a, b]) => eq(rem(a, u32(3)), b)),
    ),
  }),
);

/** Canonicalizes NaNs, whose bits are not specified. */
function canonicalNaN(words: Uint32Array): Uint32Array {
  return words.map((w) => (w & 0x7fffffff) > 0x7f800000 ? 0x7fc00000 : w);
}

t.test("printKernels() agrees with the interpreter on random kernels", (t) => {
  const unpackable = (e: Expr): boolean =>
    !(e.op === "bitcast" && e.type === "u32" && e.a.type === "f32") &&
    Object.values(e).every((part) =>
      Array.isArray(part)
        ? part.every(unpackable)
        : typeof part !== "object" || unpackable(part as Expr)
    );
  fc.assert(
    fc.property(
      uint,
      float,
      uint,
      float,
      fc.nat(9),
      (a, value, bound, other, step) => {
        // The bits of a NaN must not reach an integer.
        fc.pre([a, value, bound, other].every(unpackable));
        const kernel = kernelOf([
          var_("s", f32(1)),
          for_("k", rem(i, u32(3)), rem(bound0(bound), u32(6)), [
            set("s", value),
            if_(lt(a, u32(20)), [set("s", add(local("s", "f32"), f32(1)))], [
              set("s", other),
            ]),
          ], u32(1 + step % 3)),
          store("y", i, local("s", "f32")),
        ]);
        const inputs = () => ({
          x: new Uint32Array(
            Float32Array.from({ length: 50 }, (_, k) => Math.sin(k) * 5).buffer,
          ),
          n: Uint32Array.from(
            { length: 50 },
            (_, k) => (k * 2654435761) >>> (k % 30),
          ),
          y: new Uint32Array(24),
        });
        const [want, vectors, singles] = [inputs(), inputs(), inputs()];
        interpretKernel(kernel, want, [3, 1, 1]);
        runWasm(kernel, vectors, [3, 1, 1]);
        runWasm(kernel, singles, [3, 1, 1], { lanes: 1 });
        const [wanted, ...got] = [want, vectors, singles].map((b) =>
          canonicalNaN(b.y).join()
        );
        return got.every((words) => words === wanted);
      },
    ),
    { numRuns: 400 },
  );
  t.pass("400 kernels");
  t.end();
});

/** Replaces the loop's counter and variable, which are not declared in its bound. */
function bound0(e: Expr): Expr {
  return JSON.parse(
    JSON.stringify(e),
    (_, part) =>
      part?.op === "local" && part.name === "k"
        ? u32(5)
        : part?.op === "local" && part.name === "s"
        ? f32(2)
        : part,
  ) as Expr;
}
