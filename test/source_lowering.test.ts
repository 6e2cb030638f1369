/** Scalar functions lowered from their source: every construct against the JavaScript function. */

import fc from "fast-check";
import t from "tap";
import { callSite } from "../spec/call_site.ts";
import type { Lambda } from "../compiler/graph/graph.ts";
import { evaluateScalar } from "../compiler/graph/evaluate/scalar.ts";
import { lowerLambdas } from "../compiler/source/lower_scalar.ts";
import { exp, scale, square } from "./fixtures/source/mathx.ts";
import * as mathx from "./fixtures/source/mathx.ts";
import "./helpers/seed.ts";

type Scalar = (...xs: number[]) => number;

/** The record that `map` makes of its function. */
function map(js: Scalar): Lambda {
  return { js, span: callSite(map) };
}

const limit = 7;
const negative = -1.5;
const half = 1 / 2;
const config = { alpha: 0.25, inner: { beta: 3 } } as const;
const frozen = Object.freeze({ gamma: 2 });
function clamp(x: number, low: number, high: number): number {
  return Math.min(Math.max(x, low), high);
}
function pick(yes: boolean, a: number, b: number): number {
  return yes ? a : b;
}

const CASES: { readonly [name: string]: Lambda } = {
  "plus, minus, times": map((x, y) => x! + y! * 2 - x! * y!),
  "divided": map((x) => x! / 3),
  "remainder": map((x, y) => x! % y!),
  "remainder by a constant": map((x) => x! % 0.75),
  "integer power": map((x) => x! ** 3 + Math.pow(x!, 2)),
  "negative power": map((x) => (x! + 20) ** -2),
  "root by power": map((x) => Math.abs(x!) ** 0.5),
  "power of two values": map((x, y) => Math.abs(x!) ** (y! / 8)),
  "power of a negative base": map((x) => x! ** Math.floor(2.5)),
  "power to zero": map((x) => x! ** 0),
  "power with a dynamic integer exponent": map((x, y) =>
    (x! / 4) ** Math.floor(y! / 4)
  ),
  "unary": map((x) => -x! + +x! - (-2)),
  "comparisons": map((x, y) =>
    (x! < y! ? 1 : 0) + (x! >= y! ? 2 : 0) + (x! === y! ? 4 : 0) +
    (x! !== 3 ? 8 : 0) + (x! <= 0 ? 16 : 0) + (y! > 1 ? 32 : 0)
  ),
  "boolean operators": map((x, y) =>
    (x! > 0 && y! > 0) || !(x! > -5) ? x! : y!
  ),
  "compared booleans": map((x, y) => (x! > 0) === (y! > 0) ? 1 : 0),
  "ternary": map((x) => x! > 0 ? x! : x! > -1 ? 0.1 * x! : 0),
  "Math of one": map((x) =>
    Math.exp(x! / 4) + Math.log(Math.abs(x!) + 1) + Math.sqrt(Math.abs(x!)) +
    Math.tanh(x!) + Math.sin(x!) + Math.cos(x!) + Math.floor(x!) +
    Math.ceil(x!) + Math.sign(x!) + Math.trunc(x!) + Math.abs(x!)
  ),
  "Math of several": map((x, y) => Math.min(x!, y!, 3) + Math.max(x!, -y!)),
  "Math of a single value": map((x) => Math.max(x!)),
  "round": map((x) => Math.round(x!) + Math.round(x! * 0 + 2.5)),
  "constants of Math": map((x) => x! * Math.PI + Math.E * Math.SQRT1_2),
  "folded constants": map((x) => x! * Math.sqrt(2 / Math.PI) + Math.exp(1)),
  "literals": map((x) => x! * 0x10 + 1_000 + 1e-3 + .5),
  "captured constants": map((x) => Math.min(x!, limit) * negative + half),
  "captured properties": map((x) =>
    x! * config.alpha + config.inner.beta + frozen.gamma
  ),
  "captured from another file": map((x) => x! * scale + mathx.scale),
  "types are erased": map((x) => ((x as number)! satisfies number) * 2),
  "const and let": map((x) => {
    const a = x! * 2;
    let b = a + 1;
    b = b * a;
    b += 1;
    b -= 2;
    b *= 3;
    b /= 4;
    b++;
    --b;
    return b;
  }),
  "assigned in branches": map((x, y) => {
    let s = x!;
    let t;
    if (x! > 0) {
      s = y!;
      t = 1;
    } else {
      t = 2;
    }
    return s + t;
  }),
  "early returns": map((x, y) => {
    if (x! > 5) return 1;
    if (x! > 0) {
      if (y! > 0) return x! + y!;
    } else if (y! < 0) {
      return x! * y!;
    }
    const z = x! - y!;
    return z;
  }),
  "if and else both return": map((x) => {
    if (x! > 0) {
      return x!;
    } else {
      return -x!;
    }
  }),
  "assignment before a partial return": map((x, y) => {
    let s = 1;
    if (x! > 0) {
      s = 2;
      if (y! > 0) return s;
      s = 3;
    }
    return s + y!;
  }),
  "block scopes": map((x) => {
    const a = 1;
    {
      const a = 2;
      if (x! > 0) return a;
    }
    return a;
  }),
  "helpers": map((x) => square(clamp(x!, -2, 2)) + pick(x! > 0, 1, 2)),
  "helper of another file": map((x) => 1 / (1 + exp(-x!))),
  "helper through a namespace": map((x) => mathx.exp(x! / 4)),
  "helper inside": map((x) => {
    const twice = (a: number): number => a + a;
    return twice(twice(x!));
  }),
  "named function": map(square as Scalar),
  "function expression": map(function (x) {
    return x! + 1;
  }),
};

for (const [name, lambda] of Object.entries(CASES)) {
  t.test(`the kernel equals the function: ${name}`, async (t) => {
    const [fn] = await lowerLambdas([lambda]);
    t.ok(fn, "lowered");
    t.equal(fn!.parameters.length, lambda.js.length);
    // No values between 0 and a thousandth, which f32 loses and f64 does not.
    const number = fc.float({ min: -10, max: 10, noNaN: true })
      .map((x) => Math.abs(x) < 1e-3 ? 0 : x);
    fc.assert(
      fc.property(number, number, (x, y) => {
        const xs = [x, y].slice(0, lambda.js.length);
        const want = lambda.js(...xs);
        const got = Number(evaluateScalar(fn!, xs));
        if (!Number.isFinite(want)) return Object.is(got, want);
        return Math.abs(got - want) <= 1e-6 * Math.max(1, Math.abs(want));
      }),
      { numRuns: 200 },
    );
  });
}

t.test("parameters take their types from the source", async (t) => {
  const gate = (on: boolean, x: number): number => on ? x : 0;
  const [fn] = await lowerLambdas([map(gate as unknown as Scalar)]);
  t.same(fn!.parameters, ["bool", "f32"]);
  t.equal(evaluateScalar(fn!, [true, 3]), 3);
  t.equal(evaluateScalar(fn!, [false, 3]), 0);
});

t.test("the exact tree of a small function", async (t) => {
  const [fn] = await lowerLambdas([map((x) => x! > 0 ? x! : 0.5 * x!)]);
  const p0 = { op: "local", type: "f32", name: "p0" };
  t.same(fn, {
    parameters: ["f32"],
    lets: [],
    result: {
      op: "select",
      type: "f32",
      condition: {
        op: "binary",
        type: "bool",
        fn: "gt",
        a: p0,
        b: { op: "const", type: "f32", value: 0 },
      },
      a: p0,
      b: {
        op: "binary",
        type: "f32",
        fn: "mul",
        a: { op: "const", type: "f32", value: 0.5 },
        b: p0,
      },
    },
  });
});

t.test("a source is lowered once, and lowered functions are kept", async (t) => {
  const lambdas = [1, 2].map(() => map((x) => x! * 2));
  const [a, b] = await lowerLambdas(lambdas);
  t.equal(a, b, "two passes over one call site share their function");
  const done: Lambda = { ...lambdas[0]!, lowered: a! };
  const [again] = await lowerLambdas([done]);
  t.equal(again, a);
});

t.test("two functions passed to one call site stay distinct", async (t) => {
  const apply = (f: Scalar): Lambda => map(f);
  const [a, b] = await lowerLambdas([
    apply((x) => x! + 1),
    apply((x) => x! + 2),
  ]);
  t.equal(evaluateScalar(a!, [1]), 2);
  t.equal(evaluateScalar(b!, [1]), 3);
});

t.test("both precisions of the interpreter", async (t) => {
  const [fn] = await lowerLambdas([map((x) => x! * 0.1)]);
  t.equal(evaluateScalar(fn!, [3]), Math.fround(3 * Math.fround(0.1)));
  t.equal(evaluateScalar(fn!, [3], { precision: "f64" }), 3 * 0.1);
});
