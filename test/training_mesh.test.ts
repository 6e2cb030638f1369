/** Training on meshes: losses, gradients, norms and steps are close to those of one rank for all placements. */
// needs: cpu, gpu

import t from "tap";
import {
  add,
  compileTraining,
  dot,
  map,
  mean,
  merge,
  model,
  rmsNorm,
  sgd,
  split,
  sum,
  transpose,
  upTo,
} from "../compiler/mod.ts";
import { GRADIENT_NORM } from "../compiler/graph/train_step.ts";
import { TUNING } from "../engine/tune/tuning.ts";
import type { Config } from "../models/mod.ts";
import { publishedModel } from "../models/published.ts";
import { NATIVE_LIMITS } from "../runtime/native/mod.ts";
import { collectFacts } from "../spec/plan/facts.ts";
import { formatPlan, verifyPlan } from "../spec/mod.ts";
import { graphWithGradients } from "./helpers/gradients.ts";
import { countedRun } from "./helpers/counted_run.ts";
import {
  type Case,
  closeDevices,
  compileCase,
  digest,
  matches,
  runCase,
  skip,
} from "./helpers/run_model.ts";
import { readJson } from "./helpers/read_tensors.ts";
import { CALLS, layer, stepCase } from "./helpers/training_layer.ts";

t.teardown(closeDevices);

/** All factorizations of a rank count as dp × ep. */
function factorizations(ranks: number): { dp: number; ep: number }[] {
  return [1, 2, 4, 8].filter((dp) => ranks % dp === 0)
    .map((dp) => ({ dp, ep: ranks / dp }));
}

/** Factorizations, and meshes with unequal experts per rank. */
const MESHES: readonly { readonly [axis: string]: number }[] = [
  ...[1, 2, 4, 8].flatMap(factorizations),
  { ep: 3 },
  { dp: 2, ep: 3 },
];

for (
  const [preset, topK] of [
    ["mixtral", 2],
    ["deepseekV3", 3],
    ["fairscale.top2", 2],
    ["switch.top1", 1],
  ] as const
) {
  t.test(`gradients of experts routed by ${preset}`, async (t) => {
    const of: Case = {
      model: await graphWithGradients(layer(preset, topK)),
      calls: CALLS,
      tolerance: 1e-5,
    };
    await matches(t, of, "cpu", MESHES.map((mesh) => ({ mesh })));
    const mesh = { dp: 2, ep: 2 };
    t.equal(
      digest(await runCase(of, "cpu", { mesh })),
      digest(await runCase(of, "cpu", { mesh })),
      "run to run",
    );
  });
}

t.test("gradients on four ranks of a GPU", { skip }, async (t) => {
  const model = await graphWithGradients(layer("mixtral", 2));
  const mesh = { dp: 2, ep: 2 };
  await matches(t, { model, calls: CALLS, tolerance: 1e-5 }, "gpu", [{ mesh }]);
});

t.test("the norm of gradients counts every parameter once", async (t) => {
  const of = await stepCase();
  await matches(t, of, "cpu", MESHES.map((mesh) => ({ mesh })));
  const [first, second] = await runCase(of, "cpu", { mesh: { dp: 2, ep: 2 } });
  const norm = first![GRADIENT_NORM]!.data[0]!;
  t.ok(norm > 0.05, `the norm ${norm} is clipped`);
  t.not(second!["loss"]!.data[0], first!["loss"]!.data[0]);
});

t.test("norms with gathered gains on wide devices", async (t) => {
  const normed = model({ token: upTo(40), embed: 6, out: 5 }, (m) => {
    const x = m.input("x", "token embed");
    const rows = rmsNorm(x, m.param("gain", "embed"), "embed");
    const y = dot(rows, m.param("w", "out embed"), "embed");
    return { loss: mean(sum(map((v) => v * v, y), "out"), "token") };
  });
  await matches(t, await stepCase(normed), "cpu", [
    {
      mesh: { dp: 2 },
      place: { token: "dp" },
      zero: 3,
      tuning: TUNING.gpu,
    },
  ]);
});

t.test("ZeRO-3 reads every buffer that launches write", async (t) => {
  const plan = await compileCase(await stepCase(), {
    mesh: { dp: 2, ep: 2 },
    zero: 3,
  });
  const { programs, buffers } = collectFacts(plan);
  const steps = programs.flatMap((program) => program.steps);
  const read = new Set(steps.flatMap(({ reads }) => reads));
  const launches = steps.filter(({ step }) => step.op === "launch");
  const unread = launches.flatMap(({ writes }) => writes).filter((name) =>
    buffers.get(name)!.kind === "scratch" && !read.has(name)
  );
  t.strictSame(unread, []);
});

t.test("partial sums are added and transposed before they are sent", async (t) => {
  const of: Case = {
    model: await graphWithGradients(
      model({ token: upTo(11), a: 4, b: 3 }, (m) => {
        const x = m.input("x", "token a");
        const w = m.param("w", "a b");
        const transposed = split(
          merge(transpose(w, "b a"), "b a", "ba"),
          "ba",
          "b a",
        );
        const y = add(
          dot(x, map((v) => 3 * v, transposed), "a"),
          dot(x, w, "a"),
        );
        const squares = map((v) => v * v, y);
        return { loss: mean(sum(squares, "b"), "token") };
      }),
    ),
    tolerance: 1e-5,
  };
  const options = { mesh: { dp: 3 }, place: { token: "dp" } };
  await matches(t, of, "cpu", [options]);
  const plan = await compileCase(of, options);
  const sums = plan.programs[0]!.steps.filter((step) =>
    step.op === "allGather" && step.rows === undefined
  );
  t.equal(sums.length, 1, "one collective for both uses of a parameter");
});

t.test("bytes of reductions match the prediction, and the plan states them", async (t) => {
  const of: Case = {
    model: await graphWithGradients(layer("mixtral", 2)),
    calls: CALLS,
  };
  const { plan, ranks } = await countedRun(t, of, {
    mesh: { dp: 2, ep: 2 },
    sharing: "shared",
  });
  const text = formatPlan(plan);
  t.match(text, /f32\[embed:6\]\{unreduced:dp\+ep\}/, "over all ranks");
  t.match(
    text,
    /f32\[expert\/ep:4 embed:6 ffn:5\]\{unreduced:dp\}/,
    "over ranks with the same experts",
  );
  t.match(
    text,
    /reduceSum over token\/dp\+ep : f32\[embed\]\{unreduced:dp\+ep\}:/,
    "at its computation",
  );
  t.match(
    text,
    /allReduce over dp : .*: parts\S* = allGather \S+ over dp \(480 B to each of 1 others\)/,
  );
  // Replicated parameters have partial sums on 3 other ranks, those of experts on one; elements have 4 bytes. The
  // gradient of the gain is reduced twice: before and after its replicated part.
  const replicated = 2 * 6 + 8 * 6, experts = 4 * (5 * 6 + 5 * 6 + 5 + 6 * 5);
  for (const { rank, sentBytes } of ranks) {
    t.equal(
      sentBytes.reduce.actual,
      CALLS.length * 4 * (3 * replicated + experts),
      `rank ${rank}`,
    );
  }
});

t.test("a matmul of partial sums adds no other term", async (t) => {
  const config = readJson("glm4moe-16e/config.json") as Config;
  const published = publishedModel(config).build({
    maxTokens: 64,
    maxSequences: 2,
    maxContext: 32,
    training: { auxiliary: 0 },
  });
  const plan = await compileTraining(published, {
    loss: "loss",
    optimizer: sgd(),
    mesh: { tp: 2 },
    limits: NATIVE_LIMITS,
    tuning: TUNING.native,
  });
  t.same(verifyPlan(plan), []);
});
