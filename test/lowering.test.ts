/** Compiled ops on complete tensors, of every shape, against the reference evaluator. */
// needs: cpu, gpu

import t from "tap";
import {
  abs,
  add,
  cast,
  concat,
  div,
  dot,
  einsum,
  embedding,
  exp,
  log,
  map,
  max,
  maximum,
  mean,
  merge,
  minimum,
  model,
  mul,
  neg,
  rename,
  rmsNorm,
  rope,
  slice,
  softmax,
  split,
  sqrt,
  sub,
  sum,
  tanh,
  topK,
  transpose,
  upTo,
} from "../compiler/mod.ts";
import {
  type Case,
  closeDevices,
  holds as holdsOn,
} from "./helpers/run_model.ts";

t.teardown(closeDevices);

/** Runs on one rank: these ops do not depend on the mesh. */
function holds(name: string, of: Case): void {
  holdsOn(name, of, [{}]);
}

const token = upTo(7);

holds("elementwise ops and broadcasts", {
  lengths: { token: 5 },
  model: model({ token, head: 2, dim: 3 }, (m) => {
    const x = m.input("x", "token head dim");
    const y = m.input("y", "token head dim");
    const last = m.param("last", "dim");
    const middle = m.param("middle", "head");
    const first = m.input("first", "token");
    const outer = m.input("outer", "token dim");
    const turned = m.input("turned", "dim token");
    const one = m.input("one", "");
    return {
      add: add(x, y),
      sub: sub(last, x),
      mul: mul(x, middle),
      div: div(x, add(abs(first), 1)),
      larger: maximum(x, outer),
      smaller: minimum(turned, x),
      numbers: add(mul(div(sub(maximum(minimum(x, 0.7), -0.7), 1), 3), -2), 4),
      functions: tanh(log(sqrt(exp(neg(abs(x)))))),
      scalar: mul(x, one),
      scalars: add(one, one),
      three: map((a, b, c) => a * b + c, x, last, first),
      four: map((a, b, c, d) => (a > b ? c : d) * 2, x, y, middle, outer),
      one: map((a) => Math.max(a, 0) ** 2, x),
      same: mul(x, x),
    };
  }),
});

holds("integers", {
  lengths: { token: 5 },
  model: model({ token, dim: 3 }, (m) => {
    const a = m.input("a", "token dim", { dtype: "i32" });
    const b = m.input("b", "dim", { dtype: "i32" });
    const u = m.input("u", "token", { dtype: "u32" });
    const p = m.param("p", "dim", { dtype: "i32" });
    return {
      add: add(a, b),
      mul: mul(a, p),
      sub: sub(sub(a, 7), b),
      neg: neg(a),
      div: div(mul(a, 5), 2),
      divided: div(a, add(mul(b, b), 1)),
      larger: maximum(a, b),
      smaller: minimum(a, -1),
      unsigned: add(u, 4),
      product: mul(u, u),
      large: add(mul(a, 16777216), 1),
    };
  }),
});

holds("casts", {
  lengths: { token: 5 },
  model: model({ token, dim: 3, ffn: 5 }, (m) => {
    const x = m.input("x", "token dim");
    const i = m.input("i", "token dim", { dtype: "i32" });
    const u = m.input("u", "token", { dtype: "u32" });
    const h = m.input("h", "dim", { dtype: "f16" });
    return {
      f16: cast(x, "f16"),
      back: cast(cast(mul(x, 3.3), "f16"), "f32"),
      i32: cast(mul(x, 10), "i32"),
      float: cast(i, "f32"),
      half: cast(i, "f16"),
      whole: cast(mul(h, 5), "i32"),
      unsigned: cast(abs(mul(x, 9)), "u32"),
      signed: cast(u, "i32"),
      again: cast(i, "i32"),
      computed: mul(cast(x, "f16"), h),
      lambda: map((a, b) => a * b + 0.1, cast(x, "f16"), h),
      summed: sum(cast(x, "f16"), "dim"),
      chosen: cast(topK(cast(x, "f16"), { over: "dim", k: 2 }).values, "f32"),
      normed: rmsNorm(cast(x, "f16"), h, "dim"),
      product: dot(
        cast(x, "f16"),
        m.param("w", "ffn dim", { dtype: "f16" }),
        "dim",
      ),
    };
  }),
});

holds("sums, maxima, softmaxes and norms over any axis", {
  lengths: { token: 5 },
  model: model({ token, head: 3, dim: 35 }, (m) => {
    const x = m.input("x", "token head dim");
    const row = m.input("row", "dim");
    return {
      first: sum(x, "token"),
      middle: mean(x, "head"),
      last: max(x, "dim"),
      firstMean: mean(x, "token"),
      middleMax: max(x, "head"),
      lastSum: sum(x, "dim"),
      all: sum(sum(max(x, "head"), "token"), "dim"),
      none: sum(row, "dim"),
      softmaxMiddle: softmax(x, "head"),
      softmaxLast: softmax(x, "dim"),
      softmaxRow: softmax(row, "dim"),
      norm: rmsNorm(x, m.param("gain", "dim"), "dim", { epsilon: 1e-3 }),
      normMiddle: rmsNorm(x, m.param("headGain", "head"), "head"),
      normComputed: rmsNorm(x, add(row, 1), "dim"),
      ofExpression: softmax(mul(add(x, x), 2), "head"),
      topLast: topK(x, { over: "dim", k: 4 }).values,
      topLastAt: topK(x, { over: "dim", k: 4 }).indices,
      topMiddle: topK(x, { over: "head", k: 3, axis: "best" }).values,
      topMiddleAt: topK(x, { over: "head", k: 3, axis: "best" }).indices,
      topOfExpression: mul(
        topK(neg(x), { over: "head", k: 1, axis: "one" }).values,
        2,
      ),
    };
  }),
});

const products = model(
  { token, head: 2, dim: 3, kv: 2, ffn: 5, embed: 33, all: 6 },
  (m) => {
    const x = m.input("x", "token embed");
    const heads = m.input("heads", "token head dim");
    const other = m.input("other", "head dim");
    const w = m.param("w", "ffn embed");
    const table = m.param("table", "ffn embed");
    const square = m.param("square", "head dim ffn");
    const headed = m.param("headed", "head ffn dim");
    return {
      outIn: dot(x, w, "embed"),
      inOut: dot(x, m.param("inOut", "embed ffn"), "embed"),
      manyColumns: dot(x, m.param("many", "embed head dim"), "embed"),
      scattered: dot(x, m.param("scattered", "head embed dim"), "embed"),
      left: dot(m.param("leftParam", "ffn embed"), x, "embed"),
      bothParams: dot(
        m.param("p", "ffn embed"),
        m.param("q", "kv embed"),
        "embed",
      ),
      twoUses: dot(dot(x, table, "embed"), table, "ffn"),
      activations: dot(heads, other, "dim"),
      scalars: dot(other, other, "head dim"),
      batch: dot(heads, headed, "dim"),
      batchMore: dot(heads, mul(other, 2), "dim"),
      several: dot(heads, square, "head dim"),
      severalTurned: dot(heads, square, "dim head"),
      notLast: dot(heads, m.param("byHead", "head ffn"), "head"),
      vector: dot(x, m.param("v", "embed"), "embed"),
      ofVector: dot(
        m.input("alone", "embed"),
        m.param("aloneW", "ffn embed"),
        "embed",
      ),
      fused: map(
        (a, b) => a / (1 + Math.exp(-a)) * b,
        dot(x, m.param("gate", "ffn embed"), "embed"),
        dot(x, m.param("up", "ffn embed"), "embed"),
      ),
      biased: add(
        dot(x, m.param("w2", "ffn embed"), "embed"),
        m.param("bias", "ffn"),
      ),
      residual: add(
        m.input("r", "token ffn"),
        dot(x, m.param("w3", "ffn embed"), "embed"),
      ),
      ordered: einsum(
        "token head dim, head ffn dim -> head token ffn",
        heads,
        headed,
      ),
      summed: einsum("token head dim, head dim -> token", heads, other),
      loneAxes: einsum(
        "token head dim, token kv -> kv token",
        heads,
        m.input("tokenKv", "token kv"),
      ),
      outer: einsum("token embed, token embed -> embed token", x, x),
      viewed: dot(
        x,
        rename(m.param("kvEmbed", "kv embed"), "kv", "wide"),
        "embed",
      ),
      splitParam: dot(
        x,
        split(m.param("flat", "all embed"), "all", "head dim"),
        "embed",
      ),
      mergedParam: dot(
        x,
        merge(m.param("parts", "head dim embed"), "head dim", "all"),
        "embed",
      ),
      ofView: dot(
        merge(heads, "head dim", "all"),
        m.param("mergedW", "ffn all"),
        "all",
      ),
      shared: dot(x, m.param("shared", "ffn embed"), "embed"),
      sharedView: rename(m.param("shared", "ffn embed"), "ffn", "other"),
      odd: dot(m.input("f", "token ffn"), m.param("oddRows", "ffn dim"), "ffn"),
      oddView: rename(m.param("oddRows", "ffn dim"), "dim", "three"),
    };
  },
);
for (const stored of ["f32", "bf16", "f16"] as const) {
  holds(`products with ${stored} weights`, {
    model: products,
    stored,
    lengths: { token: 6 },
  });
}

const stored = model(
  { token, embed: 7, vocab: 5, head: 2, dim: 4, all: 8 },
  (m) => {
    const ids = m.input("ids", "token", { dtype: "i32" });
    const position = m.input("position", "token", { dtype: "i32" });
    const table = m.param("table", "vocab embed");
    const x = embedding(table, ids, "vocab");
    const q = m.input("q", "token head dim");
    return {
      x,
      tied: dot(x, table, "embed"),
      norm: rmsNorm(x, m.param("gain", "embed"), "embed"),
      scaled: mul(x, m.param("scale", "embed")),
      parameter: m.param("alone", "vocab embed"),
      turnedTable: embedding(m.param("turned", "embed vocab"), ids, "vocab"),
      computedTable: embedding(
        mul(m.input("inputTable", "vocab dim"), 2),
        ids,
        "vocab",
      ),
      halves: rope(q, "dim", { position, positions: 16 }),
      pairs: rope(q, "dim", {
        position,
        positions: 16,
        interleaved: true,
        theta: 100,
        scale: 2,
      }),
      outer: rope(m.input("turnedQ", "head dim token"), "dim", {
        position,
        positions: 16,
      }),
      first: rope(q, "dim", {
        position,
        positions: 16,
        inverseFrequencies: [0.5],
        scale: 3,
      }),
      split: rope(
        split(dot(x, m.param("wq", "all embed"), "embed"), "all", "head dim"),
        "dim",
        { position, positions: 16 },
      ),
      ofParam: rope(m.param("rotated", "head dim"), "dim", {
        position: cast(
          abs(cast(m.param("at", "head", { dtype: "i32" }), "f32")),
          "i32",
        ),
        positions: 16,
      }),
      sub: sub(m.param("left", "vocab embed"), m.param("right", "embed")),
      softmax: softmax(m.param("softmaxed", "vocab embed"), "vocab"),
      sum: sum(m.param("summed", "vocab embed"), "vocab"),
      topped:
        topK(m.param("topped", "vocab embed"), { over: "vocab", k: 2 }).indices,
      sliced: slice(m.param("sliced", "vocab embed"), "embed", 3, "dim"),
    };
  },
);
for (const as of ["f32", "bf16", "f16"] as const) {
  holds(`embeddings, rotary positions and other uses of ${as} weights`, {
    model: stored,
    stored: as,
    calls: [{ ids: [4, 0, 3, 3, 1], position: [0, 1, 2, 15, 7] }, {
      ids: [2],
      position: [3],
    }, { ids: [], position: [], q: [], turnedQ: [] }],
  });
}

holds("views and moves: of inputs, of results, chained, as outputs", {
  lengths: { token: 5 },
  model: model({
    token,
    head: 2,
    dim: 3,
    all: 6,
    part: 2,
    pair: 2,
    three: 3,
    more: 5,
    six: 6,
    double: 12,
    other: 3,
  }, (m) => {
    const x = m.input("x", "token all");
    const y = m.input("y", "token head dim");
    const w = m.param("w", "all dim");
    const r = add(x, 1);
    const heads = split(x, "all", "head dim");
    return {
      heads,
      ofResult: split(r, "all", "head dim"),
      headMajor: transpose(heads, "head token dim"),
      mergedTurned: merge(transpose(y, "token dim head"), "dim head", "six"),
      mergedInput: merge(y, "head dim", "six"),
      renamed: rename(y, "dim", "other"),
      computedRenamed: add(rename(y, "dim", "other"), 1),
      sliced: slice(x, "all", 2, "part"),
      slicedHeads: slice(transpose(heads, "dim head token"), "dim", 1, "part"),
      joined: concat(x, x, "all", "double"),
      joinedDifferent: concat(
        slice(x, "all", 1, "part"),
        slice(r, "all", 3, "dim"),
        "part",
        "more",
      ),
      joinedFirst: concat(
        transpose(y, "head token dim"),
        transpose(heads, "head token dim"),
        "head",
        "four",
      ),
      chain: neg(
        merge(
          transpose(split(mul(x, 2), "all", "head dim"), "token dim head"),
          "dim head",
          "six",
        ),
      ),
      same: r,
      sameTwice: r,
      x,
      input: x,
      w,
      turnedParam: transpose(w, "dim all"),
      splitParam: split(w, "all", "pair three"),
      view: rename(r, "all", "six"),
      viewOfView: rename(rename(r, "all", "six"), "six", "seven"),
      back: merge(split(r, "all", "head dim"), "head dim", "all"),
      rotated: concat(
        neg(slice(x, "all", 3, "dim")),
        slice(x, "all", 0, "dim"),
        "dim",
        "six",
      ),
      wide: map(
        (a, b, c, d) => a + b * c - d,
        concat(
          neg(slice(x, "all", 3, "dim")),
          slice(x, "all", 0, "dim"),
          "dim",
          "all",
        ),
        transpose(transpose(x, "all token"), "token all"),
        add(merge(y, "head dim", "all"), m.input("z", "token all")),
        mul(m.input("z2", "token all"), m.input("z3", "all")),
      ),
    };
  }),
});

holds("names that lowering also uses", {
  model: model({ token, embed: 4 }, (m) => {
    const x = m.input("add", "token embed");
    const lengths = m.input("lengths", "token");
    const index = m.input("index", "embed");
    const sum = m.param("sum", "embed");
    const mulled = mul(add(x, lengths), add(index, sum));
    return {
      mul: mulled,
      add: x,
      lengths: softmax(mulled, "embed"),
      rope: sum,
    };
  }),
});

holds("a renamed dynamic axis", {
  lengths: { token: 5 },
  model: model({ token, embed: 4 }, (m) => {
    const x = m.input("x", "token embed");
    const other = rename(x, "token", "other");
    const scores = mul(dot(x, other, "embed"), 0.5);
    return {
      scores,
      other,
      turned: transpose(other, "embed other"),
      total: sum(scores, "other"),
      largest: max(scores, "token"),
    };
  }),
});
