/** Derivatives of every primitive, against central differences of the reference evaluator in double precision. */

import fc from "fast-check";
import t from "tap";
import {
  abs,
  add,
  attention,
  cachedAttention,
  cacheRows,
  cast,
  combine,
  concat,
  crossEntropy,
  dispatch,
  div,
  dot,
  embedding,
  exp,
  latentAttention,
  log,
  logProbabilities,
  logSumExp,
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
  route,
  slice,
  softmax,
  split,
  sqrt,
  sub,
  sum,
  tanh,
  type Tensor,
  topK,
  transpose,
  upTo,
} from "../compiler/dsl/mod.ts";
import { evaluate } from "../compiler/graph/evaluate/evaluate.ts";
import { withGradients } from "../compiler/graph/gradients/gradients.ts";
import { trace } from "../compiler/graph/trace.ts";
import { gradientsHold, graphWithGradients } from "./helpers/gradients.ts";
import { waves } from "./helpers/waves.ts";
import { holdsFor } from "./helpers/seed.ts";

/** A number that depends on each element of `y` in a different way. */
function lossOf(y: Tensor): Tensor<"", "f32"> {
  let rest = mul(y as never, map((x) => Math.sin(3 * x + 1) + x, y as never));
  while (rest.axes !== "") {
    const axis = (rest.axes as string).split(" ")[0]!;
    rest = sum(rest as never, axis as never) as never;
  }
  return rest as unknown as Tensor<"", "f32">;
}

/** Distinct numbers away from 0. */
function spaced(count: number, from = 0.3): number[] {
  return Array.from(
    { length: count },
    (_, i) => from + ((i * 7919) % count) / count * 2,
  );
}

const SIZES = { a: 2, b: 3, c: 4 };

t.test("elementwise functions, broadcast", async (t) => {
  const net = model(SIZES, (m) => {
    const x = m.param("x", "a b");
    const y = m.param("y", "b");
    const z = m.param("z", "b a");
    const rest = add(
      minimum(maximum(add(exp(x), y), 1.5), z),
      add(div(x, add(y, 2)), sub(mul(abs(x), tanh(z)), neg(x))),
    );
    return { loss: lossOf(add(rest, add(log(add(x, 3)), sqrt(add(x, 2))))) };
  });
  await gradientsHold(t, {
    model: net,
    params: { x: waves(6, 4), y: waves(3, 1), z: spaced(6, 0.4) },
  });
});

t.test("functions of the model, from their source", async (t) => {
  const limit = 0.8;
  const net = model(SIZES, (m) => {
    const x = m.param("x", "a b");
    const y = m.param("y", "a b");
    const gated = map(
      (g, u) => (g / (1 + Math.exp(-g))) * Math.min(u, limit) ** 2,
      x,
      y,
    );
    const bent = map(
      (v) => v > 0.25 ? v ** 3 : v < -0.5 ? v % 0.375 : 1 / (v + 2),
      x,
    );
    return { loss: lossOf(add(gated, bent)) };
  });
  await gradientsHold(t, {
    model: net,
    params: { x: waves(6), y: spaced(6, -0.75) },
  });
});

t.test("contractions", async (t) => {
  const net = model({ ...SIZES, row: upTo(5) }, (m) => {
    const x = m.input("x", "row a b");
    const w = m.param("w", "c b a");
    const v = m.param("v", "b");
    const y = dot(x, w, "a b");
    const z = dot(x, v, "b");
    return { loss: add(lossOf(tanh(y)), lossOf(z)) };
  });
  await gradientsHold(t, {
    model: net,
    inputs: { x: waves(18) },
    params: { w: waves(24, 2), v: waves(3, 5) },
  });
  const both = model(SIZES, (m) => {
    const x = m.param("x", "a b");
    return {
      loss: lossOf(add(
        dot(x, m.param("w", "b c a"), "b"),
        dot(x, m.param("u", "c b"), "b"),
      )),
    };
  });
  await gradientsHold(t, {
    model: both,
    params: { x: waves(6), w: waves(24), u: waves(12, 3) },
  }, "with a batch axis, gradients");
});

t.test("reductions", async (t) => {
  const net = model({ ...SIZES, row: upTo(5) }, (m) => {
    const x = m.param("x", "a b");
    const r = add(m.input("r", "row a"), sum(x, "b"));
    return {
      loss: add(
        add(lossOf(mean(x, "a")), lossOf(max(x, "b"))),
        add(lossOf(mean(r, "row")), lossOf(softmax(x, "b"))),
      ),
    };
  });
  await gradientsHold(t, {
    model: net,
    inputs: { r: waves(6) },
    params: { x: waves(6, 1) },
  });
});

t.test("norms and rotary positions", async (t) => {
  for (const interleaved of [false, true]) {
    const partial = interleaved ? {} : { inverseFrequencies: [0.7] };
    const net = model({ row: upTo(5), context: 9, n: 4 }, (m) => {
      const position = m.input("position", "row", { dtype: "i32" });
      const x = add(m.input("x", "row n"), m.param("w", "n"));
      const normed = rmsNorm(x, m.param("gain", "n"), "n", { epsilon: 0.01 });
      return {
        loss: lossOf(
          rope(normed, "n", { position, interleaved, scale: 1.5, ...partial }),
        ),
      };
    });
    await gradientsHold(t, {
      model: net,
      inputs: { x: waves(12), position: [0, 3, 8] },
      params: { w: waves(4, 2), gain: waves(4, 3) },
    });
  }
});

t.test("ops that move elements", async (t) => {
  const sizes = { a: 2, b: 6, c: 3, d: 2, e: 2, f: 8 };
  const net = model(sizes, (m) => {
    const x = m.param("x", "a b");
    const parts = split(x, "b", "c d");
    const transposed = transpose(parts, "c a d");
    const merged = merge(transposed, "a d", "ad");
    const odd = slice(x, "b", 1, "e", 2);
    const joined = concat(odd, x, "e", "f");
    const other = rename(x, "a", "other");
    return {
      loss: add(
        add(lossOf(merged), lossOf(joined)),
        add(lossOf(dot(x, other, "b")), lossOf(cast(cast(x, "f32"), "f32"))),
      ),
    };
  });
  await gradientsHold(t, { model: net, params: { x: waves(12) } });
});

t.test("renamed dynamic axes, as in attention without a cache", async (t) => {
  const net = model({ row: upTo(5), n: 3 }, (m) => {
    const x = add(m.input("x", "row n"), m.param("w", "n"));
    const scores = dot(x, rename(x, "row", "other"), "n");
    return { loss: lossOf(softmax(scores, "other")) };
  });
  await gradientsHold(t, {
    model: net,
    inputs: { x: waves(12) },
    params: { w: waves(3) },
  });
});

t.test("embeddings, and the maximum of an axis", async (t) => {
  const net = model({ row: upTo(8), vocab: 5, n: 3, choice: 2 }, (m) => {
    const ids = m.input("ids", "row", { dtype: "i32" });
    const table = m.param("table", "vocab n");
    const rows = embedding(table, ids, "vocab");
    const { values } = topK(rows, { over: "n", k: 2 });
    return {
      loss: add(lossOf(values), lossOf(dot(rows, table, "n"))),
    };
  });
  await gradientsHold(t, {
    model: net,
    inputs: { ids: [3, 1, 3, 3, 0] },
    params: { table: waves(15) },
  });
});

t.test("attention over a cache written by the same tokens", async (t) => {
  for (
    const { sinks, options } of [
      { sinks: false, options: {} },
      { sinks: true, options: { window: 2, scale: 0.7 } },
      { sinks: false, options: { chunk: 2 } },
    ]
  ) {
    const net = model(
      {
        token: upTo(6),
        sequence: 2,
        context: 4,
        embed: 3,
        head: 4,
        kvHead: 2,
        dim: 2,
      },
      (m) => {
        const x = m.input("x", "token embed");
        const at = (name: string) => m.input(name, "token", { dtype: "i32" });
        const { y, keys, values } = attention(
          dot(x, m.param("q", "head dim embed"), "embed"),
          {
            key: dot(x, m.param("k", "kvHead dim embed"), "embed"),
            value: dot(x, m.param("v", "kvHead dim embed"), "embed"),
            keys: m.state("keys", "sequence context kvHead dim"),
            values: m.state("values", "sequence context kvHead dim"),
            sequence: at("sequence"),
            position: at("position"),
            ...options,
            ...sinks ? { sinks: m.param("sinks", "head") } : {},
          },
        );
        return { loss: lossOf(y), keys, values };
      },
    );
    await gradientsHold(t, {
      model: net,
      inputs: {
        x: waves(18),
        sequence: [0, 1, 0, 0, 1, 0],
        position: [0, 0, 1, 2, 1, 3],
      },
      params: {
        q: waves(24),
        k: waves(12, 1),
        v: waves(12, 2),
        ...sinks ? { sinks: waves(4) } : {},
      },
    });
  }
});

t.test("attention over the cache of another attention", async (t) => {
  const net = model(
    {
      token: upTo(5),
      sequence: 2,
      context: 4,
      embed: 3,
      head: 2,
      kvHead: 1,
      dim: 2,
      other: 2,
    },
    (m) => {
      const x = m.input("x", "token embed");
      const at = (name: string) => m.input(name, "token", { dtype: "i32" });
      const where = { sequence: at("sequence"), position: at("position") };
      const { y, keys, values } = attention(
        dot(x, m.param("q", "head dim embed"), "embed"),
        {
          key: dot(x, m.param("k", "kvHead dim embed"), "embed"),
          value: dot(x, m.param("v", "kvHead dim embed"), "embed"),
          keys: m.state("keys", "sequence context kvHead dim"),
          values: m.state("values", "sequence context kvHead dim"),
          ...where,
        },
      );
      const again = cachedAttention(
        dot(x, m.param("q2", "head other embed"), "embed"),
        { keys, values, ...where, window: 2 },
      );
      return { loss: add(lossOf(y), lossOf(again)), keys, values };
    },
  );
  await gradientsHold(t, {
    model: net,
    inputs: {
      x: waves(15),
      sequence: [0, 1, 0, 0, 1],
      position: [0, 0, 1, 2, 1],
    },
    params: { q: waves(12), q2: waves(12, 3), k: waves(6, 1), v: waves(6, 2) },
  });
});

t.test("latent attention, with the first elements of keys as values", async (t) => {
  const net = model(
    {
      token: upTo(6),
      sequence: 2,
      context: 4,
      embed: 3,
      head: 2,
      dim: 4,
      value: 3,
    },
    (m) => {
      const x = m.input("x", "token embed");
      const at = (name: string) => m.input(name, "token", { dtype: "i32" });
      const { y, keys } = latentAttention(
        dot(x, m.param("q", "head dim embed"), "embed"),
        {
          key: dot(x, m.param("k", "dim embed"), "embed"),
          keys: m.state("keys", "sequence context dim"),
          value: "value",
          sequence: at("sequence"),
          position: at("position"),
        },
      );
      return { loss: lossOf(y), keys };
    },
  );
  await gradientsHold(t, {
    model: net,
    inputs: {
      x: waves(15),
      sequence: [0, 1, 0, 0, 1],
      position: [0, 0, 1, 2, 1],
    },
    params: { q: waves(24), k: waves(12, 1) },
  });
});

t.test("latent attention to a window and entries of two tokens", async (t) => {
  for (const listed of [false, true]) {
    const net = model(
      {
        token: upTo(7),
        sequence: 2,
        context: 5,
        entry: 2,
        embed: 3,
        head: 2,
        dim: 3,
        value: 2,
        list: 2,
      },
      (m) => {
        const x = m.input("x", "token embed");
        const at = (name: string) => m.input(name, "token", { dtype: "i32" });
        const sequence = at("sequence");
        const entries = cacheRows(
          m.state("entries", "sequence entry dim"),
          dot(x, m.param("e", "dim embed"), "embed"),
          { sequence, position: at("write") },
        );
        const { y, keys } = latentAttention(
          dot(x, m.param("q", "head dim embed"), "embed"),
          {
            key: dot(x, m.param("k", "dim embed"), "embed"),
            keys: m.state("keys", "sequence context dim"),
            value: "value",
            window: 2,
            sinks: m.param("sinks", "head"),
            entries,
            ...listed
              ? { selected: m.input("list", "token list", { dtype: "i32" }) }
              : { last: at("last") },
            sequence,
            position: at("position"),
          },
        );
        return { loss: lossOf(y), keys, entries };
      },
    );
    await gradientsHold(t, {
      model: net,
      inputs: {
        x: waves(21),
        sequence: [0, 1, 0, 0, 1, 0, 0],
        position: [0, 0, 1, 2, 1, 3, 4],
        write: [-1, -1, 0, -1, 0, 1, -1],
        ...listed
          ? { list: [-1, -1, -1, -1, 0, -1, 0, -1, 0, -1, 1, 0, 1, -1] }
          : { last: [-1, -1, 0, 0, 0, 1, 1] },
      },
      params: {
        q: waves(18),
        k: waves(9, 1),
        e: waves(9, 2),
        sinks: waves(2),
      },
    });
  }
});

t.test("routing: rows, weights and routers", async (t) => {
  for (
    const options of [
      { topK: 2, preset: "mixtral" },
      { topK: 3, preset: "olmoe", scale: 2.5 },
      { topK: 2, preset: "gptOss" },
      { topK: 2, preset: "deepseekV3" },
      { topK: 2, score: "sqrtSoftplus", normalize: "chosen" },
      { topK: 1, preset: "llama4" },
      { topK: 2, preset: "fairscale.top2" },
    ] as const
  ) {
    const net = model(
      { token: upTo(8), embed: 3, ffn: 2, expert: 4 },
      (m) => {
        const x = add(m.input("x", "token embed"), m.param("shift", "embed"));
        const logits = dot(x, m.param("router", "expert embed"), "embed");
        const routing = route(logits, { over: "expert", ...options });
        const sent = dispatch(x, routing);
        const hidden = map(
          (h) => h / (1 + Math.exp(-h)),
          add(
            dot(sent, m.param("up.{expert}", "expert ffn embed"), "embed"),
            m.param("bias.{expert}", "expert ffn"),
          ),
        );
        const done = dot(
          hidden,
          m.param("down.{expert}", "expert embed ffn"),
          "ffn",
        );
        const scaled = mul(done, m.param("scale", "expert"));
        return { loss: lossOf(combine(scaled, routing)) };
      },
    );
    await gradientsHold(t, {
      model: net,
      inputs: { x: waves(24) },
      params: {
        shift: waves(3, 1),
        router: waves(12, 2),
        "up.{expert}": waves(24, 3),
        "bias.{expert}": waves(8, 4),
        "down.{expert}": waves(24, 5),
        scale: waves(4, 6),
      },
    }, `${JSON.stringify(options)}: gradients`);
  }
});

t.test("the next-token loss", async (t) => {
  const net = model({ token: upTo(6), vocab: 5, n: 3 }, (m) => {
    const x = m.input("x", "token n");
    const logits = dot(x, m.param("w", "vocab n"), "n");
    const labels = m.input("labels", "token", { dtype: "i32" });
    const loss = crossEntropy(logits, labels, { over: "vocab" });
    const sure = mean(logSumExp(logits, "vocab"), "token");
    const rows = logProbabilities(logits, labels, { over: "vocab" });
    const odd = mean(mul(rows, exp(rows)), "token");
    const smooth = mul(mul(sure, sure), 0.1);
    const weighted = crossEntropy(logits, labels, {
      over: "vocab",
      weights: m.input("weights", "token"),
    });
    return {
      loss: add(add(add(loss, smooth), odd), weighted),
      ce: loss,
      rows,
      weighted,
    };
  });
  const inputs = {
    x: waves(18),
    labels: [4, -100, 0, 2, -100, 4],
    weights: [0.5, 1, 0, 0.25, 1, 2],
  };
  await gradientsHold(t, { model: net, inputs, params: { w: waves(15) } });
  const { outputs } = evaluate(trace(net), {
    inputs: { ...inputs, labels: new Array(6).fill(-100) },
    params: { w: waves(15) },
  });
  t.equal(outputs["ce"]!.data[0], 0, "all labels are ignored");
  t.equal(outputs["weighted"]!.data[0], 0, "all weighted labels are ignored");
  t.same([...outputs["rows"]!.data], new Array(6).fill(0));
  t.throws(
    () =>
      evaluate(trace(net), {
        inputs: { ...inputs, labels: [0, 1, 2, 3, 4, 5] },
        params: { w: waves(15) },
      }),
    { name: "DataError" },
  );
  t.end();
});

t.test("rejected derivatives", async (t) => {
  const wide = model({ n: 2 }, (m) => ({ loss: m.param("x", "n") }));
  await t.rejects(graphWithGradients(wide), {
    name: "ModelError",
    message:
      "Cannot differentiate f32[n]: a loss is one number. Sum it, or take its mean",
  });
  const net = model({ n: 2 }, (m) => ({ loss: sum(m.param("x", "n"), "n") }));
  const graph = await graphWithGradients(net);
  const twice = () => withGradients({ ...graph, outputs: {} }, "loss");
  t.throws(twice, {
    message: "Cannot differentiate output 'loss': the graph has no such output",
  });
  const unused = model({ n: 2 }, (m) => ({
    loss: sum(m.param("x", "n"), "n"),
    y: m.param("z", "n"),
  }));
  const { outputs } = evaluate(await graphWithGradients(unused), {
    params: { x: [1, 2], z: [3, 4] },
  });
  t.strictSame([...outputs["grad.z"]!.data], [0, 0], "nothing depends on it");
});

/** A step of building a random graph: an op and the indices of its operands. */
type Move = readonly [op: number, first: number, second: number];

type Value = Tensor<string, "f32">;

/** Ops on values of any axes; undefined if the axes do not match. */
const MOVES: readonly ((x: Value, y: Value) => Value | undefined)[] = [
  (x) => tanh(x) as Value,
  (x) => map((v) => v / (1 + Math.exp(-v)), x) as Value,
  (x, y) => fits(x, y) ? add(x as never, y as never) : undefined,
  (x, y) => fits(x, y) ? mul(tanh(x) as never, tanh(y) as never) : undefined,
  (x, y) =>
    fits(x, y)
      ? div(x as never, add(exp(tanh(y) as never), 1) as never)
      : undefined,
  (x, y) => {
    const shared = axesOf(x).filter((axis) => axesOf(y).includes(axis));
    return shared.length > 0
      ? dot(x as never, y as never, shared[0] as never)
      : undefined;
  },
  (x) => axesOf(x)[0] ? softmax(x as never, axesOf(x)[0] as never) : undefined,
  (x) => axesOf(x)[1] ? sum(x as never, axesOf(x)[1] as never) : undefined,
  (x) =>
    axesOf(x)[1]
      ? transpose(x as never, axesOf(x).reverse().join(" ") as never)
      : undefined,
  (x) =>
    axesOf(x)[0] ? logSumExp(x as never, axesOf(x)[0] as never) : undefined,
];

function axesOf(x: Value): string[] {
  return x.axes === "" ? [] : x.axes.split(" ");
}

/** Whether `x` has all axes of `y`. */
function fits(x: Value, y: Value): boolean {
  return axesOf(y).every((axis) => axesOf(x).includes(axis));
}

t.test("random graphs", async (t) => {
  const moves = fc.array(
    fc.tuple(fc.nat(MOVES.length - 1), fc.nat(20), fc.nat(20)),
    { minLength: 3, maxLength: 12 },
  ) as fc.Arbitrary<Move[]>;
  await holdsFor(t, moves, {
    runs: 40,
    async check(moves) {
      const net = model({ a: 2, b: 3, c: 2 }, (m) => {
        const values: Value[] = [
          m.param("x", "a b"),
          m.param("y", "b c"),
          m.param("z", "c"),
        ];
        for (const [op, first, second] of moves) {
          const result = MOVES[op]!(
            values[first % values.length]!,
            values[second % values.length]!,
          );
          if (result) values.push(result);
        }
        const losses = values.map((value) => lossOf(tanh(value as never)));
        return { loss: losses.reduce((x, y) => add(x, y)) };
      });
      await gradientsHold(t, {
        model: net,
        params: { x: waves(6), y: waves(6, 1), z: waves(2, 2) },
      });
    },
  });
});
