/** Training on meshes: losses, gradients, norms and steps are those of one rank, wherever tokens and experts lie. */

import t from "tap";
import {
  add,
  balancingLoss,
  combine,
  dispatch,
  dot,
  map,
  mean,
  model,
  mul,
  route,
  type RoutingPreset,
  sum,
  upTo,
} from "../compiler/mod.ts";
import type { Graph } from "../compiler/graph/graph.ts";
import { trace } from "../compiler/graph/trace.ts";
import { GRADIENT_NORM, trainStep } from "../compiler/graph/train_step.ts";
import { lowerScalars } from "../compiler/scalars.ts";
import { createSession, type Device } from "../runtime/mod.ts";
import { formatPlan } from "../spec/mod.ts";
import { graphWithGradients } from "./helpers/gradients.ts";
import {
  type Case,
  closeDevices,
  compileCase,
  deviceOf,
  digest,
  matches,
  runCalls,
  runCase,
  skip,
  tensorsOf,
  waves,
} from "./helpers/run_model.ts";

t.teardown(closeDevices);

/** Every way to lay ranks out as dp × ep. */
function factorisations(ranks: number): { dp: number; ep: number }[] {
  return [1, 2, 4, 8].filter((dp) => ranks % dp === 0)
    .map((dp) => ({ dp, ep: ranks / dp }));
}

/** Factorisations, and meshes whose ranks hold different numbers of experts. */
const MESHES: readonly { readonly [axis: string]: number }[] = [
  ...[1, 2, 4, 8].flatMap(factorisations),
  { ep: 3 },
  { dp: 2, ep: 3 },
];

/** A layer of experts; its gain is used before and after, and by itself in the loss. */
function layer(preset: RoutingPreset, topK: number) {
  return model({ token: upTo(40), embed: 6, ffn: 5, expert: 8 }, (m) => {
    const gain = m.param("gain", "embed");
    const x = mul(m.input("x", "token embed"), gain);
    const logits = dot(x, m.param("router", "expert embed"), "embed");
    const routing = route(logits, { over: "expert", topK, preset });
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
    const y = add(mul(combine(done, routing), gain), x);
    const squares = mean(sum(map((v) => v * v - 0.5 * v, y), "embed"), "token");
    const balance = balancingLoss(logits, routing, { over: "expert" });
    const decay = sum(map((g) => 0.1 * g * g, gain), "embed");
    return { loss: add(add(squares, mul(balance, 0.3)), decay), balance };
  });
}

/** Calls with many tokens, with fewer than ranks, and with one. */
const CALLS = [{ x: waves(37 * 6) }, { x: waves(3 * 6) }, { x: waves(6) }];

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

/** A step whose gradients are clipped, so that what it does depends on their norm. */
async function clippedStep(): Promise<Graph> {
  const graph = trace(layer("mixtral", 2));
  return trainStep(graph, {
    loss: "loss",
    optimizer: { kind: "sgd", momentum: 0.5 },
    clipNorm: 0.05,
  }, await lowerScalars(graph));
}

t.test("the norm of gradients counts every parameter once", async (t) => {
  const calls = CALLS.slice(0, 2).map((call, i) => ({
    ...{ ...call, learning_rate: [0.1], step: [i + 1] },
  }));
  const step = await clippedStep();
  const of: Case = { model: step, calls, tolerance: 1e-5 };
  await matches(t, of, "cpu", MESHES.map((mesh) => ({ mesh })));
  const [first, second] = await runCase(of, "cpu", { mesh: { dp: 2, ep: 2 } });
  const norm = first![GRADIENT_NORM]!.data[0]!;
  t.ok(norm > 0.05, `the norm ${norm} is clipped`);
  t.not(second!["loss"]!.data[0], first!["loss"]!.data[0]);
});

t.test("bytes of sums are those predicted, and the plan says them", async (t) => {
  const of: Case = {
    model: await graphWithGradients(layer("mixtral", 2)),
    calls: CALLS,
  };
  const plan = await compileCase(of, { mesh: { dp: 2, ep: 2 } });
  const text = formatPlan(plan);
  t.match(text, /f32\[embed:6\]\{partial:dp\+ep\}/, "of all ranks");
  t.match(
    text,
    /f32\[expert@ep:8 embed:6 ffn:5\]\{partial:dp\}/,
    "of ranks with the same experts",
  );
  t.match(
    text,
    /accumulate over token : f32\[embed\]\{partial:dp\+ep\}:/,
    "where it is computed",
  );
  t.match(
    text,
    /allReduce over dp : .*: parts\S* = allGather \S+ over dp \(480 B to each of 1 others\)/,
  );
  const device = await deviceOf("cpu");
  const session = await createSession(plan, {
    devices: new Array<Device>(plan.ranks).fill(device),
    tensors: await tensorsOf(of),
    statistics: true,
  });
  await runCalls(of, session);
  // Of replicated parameters 3 others have a part, of an expert's one: numbers of 4 bytes. The gain's gradient is added
  // up before and after the part of it that every rank has whole.
  const replicated = 2 * 6 + 8 * 6, experts = 4 * (5 * 6 + 5 * 6 + 5 + 6 * 5);
  for (const { rank, sentBytes } of session.statistics().ranks) {
    for (const [what, { predicted, actual }] of Object.entries(sentBytes)) {
      t.equal(actual, predicted, `${what} of rank ${rank}`);
    }
    t.equal(
      sentBytes.reduce.actual,
      CALLS.length * 4 * (3 * replicated + experts),
      `rank ${rank}`,
    );
  }
});
