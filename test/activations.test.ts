/** Activations, `clamp`, `where` and `layerNorm`: device outputs and gradients against double-precision formulas. */
// needs: cpu

import t from "tap";
import {
  cast,
  clamp,
  gelu,
  layerNorm,
  map,
  model,
  mul,
  relu,
  sigmoid,
  silu,
  softplus,
  sum,
  swiglu,
  swigluOai,
  tanh,
  type Tensor,
  where,
} from "../compiler/mod.ts";
import { evaluate } from "../compiler/graph/evaluate/evaluate.ts";
import { withGradients } from "../compiler/graph/gradients/gradients.ts";
import { trace } from "../compiler/graph/trace.ts";
import { gradientsHold } from "./helpers/gradients.ts";
import { messageOf } from "./helpers/mistakes.ts";
import { closeDevices, matches } from "./helpers/run_model.ts";

t.teardown(closeDevices);

/** Values on both sides of 0, densest near 0. */
const XS = Array.from({ length: 97 }, (_, i) => ((i - 48) / 12) ** 3 * 2);

/** Returns the complementary error function: a series below 2, a continued fraction above. */
function erfc(z: number): number {
  if (z < 0) return 2 - erfc(-z);
  if (z < 2) {
    let [sum, term] = [0, z];
    for (let n = 0; n < 60; n++) {
      sum += term / (2 * n + 1);
      term *= -z * z / (n + 1);
    }
    return 1 - 2 / Math.sqrt(Math.PI) * sum;
  }
  let f = 0;
  for (let n = 60; n > 0; n--) f = n / 2 / (z + f);
  return Math.exp(-z * z) / Math.sqrt(Math.PI) / (z + f);
}

type One = Tensor<"n", "f32">;

const FUNCTIONS: {
  readonly [name: string]: {
    readonly op: (x: One) => One;
    readonly is: (x: number) => number;
    readonly slope: (x: number) => number;
  };
} = {
  sigmoid: {
    op: sigmoid,
    is: (x) => 1 / (1 + Math.exp(-x)),
    slope: (x) => 1 / (2 + Math.exp(-x) + Math.exp(x)),
  },
  silu: {
    op: silu,
    is: (x) => x / (1 + Math.exp(-x)),
    slope: (x) => {
      const s = 1 / (1 + Math.exp(-x));
      return s * (1 + x * (1 - s));
    },
  },
  "swiglu of equal operands": {
    op: (x) => swiglu(x, x),
    is: (x) => x * x / (1 + Math.exp(-x)),
    slope: (x) => {
      const s = 1 / (1 + Math.exp(-x));
      return x * s * (2 + x * (1 - s));
    },
  },
  "swigluOai of equal operands": {
    op: (x) => swigluOai(x, x, { limit: 5 }),
    is: (x) => {
      const [g, u] = [Math.min(x, 5), Math.max(Math.min(x, 5), -5)];
      return (u + 1) * g / (1 + Math.exp(-1.702 * g));
    },
    slope: (x) => {
      if (x > 5) return 0;
      const s = 1 / (1 + Math.exp(-1.702 * x));
      const up = x < -5 ? 0 : x * s;
      return up + (Math.max(x, -5) + 1) * s * (1 + 1.702 * x * (1 - s));
    },
  },
  relu: {
    op: relu,
    is: (x) => x > 0 ? x : 0,
    slope: (x) => x > 0 ? 1 : 0,
  },
  softplus: {
    op: softplus,
    is: (x) => x > 0 ? x + Math.log1p(Math.exp(-x)) : Math.log1p(Math.exp(x)),
    slope: (x) => 1 / (1 + Math.exp(-x)),
  },
  gelu: {
    op: gelu,
    is: (x) => x * erfc(-x / Math.SQRT2) / 2,
    slope: (x) =>
      erfc(-x / Math.SQRT2) / 2 +
      x * Math.exp(-x * x / 2) / Math.sqrt(2 * Math.PI),
  },
  "gelu by tanh": {
    op: (x) => gelu(x, { approximate: "tanh" }),
    is: (x) =>
      x / 2 *
      (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
    slope: (x) => {
      const c = Math.sqrt(2 / Math.PI);
      const y = Math.tanh(c * (x + 0.044715 * x ** 3));
      return (1 + y) / 2 +
        x / 2 * (1 - y * y) * c * (1 + 3 * 0.044715 * x * x);
    },
  },
  tanh: { op: tanh, is: Math.tanh, slope: (x) => 1 - Math.tanh(x) ** 2 },
  clamp: {
    op: (x) => clamp(x, -1, 2.5),
    is: (x) => Math.min(Math.max(x, -1), 2.5),
    slope: (x) => x >= -1 && x <= 2.5 ? 1 : 0,
  },
};

for (const [name, { op, is, slope }] of Object.entries(FUNCTIONS)) {
  t.test(`${name}, its derivative, and the device`, async (t) => {
    const net = model({ n: XS.length }, (m) => {
      const y = op(m.param("x", "n"));
      return { y, loss: sum(y, "n") };
    });
    const { outputs } = evaluate(
      withGradients(trace(net), "loss", {
        scalars: new Map(),
      }),
      { params: { x: XS } },
    );
    const maxError = (
      actual: ArrayLike<number>,
      expected: (x: number) => number,
    ) =>
      Math.max(...XS.map((x, i) => {
        const exact = expected(Math.fround(x));
        const off = Math.abs(actual[i]! - exact) / Math.max(1, Math.abs(exact));
        return Number.isNaN(off) ? Infinity : off;
      }));
    t.ok(maxError(outputs["y"]!.data, is) < 3e-7, "matches the formula");
    t.ok(maxError(outputs["grad.x"]!.data, slope) < 2e-6, "derivative");
    const inputModel = model(
      { n: XS.length },
      (m) => ({ y: op(m.input("x", "n")) }),
    );
    await matches(t, { model: inputModel, calls: [{ x: XS }] }, "cpu");
  });
}

t.test("where() accepts all dtypes", async (t) => {
  const net = model({ row: 3, n: 2 }, (m) => {
    const mask = m.input("mask", "row n", { dtype: "i32" });
    const [a, b] = [m.input("a", "row n"), m.input("b", "n")];
    const selected = where(a, cast(mul(b, 100), "i32"), mask);
    return {
      y: where(mask, a, b),
      half: where(mask, cast(a, "f16"), cast(b, "f16")),
      selected,
    };
  });
  const inputs = {
    mask: [1, 0, -7, 2147483647, 0, 0],
    a: [1, 2, 1e-30, 4, 0, 6],
    b: [10, 20],
  };
  const { outputs } = evaluate(trace(net), { inputs });
  t.strictSame(
    [...outputs.y!.data],
    [1, 20, 1e-30, 4, 10, 20].map(Math.fround),
  );
  t.strictSame([...outputs.half!.data], [1, 20, 0, 4, 10, 20]);
  t.strictSame([...outputs.selected!.data], [1000, 2000, 1000, 2000, 0, 2000]);
  await matches(t, { model: net, calls: [inputs] }, "cpu");
});

t.test("layerNorm is independent of the offset, also on meshes", async (t) => {
  const net = model({ token: 6, embed: 8 }, (m) => {
    const x = m.input("x", "token embed");
    const [gain, bias] = [m.param("gain", "embed"), m.param("bias", "embed")];
    const half = layerNorm(cast(x, "f16"), cast(gain, "f16"), "embed");
    return { y: layerNorm(x, gain, "embed", { bias, epsilon: 1e-3 }), half };
  });
  const x = Array.from(
    { length: 48 },
    (_, i) => 100 * Math.floor(i / 8) + Math.cos(i * i),
  );
  const [gain, bias] = [1, 2].map((k) =>
    Array.from({ length: 8 }, (_, i) => Math.sin(k * i + 1))
  );
  const { outputs } = evaluate(trace(net), {
    inputs: { x },
    params: { gain: gain!, bias: bias! },
  });
  for (let row = 0; row < 6; row++) {
    const xs = x.slice(8 * row, 8 * row + 8).map(Math.fround);
    const mean = xs.reduce((a, b) => a + b) / 8;
    const variance = xs.reduce((a, b) => a + (b - mean) ** 2, 0) / 8;
    for (const [i, v] of xs.entries()) {
      const exact = (v - mean) / Math.sqrt(variance + 1e-3) * gain![i]! +
        bias![i]!;
      t.ok(
        Math.abs(outputs.y!.data[8 * row + i]! - exact) < 2e-4,
        `${row} ${i}`,
      );
    }
  }
  await matches(t, { model: net, calls: [{ x }], tolerance: 1e-4 }, "cpu", [
    ...[{}, { mesh: { tp: 2 }, place: { embed: "tp" } }],
  ]);
});

t.test("gradients of where and layerNorm", async (t) => {
  const wave = (n: number, k: number) =>
    Array.from({ length: n }, (_, i) => Math.sin(k * i + 1));
  await gradientsHold(t, {
    model: model({ row: 2, n: 4 }, (m) => {
      const x = m.param("x", "row n");
      const y = layerNorm(x, m.param("gain", "n"), "n", {
        bias: m.param("bias", "n"),
      });
      const positive = map((v) => v > 0 ? 1 : 0, x);
      const z = mul(where(positive, mul(y, y), y), x);
      return { loss: sum(sum(z, "n"), "row") };
    }),
    params: { x: wave(8, 3), gain: wave(4, 1), bias: wave(4, 2) },
  });
});

t.test("rejected arguments", (t) => {
  const none = model({ n: 2, k: 2 }, (m) => {
    const x = m.input("x", "n");
    const integers = m.input("whole", "n", { dtype: "i32" });
    const cases: [() => Tensor, string][] = [
      [
        () => silu(integers as never),
        "Cannot silu 'n': its dtype is 'i32', expected 'f32'. Cast it",
      ],
      [
        () => swigluOai(x, x, { limit: 0 }),
        "Cannot limit 'n' to 0: it is not above 0. Give a positive limit",
      ],
      [
        () => clamp(x, 2, 1),
        "Cannot clamp 'n' to 2 and 1: its dtype is 'f32'. Give two numbers, the smaller first",
      ],
      [
        () => clamp(integers, 0.5, 1),
        "Cannot clamp 'n' to 0.5 and 1: its dtype is 'i32'. Give two whole numbers, the smaller first",
      ],
      [
        () => clamp(integers, 0, 2 ** 31),
        "Cannot clamp 'n' to 0 and 2147483648: its dtype is 'i32'. Give two whole numbers, the smaller first",
      ],
      [
        () => layerNorm(x, m.param("gain", "k") as never, "n"),
        "Cannot layerNorm 'n' over 'n': expected gain 'n', got 'k'",
      ],
    ];
    for (const [call, message] of cases) t.equal(messageOf(call), message);
    return { y: x };
  });
  trace(none);
  t.end();
});
