/** The reference evaluator, against results by hand and recordings of other implementations. */

import t from "tap";
import {
  add,
  attention,
  cast,
  combine,
  dispatch,
  dot,
  einsum,
  map,
  maximum,
  model,
  mul,
  rename,
  rmsNorm,
  rope,
  route,
  softmax,
  split,
  sub,
  type Tensor,
  topK,
  transpose,
  upTo,
} from "../compiler/dsl/mod.ts";
import {
  evaluate,
  type EvaluateOptions,
} from "../compiler/graph/evaluate/evaluate.ts";
import { trace, type Traceable } from "../compiler/graph/trace.ts";
import type { Config } from "../models/mod.ts";
import { publishedModel } from "../models/published.ts";
import { roundF16 } from "../spec/half.ts";
import { readJson, readTensors } from "./helpers/read_tensors.ts";

/** Elements of output `y`. */
function y(model: Traceable, options: EvaluateOptions): number[] {
  return [...evaluate(trace(model), options).outputs["y"]!.data];
}

/** Max difference relative to the largest expected magnitude. */
function distance(got: ArrayLike<number>, want: readonly number[]): number {
  if (got.length !== want.length) return Infinity;
  const scale = want.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
  const off = want.reduce((a, b, i) => Math.max(a, Math.abs(got[i]! - b)), 0);
  return scale === 0 ? off : off / scale;
}

t.test("evaluate() broadcasts by name, independent of axis order", (t) => {
  const net = model({ a: 2, b: 3 }, (m) => ({
    y: add(m.input("x", "a b"), m.input("z", "b a")),
  }));
  t.strictSame(
    y(net, { inputs: { x: [1, 2, 3, 4, 5, 6], z: [10, 40, 20, 50, 30, 60] } }),
    [11, 22, 33, 44, 55, 66],
  );
  t.end();
});

t.test("evaluate() rounds to the dtype at every node", (t) => {
  t.equal(roundF16(1 + 2 ** -11), 1, "ties to even");
  t.equal(roundF16(1 + 3 * 2 ** -11), 1 + 2 ** -9);
  t.equal(roundF16(65519), 65504);
  t.equal(roundF16(-65520), -Infinity);
  t.equal(roundF16(2 ** -24), 2 ** -24);
  t.equal(roundF16(2 ** -26), 0);
  t.ok(Object.is(roundF16(-(2 ** -26)), -0), "a zero keeps its sign");
  const third = model({ n: 1 }, (m) => ({
    y: cast(mul(cast(m.input("x", "n"), "f16"), 3), "f32"),
  }));
  t.strictSame(y(third, { inputs: { x: [0.1] } }), [
    roundF16(roundF16(0.1) * 3),
  ]);
  const integers = model({ n: 2 }, (m) => {
    const i = { dtype: "i32" } as const;
    return { y: mul(m.input("a", "n", i), m.input("b", "n", i)) };
  });
  t.strictSame(y(integers, { inputs: { a: [65537, -7], b: [65539, 6] } }), [
    Math.imul(65537, 65539),
    -42,
  ]);
  t.end();
});

t.test("evaluate() contracts over several axes and sums axes missing from an einsum output", (t) => {
  const sizes = { row: 2, head: 2, dim: 2, column: 1 };
  const net = model(sizes, (m) => ({
    y: dot(
      m.input("a", "row head dim"),
      m.input("w", "column head dim"),
      "head dim",
    ),
  }));
  const inputs = { a: [1, 2, 3, 4, 5, 6, 7, 8], w: [1, 10, 100, 1000] };
  t.strictSame(y(net, { inputs }), [4321, 8765]);
  const summed = model(sizes, (m) => ({
    y: einsum(
      "row head dim, column head dim -> column row",
      m.input("a", "row head dim"),
      m.input("w", "column head dim"),
    ),
  }));
  t.strictSame(y(summed, { inputs }), [4321, 8765]);
  const outer = model(sizes, (m) => ({
    y: einsum(
      "row head, head -> row",
      m.input("a", "row head"),
      m.input("w", "head"),
    ),
  }));
  t.strictSame(y(outer, { inputs: { a: [1, 2, 3, 4], w: [1, 10] } }), [21, 43]);
  t.end();
});

t.test("evaluate() accepts dynamic lengths, including 0", (t) => {
  const net = model({ token: upTo(8), embed: 2 }, (m) => {
    const x = m.input("x", "token embed");
    const scores = dot(x, rename(x, "token", "other"), "embed");
    return { y: softmax(scores, "other") };
  });
  t.strictSame(
    y(net, { inputs: { x: [1, 0, 0, 0] } }).map(Math.fround),
    [
      Math.E / (Math.E + 1),
      1 / (Math.E + 1),
      0.5,
      0.5,
    ].map(Math.fround),
  );
  t.strictSame(y(net, { inputs: { x: [] } }), []);
  t.throws(
    () => y(net, { inputs: { x: [1, 2, 3] } }),
    {
      name: "DataError",
      message:
        "Cannot read input 'x': it has 3 elements, expected 16, [token=8 embed=2]",
    },
  );
  t.throws(() => y(net, {}), {
    message: "Cannot run without input 'x': it is not given",
  });
  t.throws(() => y(net, { inputs: { x: [] }, lengths: { token: 9 } }), {
    message:
      "Cannot run with axis 'token' of 9: expected a whole number from 0 to 8",
  });
  t.end();
});

t.test("evaluate() rotates both pair layouts", (t) => {
  const rotated = (
    inverseFrequencies: readonly number[],
    interleaved: boolean,
  ) =>
    y(
      model({ token: 1, dim: 4 }, (m) => ({
        y: rope(m.input("x", "token dim"), "dim", {
          position: m.input("position", "token", { dtype: "i32" }),
          inverseFrequencies,
          positions: 4,
          interleaved,
        }),
      })),
      { inputs: { x: [1, 2, 3, 4], position: [1] } },
    ).map((v) => Math.round(v * 1e5) / 1e5);
  const quarter = Math.PI / 2;
  t.strictSame(rotated([quarter, 0], false), [-3, 2, 1, 4]);
  t.strictSame(rotated([quarter, 0], true), [-2, 1, 3, 4]);
  t.strictSame(rotated([quarter], false), [-2, 1, 3, 4], "the first two");
  t.end();
});

t.test("evaluate() attends to earlier positions of the same sequence", (t) => {
  const sizes = {
    token: upTo(4),
    head: 2,
    kvHead: 1,
    dim: 1,
    sequence: 2,
    context: 3,
  };
  const net = (window?: number) =>
    model(sizes, (m) => {
      const i32 = { dtype: "i32" } as const;
      return attention(m.input("q", "token head dim"), {
        key: m.input("key", "token kvHead dim"),
        value: m.input("value", "token kvHead dim"),
        keys: m.state("keys", "sequence context kvHead dim"),
        values: m.state("values", "sequence context kvHead dim"),
        sequence: m.input("sequence", "token", i32),
        position: m.input("position", "token", i32),
        ...window === undefined ? {} : { window },
      });
    });
  // Keys are equal: each token gets the mean of the values visible to it.
  const step = {
    q: [1, 1, 1, 1, 1, 1],
    key: [0, 0, 0],
    value: [6, 2, 10],
    sequence: [0, 1, 0],
    position: [0, 0, 1],
  };
  const first = evaluate(trace(net()), { inputs: step });
  t.strictSame([...first.outputs["y"]!.data], [6, 6, 2, 2, 8, 8]);
  t.strictSame([...first.states["values"]!.data], [6, 10, 0, 2, 0, 0]);
  const states = {
    keys: first.states["keys"]!.data,
    values: first.states["values"]!.data,
  };
  const next = {
    q: [1, 1],
    key: [0],
    value: [2],
    sequence: [0],
    position: [2],
  };
  const second = evaluate(trace(net()), { inputs: next, states });
  t.strictSame([...second.outputs["y"]!.data], [6, 6]);
  const narrow = evaluate(trace(net(2)), { inputs: next, states });
  t.strictSame([...narrow.outputs["y"]!.data], [6, 6]);
  const self = evaluate(trace(net(1)), { inputs: next, states });
  t.strictSame([...self.outputs["y"]!.data], [2, 2]);
  t.throws(
    () => evaluate(trace(net()), { inputs: { ...next, position: [3] } }),
    { message: "Cannot read position 3: expected a whole number from 0 to 2" },
  );
  t.end();
});

t.test("evaluate() dispatches and combines tokens, ties to the lower expert", (t) => {
  const sizes = { token: upTo(4), embed: 1, expert: 3 };
  const net = model(sizes, (m) => {
    const logits = m.input("logits", "token expert");
    const routing = route(logits, { over: "expert", topK: 2, preset: "olmoe" });
    const sent = dispatch(m.input("x", "token embed"), routing);
    const own = m.param("own", "expert embed");
    const { values, indices } = topK(logits, {
      over: "expert",
      k: 2,
      axis: "best",
    });
    return {
      y: combine(mul(sent, own), routing),
      index: routing.index,
      weight: routing.weight,
      values,
      indices,
    };
  });
  const log = Math.log;
  const { outputs } = evaluate(trace(net), {
    inputs: {
      logits: [0, log(2), log(2), log(6), log(3), 0],
      x: [10, 100],
    },
    params: { own: [1, 2, 3] },
  });
  t.strictSame([...outputs["index"]!.data], [1, 2, 0, 1]);
  t.strictSame([...outputs["indices"]!.data], [1, 2, 0, 1]);
  const near = (name: string, want: number[]) =>
    t.ok(distance(outputs[name]!.data, want) < 1e-6, name);
  near("weight", [0.4, 0.4, 0.6, 0.3]);
  near("values", [log(2), log(2), log(6), log(3)]);
  near("y", [10 * (0.4 * 2 + 0.4 * 3), 100 * (0.6 * 1 + 0.3 * 2)]);
  t.end();
});

t.test("evaluate() moves axes with the other ops", (t) => {
  const net = model({ n: 4, a: 2, b: 2 }, (m) => {
    const parts = split(m.input("x", "n"), "n", "a b");
    return { y: sub(transpose(parts, "b a"), m.param("p", "b a")) };
  });
  t.strictSame(
    y(net, { inputs: { x: [1, 2, 3, 4] }, params: { p: [1, 1, 1, 1] } }),
    [0, 2, 1, 3],
  );
  const norm = model({ n: 2 }, (m) => ({
    y: rmsNorm(m.input("x", "n"), m.param("g", "n"), "n", { epsilon: 1 }),
  }));
  t.ok(
    distance(y(norm, { inputs: { x: [3, 1] }, params: { g: [1, 2] } }), [
      3 / Math.sqrt(6),
      2 / Math.sqrt(6),
    ]) < 1e-6,
  );
  t.end();
});

t.test("evaluate() reproduces logits and choices of transformers", (t) => {
  const checkpoints = [
    ...["olmoe-16e", "mixtral-8e", "mixtral-6e", "qwen3moe-16e"],
    ...["granitemoe-8e", "deepseekv2-16e", "deepseekv2-lite-8e"],
    ...["deepseekv3-16e", "gptoss-8e", "llama4-8e"],
  ];
  const bounds = { maxTokens: 64, maxSequences: 2, maxContext: 64 };
  for (const name of checkpoints) {
    const reference = readTensors(`${name}/reference.safetensors`);
    const params = readTensors(`${name}/model.safetensors`);
    const config = readJson(`${name}/config.json`);
    const graph = trace(publishedModel(config as Config).build(bounds));
    // Two prompts, packed as two sequences of one step.
    const prompts = [0, 1].map((i) => reference[`p${i}.input_ids`]!);
    const { outputs } = evaluate(graph, {
      inputs: {
        ids: prompts.flat(),
        sequence: prompts.flatMap((ids, i) => ids.map(() => i)),
        position: prompts.flatMap((ids) => ids.map((_, p) => p)),
      },
      params,
    });
    const want = (part: string) =>
      [0, 1].flatMap((i) => reference[`p${i}.${part}`]!);
    const off = distance(outputs["logits"]!.data, want("logits"));
    t.ok(off < 1e-5, `${name}: logits are ${off.toExponential(1)} off`);
    for (const output of Object.keys(outputs)) {
      if (!output.endsWith("topk_idx")) continue;
      t.strictSame(
        [...outputs[output]!.data],
        want(output),
        `${name}: ${output}`,
      );
    }
  }
  t.end();
});

/** fairscale's layer, with one routing group per recorded rank. */
function fairscaleLayer(groups: number, tokens: number, experts: number) {
  return model(
    { group: groups, token: tokens, embed: 8, ffn: 12, expert: experts },
    (m) => {
      const x = m.input("x", "group token embed");
      const noise = m.input("noise", "group token expert");
      const logits = dot(x, m.param("gate.weight", "expert embed"), "embed");
      const routing = route(logits, {
        over: "expert",
        topK: 2,
        preset: "fairscale.top2",
        group: "group",
        noise,
      });
      const up = m.param("expert{expert}.fc1.weight", "expert ffn embed");
      const down = m.param("expert{expert}.fc2.weight", "expert embed ffn");
      const hidden: Tensor<"expert slot ffn", "f32"> = maximum(
        add(
          dot(dispatch(x, routing), up, "embed"),
          m.param("expert{expert}.fc1.bias", "expert ffn"),
        ),
        0,
      );
      const done = add(
        dot(hidden, down, "ffn"),
        m.param("expert{expert}.fc2.bias", "expert embed"),
      );
      return {
        y: combine(done, routing),
        index: routing.index,
        weight: routing.weight,
        slot: routing.slot,
      };
    },
  );
}

t.test("evaluate() reproduces outputs, weights and slots of fairscale", (t) => {
  const files = [
    "w1-e4",
    "w2-e4",
    "w2-e4-noise",
    "w4-e4",
    "w4-e8",
    "w4-e8-noise",
  ];
  let dropped = 0;
  for (const file of files) {
    const recorded = readTensors(`fairscale/${file}.safetensors`);
    const world = Number(file[1]);
    const experts = Number(file[4]);
    const ranks = Array.from({ length: world }, (_, r) => r);
    const of = (part: string) =>
      ranks.flatMap((r) => recorded[`rank${r}.${part}`]!);
    const tokens = recorded["rank0.input"]!.length / 8;
    const { outputs } = evaluate(
      trace(fairscaleLayer(world, tokens, experts)),
      { inputs: { x: of("input"), noise: of("gumbel") }, params: recorded },
    );
    const off = distance(outputs["y"]!.data, of("output"));
    t.ok(off < 1e-5, `${file}: outputs are ${off.toExponential(1)} off`);
    // combine_weights [tokens, experts, capacity] holds each weight at its expert and slot.
    const capacity = Math.floor((2 * tokens) / experts);
    const weights = new Array<number>(of("combine_weights").length).fill(0);
    const { index, slot, weight } = outputs;
    slot!.data.forEach((place, i) => {
      if (place < 0) return void dropped++;
      const at = (Math.floor(i / 2) * experts + index!.data[i]!) * capacity;
      weights[at + place] = weight!.data[i]!;
    });
    t.ok(
      distance(weights, of("combine_weights")) < 1e-5,
      `${file}: weights at their slots`,
    );
  }
  t.ok(dropped > 0, `${dropped} choices are dropped`);
  t.end();
});

t.test("evaluate() gives the same groups by an integer per token as by a leading axis", (t) => {
  const recorded = readTensors("fairscale/w2-e4.safetensors");
  const of = (part: string) =>
    [0, 1].flatMap((r) => recorded[`rank${r}.${part}`]!);
  const net = model({ token: 64, embed: 8, expert: 4 }, (m) => {
    const logits = dot(
      m.input("x", "token embed"),
      m.param("gate.weight", "expert embed"),
      "embed",
    );
    const { index, slot, weight } = route(logits, {
      over: "expert",
      topK: 2,
      preset: "fairscale.top2",
      group: m.input("group", "token", { dtype: "i32" }),
    });
    return { index, slot, weight };
  });
  const flat = evaluate(trace(net), {
    inputs: {
      x: of("input"),
      group: Array.from({ length: 64 }, (_, token) => token < 32 ? 0 : 1),
    },
    params: recorded,
  });
  const leading = evaluate(trace(fairscaleLayer(2, 32, 4)), {
    inputs: { x: of("input"), noise: of("gumbel") },
    params: recorded,
  });
  for (const part of ["index", "slot", "weight"]) {
    t.strictSame(
      [...flat.outputs[part]!.data],
      [...leading.outputs[part]!.data],
      part,
    );
  }
  t.end();
});

t.test("evaluate() runs the user's own function", (t) => {
  const net = model({ n: 2 }, (m) => ({
    y: map((a, b) => (a > b ? a : -b), m.input("a", "n"), m.input("b", "n")),
  }));
  t.strictSame(y(net, { inputs: { a: [1, 2], b: [2, 1] } }), [-2, 2]);
  t.end();
});
