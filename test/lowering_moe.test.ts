/** Compiled routing and dispatched values of every shape, on meshes, against the reference evaluator. */
// needs: cpu, gpu

import t from "tap";
import {
  add,
  cast,
  combine,
  type CompileOptions,
  concat,
  dispatch,
  dot,
  embedding,
  map,
  max,
  mean,
  merge,
  model,
  mul,
  neg,
  rename,
  rmsNorm,
  rope,
  route,
  slice,
  softmax,
  split,
  sum,
  type Tensor,
  transpose,
  upTo,
} from "../compiler/mod.ts";
import { mixtralLayer } from "./helpers/mixtral_layer.ts";
import {
  closeDevices,
  compileCase,
  holds,
  MESHES,
} from "./helpers/run_model.ts";

t.teardown(closeDevices);

const UNEVEN: CompileOptions = {
  mesh: { ep: 2 },
  place: { token: "ep", expert: { over: "ep", table: [[3, 0], [1, 4, 2]] } },
};
const PERMUTED: CompileOptions = {
  place: { expert: { over: [], table: [[3, 0, 1, 4, 2]] } },
};

const token = upTo(9);

holds("mixtral's layer, with 0, 1 and many tokens", {
  calls: [
    [],
    [0.5, 1, -1, 2],
    new Array(36).fill(0).map((_, i) => Math.sin(i * i)),
  ].map((x) => ({ x })),
  model: model({ token, embed: 4, ffn: 6, expert: 5 }, (m) => {
    const { y, routing } = mixtralLayer(m);
    return { y, index: routing.index, weight: routing.weight };
  }),
}, [...MESHES, { mesh: { dp: 2 } }, UNEVEN, PERMUTED]);

const shapes = model(
  { token, embed: 4, head: 2, dim: 2, ffn: 5, expert: 5, two: 2, turned: 4 },
  (m) => {
    const x = m.input("x", "token embed");
    const logits = m.input("logits", "token expert");
    const routing = route(logits, { over: "expert", topK: 3, preset: "olmoe" });
    const sent = dispatch(x, routing);
    const combined = (y: Tensor<"expert slot embed", "f32">) =>
      combine(y, routing);
    const doubled = mul(x, 2);
    const bias = m.param("bias", "expert embed");
    const w = m.param("w", "expert embed ffn");
    const heads = split(sent, "embed", "head dim");
    const position = dispatch(
      m.input("position", "token", { dtype: "i32" }),
      routing,
    );
    return {
      identity: combined(sent),
      chain: combined(mul(add(neg(sent), bias), m.param("scale", "embed"))),
      computedBias: combined(
        add(sent, mul(m.param("bias2", "expert embed"), 2)),
      ),
      storedBias: combined(
        add(sent, softmax(m.param("bias3", "expert embed"), "embed")),
      ),
      perExpert: combined(mul(sent, m.param("perExpert", "expert"))),
      inputBias: combined(add(sent, m.input("inputBias", "expert embed"))),
      inOut: combine(dot(sent, w, "embed"), routing),
      shared: combine(
        dot(sent, m.param("shared", "ffn embed"), "embed"),
        routing,
      ),
      computedWeight: combine(
        dot(sent, mul(m.param("w2", "expert ffn embed"), 2), "embed"),
        routing,
      ),
      renamedWeight: combine(
        dot(
          sent,
          rename(m.param("w4", "expert ffn embed"), "ffn", "wide"),
          "embed",
        ),
        routing,
      ),
      expertLast: combine(
        dot(sent, m.param("w5", "ffn embed expert"), "embed"),
        routing,
      ),
      perHead: combine(
        dot(heads, m.param("w6", "expert head ffn dim"), "dim"),
        routing,
      ),
      bothHeads: combine(
        dot(heads, m.param("w7", "expert ffn head dim"), "head dim"),
        routing,
      ),
      headsTurned: combine(
        dot(heads, m.param("w8", "expert ffn head dim"), "dim head"),
        routing,
      ),
      manyColumns: combine(
        dot(sent, m.param("w9", "expert head dim embed"), "embed"),
        routing,
      ),
      left: combine(
        dot(m.param("w10", "expert embed"), sent, "embed"),
        routing,
      ),
      rowsTimesRows: combine(dot(sent, sent, "embed"), routing),
      sum: combine(sum(sent, "embed"), routing),
      mean: combine(mean(heads, "head"), routing),
      max: combine(max(heads, "dim"), routing),
      norm: combined(rmsNorm(sent, m.param("gain", "embed"), "embed")),
      softmax: combine(softmax(heads, "head"), routing),
      views: combined(merge(heads, "head dim", "embed")),
      renamed: combine(rename(add(sent, 1), "embed", "turned"), routing),
      turned: combine(
        merge(transpose(heads, "expert slot dim head"), "dim head", "turned"),
        routing,
      ),
      sliced: combine(slice(sent, "embed", 1, "two"), routing),
      joined: combine(
        concat(
          slice(sent, "embed", 2, "two"),
          slice(neg(sent), "embed", 0, "two"),
          "two",
          "turned",
        ),
        routing,
      ),
      roped: combine(rope(heads, "dim", { position, positions: 8 }), routing),
      cast: combine(cast(position, "f32"), routing),
      half: cast(combine(cast(sent, "f16"), routing), "f32"),
      twice: add(
        combined(dispatch(doubled, routing)),
        combined(mul(sent, dispatch(x, routing))),
      ),
      vector: combine(dispatch(sum(x, "embed"), routing), routing),
      wide: combine(
        dispatch(m.input("wide", "token head ffn"), routing),
        routing,
      ),
      ofParts: mul(routing.weight, cast(routing.index, "f32")),
      beside: add(mul(combined(sent), 2), x),
      afterwards: dot(combined(sent), m.param("after", "ffn embed"), "embed"),
    };
  },
);
t.test("plans of dispatched values with 16-bit operands are legal", async (t) => {
  const fast = { numerics: "fast", operands: "f16" } as const;
  for (const options of [{}, UNEVEN]) {
    const of = { model: shapes, calls: [], lengths: { token: 7 } };
    await t.resolves(compileCase(of, { ...options, ...fast }));
  }
});

for (const stored of ["f32", "bf16"] as const) {
  holds(`shapes of dispatched values, ${stored}`, {
    model: shapes,
    stored,
    calls: [{
      position: [0, 1, 2, 3, 4, 5, 6],
      logits: Array.from({ length: 35 }, (_, i) => Math.sin(i * 7)),
    }],
    lengths: { token: 7 },
  }, stored === "f32" ? [...MESHES, UNEVEN, PERMUTED] : [{}, UNEVEN]);
}

holds("expressions with more buffers than a kernel may bind", {
  lengths: { token: 6 },
  calls: [{ ids: [0, 1, 2, 3, 4, 0], more: [5, 6, 7, 8, 0, 1] }],
  model: model({ token, embed: 4, ffn: 4, expert: 5, vocab: 5 }, (m) => {
    const x = m.input("x", "token embed");
    const routing = route(m.input("logits", "token expert"), {
      over: "expert",
      topK: 2,
      preset: "mixtral",
    });
    const sent = dispatch(x, routing);
    const up = (name: string) =>
      dot(sent, m.param(name, "expert ffn embed"), "embed");
    const bias = (name: string) => m.param(name, "expert ffn");
    const gate = mul(add(up("gate"), bias("gateBias")), m.param("s0", "ffn"));
    const other = add(mul(up("up"), bias("upScale")), m.param("s1", "ffn"));
    const hidden = map(
      (g, u, a, b) => (g / (1 + Math.exp(-g))) * (u + 1) + a * b,
      gate,
      other,
      bias("a"),
      m.param("c", "ffn"),
    );
    let rows = hidden;
    let plain = x;
    for (let i = 0; i < 9; i++) {
      rows = add(
        mul(rows, m.param(`r${i}`, "ffn")),
        m.param(`e${i}`, "expert"),
      );
      plain = add(
        mul(plain, m.param(`p${i}`, "embed")),
        m.input(`q${i}`, "token"),
      );
    }
    const position = m.input("ids", "token", { dtype: "i32" });
    const e = embedding(m.param("table", "vocab embed"), position, "vocab");
    const turned = rope(e, "embed", { position, positions: 9 });
    const again = rope(x, "embed", {
      position: m.input("more", "token", { dtype: "i32" }),
      positions: 9,
      theta: 7,
    });
    const w = (name: string) => m.param(name, "ffn embed");
    return {
      hidden: combine(hidden, routing),
      rows: combine(rows, routing),
      plain,
      turned: add(
        add(add(plain, e), turned),
        add(again, mul(x, m.param("z", "embed"))),
      ),
      products: map(
        (a, b, c, d) => a + b * c - d,
        dot(plain, w("w0"), "embed"),
        dot(e, w("w1"), "embed"),
        dot(plain, w("w2"), "embed"),
        add(dot(turned, w("w3"), "embed"), m.param("last", "ffn")),
      ),
    };
  }),
}, [{}, { mesh: { ep: 2 } }, UNEVEN]);
