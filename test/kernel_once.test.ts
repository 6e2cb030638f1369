/** Cached kernels: a kernel that differs in any fact is built separately, independent of earlier builds. */
// needs: pure

import t from "tap";
import {
  compile,
  type CompileOptions,
  concat,
  map,
  mean,
  type Model,
  model,
  rmsNorm,
  rope,
  slice,
  sum,
  transpose,
  upTo,
} from "../compiler/mod.ts";
import { cachedJson } from "../spec/kernel/exact_json.ts";

const token = upTo(4);

function normed(epsilon: number, dim = 8): Model {
  return model({ token, dim }, (m) => ({
    y: rmsNorm(m.input("x", "token dim"), m.param("gain", "dim"), "dim", {
      epsilon,
    }),
  }));
}

function rotated(
  how: {
    readonly interleaved?: boolean;
    readonly inverseFrequencies?: readonly number[];
  },
): Model {
  return model({ token, dim: 8 }, (m) => ({
    y: rope(m.input("x", "token dim"), "dim", {
      position: m.input("position", "token", { dtype: "i32" }),
      positions: 16,
      ...how,
    }),
  }));
}

/** Models with distinct kernels, often in a single constant. */
const MODELS: { readonly [name: string]: Model } = {
  "a norm": normed(1e-5),
  "a norm with another epsilon": normed(1e-6),
  "a longer norm": normed(1e-5, 16),
  "rotated halves": rotated({}),
  "rotated pairs": rotated({ interleaved: true }),
  "a rotated part": rotated({ inverseFrequencies: [1, 0.5] }),
  "a map": model({ token, dim: 8 }, (m) => ({
    y: map((a) => a * 2, m.input("x", "token dim")),
  })),
  "a map with another constant": model({ token, dim: 8 }, (m) => ({
    y: map((a) => a * 3, m.input("x", "token dim")),
  })),
  "a map of f16": model({ token, dim: 8 }, (m) => ({
    y: map((a) => a * 2, m.input("x", "token dim", { dtype: "f16" })),
  })),
  "a map over two dynamic axes": model(
    { token, dim: upTo(8) },
    (m) => ({ y: map((a) => a * 2, m.input("x", "token dim")) }),
  ),
  "a transposition": model({ token, dim: 8 }, (m) => ({
    y: transpose(m.input("x", "token dim"), "dim token"),
  })),
  "a slice": model({ token, dim: 8, part: 4 }, (m) => ({
    y: slice(m.input("x", "token dim"), "dim", 0, "part"),
  })),
  "a later slice": model({ token, dim: 8, part: 4 }, (m) => ({
    y: slice(m.input("x", "token dim"), "dim", 4, "part"),
  })),
  "a concatenation": model({ token, a: 2, b: 4, all: 6 }, (m) => ({
    y: concat(m.input("x", "token a"), m.input("z", "token b"), "a", "all"),
  })),
  "a concatenation of equal lengths": model(
    { token, a: 3, b: 3, all: 6 },
    (m) => ({
      y: concat(m.input("x", "token a"), m.input("z", "token b"), "a", "all"),
    }),
  ),
  "a sum": model({ token, dim: 8 }, (m) => ({
    y: sum(m.input("x", "token dim"), "dim"),
  })),
  "a mean": model({ token, dim: 8 }, (m) => ({
    y: mean(m.input("x", "token dim"), "dim"),
  })),
};

/** The texts of the kernels of a model. */
async function bodiesOf(
  of: Model,
  options: CompileOptions = {},
): Promise<readonly string[]> {
  const { kernels } = await compile(of, options);
  return Object.values(kernels).map(({ tree }) => cachedJson(tree.body));
}

t.test("every fact of an expression distinguishes its kernel", async (t) => {
  const seen = new Map<string, string>();
  for (const [name, of] of Object.entries(MODELS)) {
    const bodies = await bodiesOf(of);
    t.ok(bodies.length > 0, `${name} has a kernel`);
    for (const body of bodies) {
      t.equal(seen.get(body), undefined, `${name} has distinct kernels`);
      seen.set(body, name);
    }
  }
});

t.test("a device with wide rows has its own norm", async (t) => {
  const [usual, wide] = [
    await bodiesOf(normed(1e-5, 4096)),
    await bodiesOf(normed(1e-5, 4096), { tuning: { wideRows: true } }),
  ];
  t.not(usual.join(), wide.join());
});
