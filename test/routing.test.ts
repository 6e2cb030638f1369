/** Routing rules without a recorded reference, each against a short implementation. */

import t from "tap";
import {
  compile,
  compileTraining,
  dot,
  embedding,
  type Model,
  model,
  route,
  type RouteOptions,
  type RoutingPreset,
  sum,
  type Tensor,
} from "../compiler/mod.ts";
import type { Tensors } from "../compiler/graph/evaluate/evaluate.ts";
import { routeTokens, softmaxRow } from "../compiler/graph/evaluate/routing.ts";
import {
  ROUTING_PRESETS,
  routingRule,
  slotsOf,
} from "../compiler/graph/routing/presets.ts";
import { trace } from "../compiler/graph/trace.ts";
import { stringifyPlan } from "../spec/mod.ts";
import {
  EXPERTS,
  LOGITS,
  near,
  ROWS,
  runLogits,
  TOKENS,
} from "./helpers/router_logits.ts";

type Options = Partial<
  RouteOptions<"token expert", "expert", RoutingPreset, "slot", "choice">
>;

/** Routes the logits; `inputs` are the operands of `route`. */
function routed(
  topK: number,
  options: Options,
  inputs: Tensors = {},
): { [name: string]: number[] } {
  const net = model(
    { token: TOKENS, expert: EXPERTS, choice: topK },
    (m) => {
      const operands = Object.keys(inputs).map((name) => {
        const isInteger = name === "mask" || name === "choices";
        const axes = name === "mask"
          ? "token"
          : name === "choices" || name === "weights"
          ? "token choice"
          : "token expert";
        return [
          name,
          m.input(name, axes as "token", { dtype: isInteger ? "i32" : "f32" }),
        ];
      });
      const routing = route(m.input("logits", "token expert"), {
        over: "expert",
        topK,
        preset: "olmoe",
        ...options,
        ...Object.fromEntries(operands) as Options,
      });
      const { index, weight, chosen, first, kept } = routing;
      const slotted = "slot" in routing &&
        routingRule({ ...options, topK }).capacity;
      return {
        index,
        weight,
        chosen,
        first,
        kept,
        ...slotted ? { slot: routing.slot as Tensor } : {},
      };
    },
  );
  return runLogits(net, inputs);
}

t.test("every preset routes", (t) => {
  for (const preset of Object.keys(ROUTING_PRESETS) as RoutingPreset[]) {
    const rule = ROUTING_PRESETS[preset];
    const topK = "chooses" in rule ? rule.chooses : 2;
    const random = preset === "deepspeed.top1";
    const { index, weight } = routed(topK, { preset }, {
      ...random ? { random: LOGITS.map((x) => x + 3) } : {},
      ...preset === "hash"
        ? { choices: Array.from({ length: 2 * TOKENS }, (_, i) => i % 4) }
        : {},
    });
    t.equal(index!.length, TOKENS * topK, `${preset}: topK choices per token`);
    t.ok(weight!.every(Number.isFinite), `${preset}: weights`);
  }
  t.end();
});

t.test("slots follow the formula of each system", (t) => {
  const size = { tokens: 30, experts: 8, topK: 2 };
  const of = (preset: string, capacity = {}) =>
    slotsOf(routingRule({ preset, topK: 2, capacity }).capacity!, size);
  t.equal(of("fairscale.top2"), Math.floor(2 * 30 / 8));
  t.equal(of("deepspeed.topk", { factor: 1.1 }), Math.ceil(30 / 8 * 2.2));
  t.equal(of("deepspeed.topk", { factor: 0.1 }), 4, "at least 4");
  t.equal(of("tutel.topk", { factor: 1.25 }), 2 * Math.floor(1.25 * 4));
  t.equal(of("tutel.topk", { alignment: 16 }), 16, "aligned");
  t.equal(of("megatron.postSoftmax", { factor: 1.5 }), Math.ceil(7.5 * 1.5));
  t.equal(of("gshard.top2"), Math.floor(30 * 2 / 8), "in evaluation");
  t.equal(of("megablocks", { factor: 1.5 }), Math.floor(1.5 * 2 * 30 / 8));
  t.equal(of("expertChoice", { factor: 3 }), Math.floor(30 * 3 / 8));
  t.equal(of("olmoe", { slots: 5 }), 5);
  // In f32, 3 * 1.4 is just above 4.2 * 1, and 0.7 * 10 is 7 as in doubles.
  const f32 = { slots: "ceilF32", factor: 0.7 } as const;
  t.equal(
    slotsOf({ ...f32, drop: "score", order: "token" }, {
      tokens: 80,
      experts: 8,
      topK: 1,
    }),
    7,
  );
  t.end();
});

t.test("capacity has separate factors for training and evaluation", async (t) => {
  const net = (capacity: Options["capacity"]) =>
    model({ token: TOKENS, expert: EXPERTS, embed: 3 }, (m) => {
      const x = m.input("x", "token embed");
      const logits = dot(x, m.param("router", "expert embed"), "embed");
      const { kept, weight } = route(logits, {
        over: "expert",
        topK: 2,
        preset: "gshard.top2",
        ...capacity ? { capacity } : {},
      });
      return { kept, loss: sum(sum(weight, "choice"), "token") };
    });
  const both = net({ factor: { training: 0.75, evaluation: 3 }, minimum: 0 });
  const plans = async (net: Model) => [
    stringifyPlan(await compile(net)),
    stringifyPlan(
      await compileTraining(net, { loss: "loss", optimizer: { kind: "sgd" } }),
    ),
  ];
  const [running, training] = await plans(both);
  const [three] = await plans(net({ factor: 3, minimum: 0 }));
  const [, less] = await plans(net({ factor: 0.75, minimum: 0 }));
  t.equal(running, three, "a run uses the evaluation factor");
  t.equal(training, less, "a training step uses the training factor");
  const slots = (net: Model, options = {}) =>
    trace(net, options).nodes.flatMap((node) =>
      node.primitive === "route" ? [node.params.rule.capacity!.factor] : []
    );
  t.same(slots(net(undefined)), [2]);
  t.same(slots(net(undefined), { training: true }), [1.25]);
});

t.test("gshard computes weights before drops", (t) => {
  const { index, weight, slot } = routed(2, {
    preset: "gshard.top2",
    capacity: { minimum: 0, factor: 1.25 },
  });
  const next = new Array<number>(EXPERTS).fill(0);
  const wanted = { weight: [] as number[], slot: [] as number[] };
  for (const j of [0, 1]) {
    for (let s = 0; s < TOKENS; s++) {
      const i = s * 2 + j;
      const assigned = next[index![i]!]!++;
      const p = softmaxRow(ROWS[s]!);
      const [a, b] = [p[index![s * 2]!]!, p[index![s * 2 + 1]!]!];
      const kept = assigned < Math.floor(TOKENS * 1.25 / EXPERTS);
      wanted.slot[i] = kept ? assigned : -1;
      wanted.weight[i] = kept ? (j === 0 ? a : b) / (a + b + 1e-9) : 0;
    }
  }
  t.same(slot, wanted.slot);
  t.ok(slot!.includes(-1), "some are dropped");
  near(t, weight!, wanted.weight, "weights");
  t.end();
});

t.test("expert choice: every expert keeps its best tokens", (t) => {
  const { index, weight, kept } = routed(EXPERTS, { preset: "expertChoice" });
  const room = Math.floor(2 * TOKENS / EXPERTS);
  const scores = ROWS.map(softmaxRow);
  for (let e = 0; e < EXPERTS; e++) {
    const best = scores.map((_, s) => s)
      .sort((a, b) => scores[b]![e]! - scores[a]![e]!).slice(0, room);
    for (let s = 0; s < TOKENS; s++) {
      const i = index!.indexOf(e, s * EXPERTS);
      const wins = best.includes(s);
      t.equal(kept![s * EXPERTS + e], wins ? 1 : 0);
      near(t, [weight![i]!], [wins ? scores[s]![e]! : 0], "weights");
    }
  }
  t.end();
});

t.test("hash: a table maps token ids to experts", (t) => {
  const net = model(
    { token: 3, expert: EXPERTS, choice: 1, vocab: 5 },
    (m) => {
      const table = m.input("table", "vocab choice", { dtype: "i32" });
      const ids = m.input("ids", "token", { dtype: "i32" });
      const { index, weight } = route(m.input("logits", "token expert"), {
        over: "expert",
        topK: 1,
        preset: "hash",
        choices: embedding(table, ids, "vocab"),
      });
      return { index, weight };
    },
  );
  const { index, weight } = runLogits(net, {
    table: [3, 1, 2, 0, 1],
    ids: [4, 0, 3],
    logits: LOGITS.slice(0, 3 * EXPERTS),
  });
  t.same(index, [1, 3, 0]);
  near(t, weight!, [1, 3, 0].map((e, s) => softmaxRow(ROWS[s]!)[e]!));
  t.end();
});

t.test("forced: choices cycle through the experts, in each group", (t) => {
  const { index, weight } = routed(3, { preset: "forced" });
  t.same(index, Array.from({ length: 3 * TOKENS }, (_, i) => i % EXPERTS));
  near(
    t,
    weight!,
    index!.map((e, i) => softmaxRow(ROWS[Math.floor(i / 3)]!)[e]!),
  );
  const net = model({ group: 2, token: 6, expert: EXPERTS }, (m) => ({
    index: route(m.input("logits", "group token expert"), {
      over: "expert",
      topK: 1,
      preset: "forced",
      group: "group",
    }).index,
  }));
  t.same(runLogits(net)["index"], [0, 1, 2, 3, 0, 1, 0, 1, 2, 3, 0, 1]);
  t.end();
});

t.test("given choices are replayed by any rule", (t) => {
  for (const preset of ["mixtral", "deepseekV3", "gptOss"] as const) {
    const first = routed(2, { preset, scale: 2 });
    const again = routed(2, { preset, scale: 2 }, { choices: first["index"]! });
    t.same(again, first, preset);
    const weights = first["weight"]!.map((w) => w / 2);
    const replayed = routed(2, { preset: "olmoe", scale: 2 }, {
      choices: first["index"]!,
      weights,
    });
    t.same(replayed["weight"], first["weight"], "given weights are used");
  }
  t.throws(
    () => routed(1, {}, { choices: new Array(TOKENS).fill(EXPERTS) }),
    { message: "Cannot route to expert 4: there are 4. Give 0 to 3" },
  );
  t.end();
});

t.test("padding has no choices and no slots", (t) => {
  const real = [0, 1, 3, 4, 8, 10];
  const mask = Array.from(
    { length: TOKENS },
    (_, s) => real.includes(s) ? 1 : 0,
  );
  const capacities: NonNullable<Options["capacity"]>[] = [
    "dropless",
    { slots: "largest" },
    ...["position", "score"].map((drop) => ({
      slots: 2,
      drop: drop as "score",
    })),
  ];
  for (const capacity of capacities) {
    const found = routed(2, { preset: "mixtral", capacity }, { mask });
    const alone = routeTokens(
      routingRule({ preset: "mixtral", topK: 2, capacity }),
      {
        axes: [],
        dtype: "f32",
        shape: [real.length, EXPERTS],
        data: Float32Array.from(real.flatMap((s) => ROWS[s]!)),
      },
    );
    const title = JSON.stringify(capacity);
    const of = (name: string) =>
      real.flatMap((s) => found[name]!.slice(2 * s, 2 * s + 2));
    t.same(of("index"), alone.index, title);
    t.same(of("weight"), alone.weight, title);
    if (capacity !== "dropless") t.same(of("slot"), alone.slot, title);
    mask.forEach((counts, s) => {
      if (counts) return;
      t.same(found["weight"]!.slice(2 * s, 2 * s + 2), [0, 0]);
      for (const name of ["chosen", "first", "kept"]) {
        const row = found[name]!.slice(s * EXPERTS, (s + 1) * EXPERTS);
        t.same(row, [0, 0, 0, 0], name);
      }
    });
  }
  t.end();
});

t.test("a token with the same given expert twice has one slot there", (t) => {
  const choices = Array.from({ length: 2 * TOKENS }, () => 2);
  const { slot, weight } = routed(
    2,
    { capacity: { slots: 3 } },
    { choices },
  );
  t.same(slot!.slice(0, 8), [0, -1, 1, -1, 2, -1, -1, -1]);
  t.ok(weight![0]! > 0 && weight![1] === 0);
  t.end();
});

t.test("incompatible options are rejected", (t) => {
  const cases: [Options, Tensors, string][] = [
    [
      { preset: "hash" },
      {},
      "Cannot route by preset 'hash': its choices are given. Give 'choices', an expert for each token and choice",
    ],
    [
      {},
      { weights: [] },
      "Cannot route by preset 'olmoe' with weights: whose they are is not given. Give 'choices' too",
    ],
    [
      { normalize: "kept" },
      {},
      "Cannot route by preset 'olmoe' with weights divided by those kept: nothing is dropped. Use 'chosen'",
    ],
    [
      { capacity: { drop: "random" } },
      {},
      "Cannot route by preset 'olmoe': it drops at random. Give 'random', a number for each token and expert, or drop by 'position' or 'score'",
    ],
    [
      {},
      { random: [] },
      "Cannot route by preset 'olmoe' with random numbers: it does not drop at random. Leave 'random' out, or drop at 'random'",
    ],
    [
      { capacity: { slots: 1.5 } },
      {},
      "Cannot route by preset 'olmoe' with 1.5 slots: expected a whole number",
    ],
    [
      { capacity: { slots: "largest", factor: 2 } },
      {},
      "Cannot route by preset 'olmoe' with a capacity factor: its slots are as many as are needed. Give 'slots' a formula",
    ],
    [
      { preset: "switch.top1", capacity: { factor: 2 } },
      {},
      "Cannot route by preset 'switch.top1' with a capacity factor: its slots are 64. Give 'slots' a formula",
    ],
    [
      { capacity: { factor: 0 } },
      {},
      "Cannot route by preset 'olmoe' with a capacity factor of 0: expected a number above 0",
    ],
    [
      { capacity: { minimum: -1 } },
      {},
      "Cannot route by preset 'olmoe' with at least -1 slots: expected a whole number",
    ],
    [
      { capacity: { alignment: 0 } },
      {},
      "Cannot route by preset 'olmoe' with slots in multiples of 0: expected a whole number of at least 1",
    ],
  ];
  for (const [options, inputs, message] of cases) {
    t.throws(() => routed(1, options, inputs), { name: "ModelError", message });
  }
  t.throws(() => routed(1, { preset: "top3" as "hash" }), {
    message: /^Cannot route by preset 'top3': there is none\. Presets are /,
  });
  t.end();
});
