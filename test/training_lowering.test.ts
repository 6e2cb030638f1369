/** Compiled gradients and training steps: kernels match the reference, and runs are deterministic. */
// needs: cpu, gpu

import t from "tap";
import {
  add,
  attention,
  cast,
  combine,
  crossEntropy,
  dispatch,
  dot,
  embedding,
  latentAttention,
  logSumExp,
  map,
  max,
  mean,
  merge,
  model,
  mul,
  rmsNorm,
  rope,
  route,
  slice,
  softmax,
  split,
  sum,
  type Tensor,
  topK,
  transpose,
  upTo,
} from "../compiler/dsl/mod.ts";
import { compileGraph } from "../compiler/compile.ts";
import { type CompileOptions, compileTraining } from "../compiler/mod.ts";
import { trace } from "../compiler/graph/trace.ts";
import { trainStep } from "../compiler/graph/train_step.ts";
import { lowerScalars } from "../compiler/scalars.ts";
import { publishedModel } from "../models/published.ts";
import { stringifyPlan } from "../spec/mod.ts";
import { graphWithGradients } from "./helpers/gradients.ts";
import {
  type Case,
  closeDevices,
  digest,
  matches,
  runCase,
  skip,
  waves,
} from "./helpers/run_model.ts";
import { isInGpuTurn } from "./helpers/needs.ts";
import { readJson } from "./helpers/read_tensors.ts";

t.teardown(closeDevices);

/**
 * Checks the gradients of a model's output `loss` against the reference, on the CPU and on a GPU; on a software GPU
 * a fifth of the tests, by `SEED`. test/training_mesh.test.ts checks that they are deterministic.
 */
function gradientsHold(name: string, of: Case & { model: Traceable }): void {
  t.test(name, async (t) => {
    const withGradients = { ...of, model: await graphWithGradients(of.model) };
    await matches(t, withGradients, "cpu");
  });
  if (!isInGpuTurn(name)) return;
  t.test(`${name}, on a GPU`, { skip }, async (t) => {
    const withGradients = { ...of, model: await graphWithGradients(of.model) };
    await matches(t, withGradients, "gpu");
  });
}

type Traceable = Parameters<typeof graphWithGradients>[0];

/** A number that depends on every element of `y`. */
function lossOf(y: Tensor): Tensor<"", "f32"> {
  let rest = mul(y as never, map((x) => x * x - 0.5 * x, y as never));
  while (rest.axes !== "") {
    const axis = (rest.axes as string).split(" ").at(-1)!;
    rest = sum(rest as never, axis as never) as never;
  }
  return rest as unknown as Tensor<"", "f32">;
}

const token = { dtype: "i32" } as const;

gradientsHold("a dense layer", {
  model: model({ row: upTo(70), a: 5, b: 40, c: 3 }, (m) => {
    const x = rmsNorm(m.input("x", "row b"), m.param("gain", "b"), "b");
    const h = map(
      (v) => v / (1 + Math.exp(-v)),
      add(dot(x, m.param("w", "a b"), "b"), m.param("bias", "a")),
    );
    const y = softmax(dot(h, m.param("u", "c a"), "a"), "c");
    return { loss: add(lossOf(y), mean(logSumExp(h, "a"), "row")) };
  }),
  lengths: { row: 67 },
});

gradientsHold("ops that move elements", {
  model: model({ a: 4, b: 6, c: 3, d: 2, e: 2 }, (m) => {
    const x = m.param("x", "a b");
    const transposed = transpose(split(x, "b", "c d"), "c a d");
    const odd = slice(x, "b", 1, "e", 2);
    const { values } = topK(x, { over: "b", k: 2 });
    return {
      loss: add(
        add(lossOf(merge(transposed, "a d", "ad")), lossOf(odd)),
        add(lossOf(values), lossOf(max(x, "b"))),
      ),
    };
  }),
});

gradientsHold("attention, rotary positions and the next-token loss", {
  model: model(
    {
      token: upTo(12),
      sequence: 2,
      context: 8,
      vocab: 9,
      embed: 6,
      head: 4,
      kvHead: 2,
      dim: 4,
      valueDim: 3,
    },
    (m) => {
      const at = (name: string) => m.input(name, "token", token);
      const table = m.param("table", "vocab embed");
      const x = embedding(table, at("ids"), "vocab");
      const position = at("position");
      const turn = <A extends string>(x: Tensor<A, "f32">) =>
        rope(x as never, "dim" as never, { position } as never) as Tensor<
          A,
          "f32"
        >;
      const { y, keys, values } = attention(
        turn(dot(x, m.param("q", "head dim embed"), "embed")),
        {
          key: turn(dot(x, m.param("k", "kvHead dim embed"), "embed")),
          value: dot(x, m.param("v", "kvHead valueDim embed"), "embed"),
          keys: m.state("keys", "sequence context kvHead dim"),
          values: m.state("values", "sequence context kvHead valueDim"),
          sequence: at("sequence"),
          position,
          window: 3,
          sinks: m.param("sinks", "head"),
        },
      );
      const out = dot(
        y,
        m.param("o", "embed head valueDim"),
        "head valueDim",
      );
      const logits = dot(add(x, out), table, "embed");
      const loss = crossEntropy(logits, at("labels"), { over: "vocab" });
      return { loss, keys, values };
    },
  ),
  calls: [{
    ids: [1, 8, 3, 3, 0, 2, 3],
    sequence: [0, 1, 0, 0, 1, 0, 0],
    position: [0, 0, 1, 2, 1, 3, 4],
    labels: [3, -100, 0, 8, 1, -100, 2],
  }],
});

gradientsHold("latent attention", {
  model: model(
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
      const { y, keys } = latentAttention(
        dot(x, m.param("q", "head dim embed"), "embed"),
        {
          key: dot(x, m.param("k", "dim embed"), "embed"),
          keys: m.state("keys", "sequence context dim"),
          value: "value",
          sequence: m.input("sequence", "token", token),
          position: m.input("position", "token", token),
        },
      );
      return { loss: lossOf(y), keys };
    },
  ),
  calls: [{ sequence: [0, 1, 0, 0, 1], position: [0, 0, 1, 2, 1] }],
});

for (
  const options of [
    { topK: 2, preset: "mixtral" },
    { topK: 1, preset: "llama4" },
    { topK: 2, preset: "fairscale.top2" },
  ] as const
) {
  gradientsHold(`experts routed by ${options.preset}`, {
    model: model({ token: upTo(40), embed: 6, ffn: 5, expert: 4 }, (m) => {
      const x = add(m.input("x", "token embed"), m.param("shift", "embed"));
      const logits = dot(x, m.param("router", "expert embed"), "embed");
      const routing = route(logits, { over: "expert", ...options });
      const sent = dispatch(x, routing);
      const hidden = map(
        (g, u) => g / (1 + Math.exp(-g)) * u,
        dot(sent, m.param("gate.{expert}", "expert ffn embed"), "embed"),
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
      return { loss: lossOf(combine(done, routing)) };
    }),
    calls: [{ x: waves(37 * 6) }, { x: waves(6) }, { x: [] }],
    tolerance: 3e-5,
  });
}

/** A small Mixtral with its loss, and a batch of three sequences. */
async function smallMixtral() {
  const small = publishedModel({
    ...readJson("mixtral-8e/config.json"),
    hidden_size: 16,
    intermediate_size: 12,
    num_hidden_layers: 2,
    num_attention_heads: 2,
    num_key_value_heads: 1,
    vocab_size: 20,
    head_dim: 8,
  }).build({
    maxTokens: 16,
    maxSequences: 3,
    maxContext: 8,
    training: { auxiliary: 0.02 },
  });
  const graph = trace(small);
  const inputs = {
    ids: [3, 7, 7, 1, 0, 19, 4, 4, 5, 1],
    sequence: [0, 0, 0, 0, 0, 1, 1, 1, 1, 2],
    position: [0, 1, 2, 3, 4, 0, 1, 2, 3, 0],
    labels: [7, 7, 1, 0, -100, 4, 4, 5, -100, -100],
  };
  const calls = [1, 2, 3].map((step) => ({
    ...inputs,
    learning_rate: [0.01],
    step: [step],
  }));
  return { small, graph, calls, scalars: await lowerScalars(graph) };
}

t.test("steps of training a small Mixtral", async (t) => {
  const { graph, calls, scalars } = await smallMixtral();
  for (
    const optimizer of [
      { kind: "adamW", betas: [0.9, 0.95], weightDecay: 0.1 },
      { kind: "sgd", momentum: 0.9, weightDecay: 0.01 },
    ] as const
  ) {
    const step = trainStep(
      graph,
      { loss: "loss", optimizer, clipNorm: 1 },
      scalars,
    );
    const of = { model: step, calls, tolerance: 2e-4 };
    await matches(t, of, "cpu");
    const losses = (await runCase(of, "cpu")).map(({ loss }) => loss!.data[0]!);
    t.ok(losses[2]! < losses[0]!, `${optimizer.kind}: losses ${losses}`);
  }
});

/** Meshes of several ranks, with even and uneven shards. */
const MESHES: readonly CompileOptions[] = [
  { mesh: { dp: 2 } },
  { mesh: { ep: 2 } },
  { mesh: { ep: 3 } },
  { mesh: { ep: 4 } },
  { mesh: { dp: 2, ep: 2 } },
  {
    mesh: { ep: 2 },
    place: {
      token: "ep",
      expert: { over: "ep", table: [[0, 2, 4], [1, 3, 5, 6, 7]] },
    },
  },
];

t.test("steps on every mesh are close to those on one rank", async (t) => {
  const { graph, calls, scalars } = await smallMixtral();
  const step = trainStep(
    graph,
    { loss: "loss", optimizer: { kind: "adamW" }, clipNorm: 3 },
    scalars,
  );
  const after = Object.entries(step.states).filter(([name]) =>
    name.endsWith(".weight") && name.startsWith("model.")
  );
  const outputs = {
    ...step.outputs,
    ...Object.fromEntries(
      after.map(([name, node]) => [`after.${name}`, node]),
    ),
  };
  const of = { model: { ...step, outputs }, calls };
  const alone = await runCase(of, "cpu");
  for (const options of MESHES) {
    const title = JSON.stringify(options);
    const sharded = await runCase(of, "cpu", options);
    // Runs again if shards are uneven and given by a table; test/training_mesh.test.ts repeats a run with dp.
    if (options === MESHES.at(-1)) {
      const again = await runCase(of, "cpu", options);
      t.equal(digest(sharded), digest(again), `run to run, ${title}`);
    }
    const wrong = sharded.flatMap((outputs, call) =>
      Object.entries(outputs).flatMap(([name, { data }]) => {
        const want = [...alone[call]![name]!.data];
        const scale = Math.max(...want.map(Math.abs));
        const off = want.map((x, i) => Math.abs(x - data[i]!) / scale);
        // Written so that a NaN counts as an error.
        return off.every((x) => x < 1e-5) ? [] : [`${name} of step ${call}`];
      })
    );
    t.same(wrong, [], `as on one rank, ${title}`);
  }
});

t.test("compileTraining() compiles the training step of a model", async (t) => {
  const { small, graph, scalars } = await smallMixtral();
  const options = { loss: "loss", optimizer: { kind: "sgd" } } as const;
  const plan = await compileTraining(small, { ...options, mesh: { ep: 2 } });
  const same = await compileGraph(trainStep(graph, options, scalars), {
    mesh: { ep: 2 },
  });
  t.equal(stringifyPlan(plan), stringifyPlan(same));
  t.strictSame(Object.keys(plan.programs[0]!.inputs).sort(), [
    ...["ids", "labels", "learning_rate", "position", "sequence"],
  ]);
  await t.rejects(compileTraining(small, { ...options, loss: "los" }), {
    name: "ModelError",
    message:
      "Cannot train by output 'los': the model has no such output. Return one",
  });
});

t.test("a loss without gradients is rejected", async (t) => {
  const rounded = model({ n: 2 }, (m) => {
    const whole = cast(m.param("w", "n"), "i32");
    return { loss: sum(cast(whole, "f32"), "n"), count: whole };
  });
  const optimizer = { kind: "sgd" } as const;
  await t.rejects(compileTraining(rounded, { loss: "loss", optimizer }), {
    name: "ModelError",
    message:
      "Cannot train by output 'loss': no parameter has a gradient, because it depends on none, or only through integers. Compute it in f32 from parameters",
  });
  const whole = model({ n: 2 }, (m) => ({
    loss: cast(sum(m.param("w", "n"), "n"), "i32"),
  }));
  await t.rejects(compileTraining(whole, { loss: "loss", optimizer }), {
    name: "ModelError",
    message:
      "Cannot differentiate i32[]: a loss is one number in f32. Compute it in f32",
  });
});
