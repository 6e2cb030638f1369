/**
 * Values that need all tokens, with tokens sharded over ranks: against the reference, with the same bits on every mesh.
 */
// needs: cpu, gpu

import fc from "fast-check";
import t, { type Test } from "tap";
import {
  add,
  attention,
  cast,
  combine,
  type CompileOptions,
  dispatch,
  div,
  dot,
  map,
  max,
  mean,
  model,
  mul,
  rename,
  rmsNorm,
  route,
  softmax,
  split,
  sub,
  sum,
  type Tensor,
  topK,
  upTo,
} from "../compiler/mod.ts";
import { formatPlan } from "../spec/mod.ts";
import { countedRun } from "./helpers/counted_run.ts";
import {
  type Case,
  closeDevices,
  compileCase,
  digest,
  matches,
  othersInTurn,
  runCase,
  skip,
  waves,
} from "./helpers/run_model.ts";
import { isInGpuTurn } from "./helpers/needs.ts";
import { holdsFor } from "./helpers/seed.ts";

t.teardown(closeDevices);

/** Tokens sharded over all ranks, on several meshes. */
const OVER_RANKS: readonly CompileOptions[] = [
  {},
  { mesh: { ep: 1 }, place: { token: "ep" } },
  { mesh: { ep: 2 }, place: { token: "ep" } },
  { mesh: { ep: 3 }, place: { token: "ep" } },
  { mesh: { dp: 2, ep: 2 }, place: { token: ["dp", "ep"] } },
  { mesh: { dp: 2, ep: 2 }, place: { token: ["ep", "dp"] } },
];

/** Default placements of models with experts. */
const EXPERTS: readonly CompileOptions[] = [
  {},
  { mesh: { ep: 1 } },
  { mesh: { ep: 2 } },
  { mesh: { ep: 4 } },
  { mesh: { dp: 2, ep: 2 } },
  { mesh: { ep: 2 }, chunks: 2 },
];

async function sameEverywhere(
  t: Test,
  of: Case,
  kind: "cpu" | "gpu",
  meshes: readonly CompileOptions[],
): Promise<void> {
  await matches(t, of, kind, meshes.slice(0, 1));
  const wanted = digest(await runCase(of, kind, meshes[0]));
  for (const options of othersInTurn(meshes, kind)) {
    t.equal(
      digest(await runCase(of, kind, options)),
      wanted,
      JSON.stringify(options),
    );
  }
}

/** Tests a case on the CPU and on a GPU. A software GPU runs a fifth of the cases, in rotation. */
function holdsGathered(
  name: string,
  of: Case,
  meshes: readonly CompileOptions[],
): void {
  t.test(name, async (t) => await sameEverywhere(t, of, "cpu", meshes));
  if (!isInGpuTurn(name)) return;
  t.test(`${name}, on a GPU`, { skip }, async (t) => {
    await sameEverywhere(t, of, "gpu", meshes.slice(0, 3));
  });
}

holdsGathered("sums, means, maxima and contractions over tokens", {
  calls: [{ x: waves(70 * 6) }, { x: waves(18, 2) }, { x: waves(6, 3) }, {
    x: [],
  }],
  model: model({ token: upTo(70), embed: 6, ffn: 5 }, (m) => {
    const x = m.input("x", "token embed");
    const h = dot(x, m.param("w", "ffn embed"), "embed");
    const average = mean(x, "token");
    return {
      sum: sum(x, "token"),
      average,
      max: max(h, "token"),
      scalar: sum(sum(x, "token"), "embed"),
      loss: mean(sum(map((a) => a * a, h), "ffn"), "token"),
      outer: dot(x, h, "token"),
      norm: dot(sum(h, "ffn"), sum(x, "embed"), "token"),
      centred: sub(x, average),
    };
  }),
}, OVER_RANKS);

holdsGathered("numbers without axes", {
  calls: [{ x: waves(28) }, { x: waves(4) }, { x: [] }],
  model: model({ token: upTo(9), embed: 4 }, (m) => {
    const x = m.input("x", "token embed");
    const total: Tensor<"", "f32"> = sum(sum(x, "token"), "embed");
    const loss = mean(mean(map((a) => a * a, x), "embed"), "token");
    const scale = m.input("scale", "");
    return {
      scale,
      total,
      loss,
      both: add(total, mul(loss, m.param("alpha", ""))),
      ratio: div(total, add(loss, 1)),
      scaled: mul(x, scale),
      whole: cast(total, "i32"),
      square: dot(x, x, "token embed"),
    };
  }),
}, OVER_RANKS);

holdsGathered("tokens against tokens", {
  calls: [{ x: waves(70 * 4) }, { x: waves(36) }, { x: waves(4) }, { x: [] }],
  model: model({ token: upTo(70), embed: 4 }, (m) => {
    const x = m.input("x", "token embed");
    const key = rename(x, "token", "key");
    const scores = dot(x, key, "embed");
    return {
      key,
      scores,
      total: sum(scores, "key"),
      mixed: dot(softmax(scores, "key"), key, "key"),
      soft: softmax(x, "token"),
      norm: rmsNorm(x, m.input("gain", "token"), "token"),
    };
  }),
}, OVER_RANKS);

holdsGathered("a fixed number of tokens in other axes", {
  model: model(
    { token: 12, row: 3, column: 4, embed: 5, best: 2 },
    (m) => {
      const x = m.input("x", "embed token");
      return {
        soft: softmax(x, "token"),
        mean: mean(x, "token"),
        rows: sum(split(x, "token", "row column"), "row"),
        best: topK(x, { over: "token", k: 2, axis: "best" }).indices,
      };
    },
  ),
}, OVER_RANKS);

/** Routes to two experts per token, with all tokens in one routing group. */
function oneGroup(tokens: number): Case["model"] {
  return model({ token: upTo(tokens), embed: 6, expert: 4 }, (m) => {
    const x = m.input("x", "token embed");
    const logits = dot(x, m.param("router", "expert embed"), "embed");
    const routing = route(logits, {
      over: "expert",
      topK: 2,
      preset: "fairscale.top2",
      noise: m.input("noise", "token expert"),
    });
    const w = m.param("w", "expert embed");
    return {
      y: add(x, combine(mul(dispatch(x, routing), w), routing)),
      index: routing.index,
      weight: routing.weight,
      slot: routing.slot,
      load: mean(softmax(logits, "expert"), "token"),
    };
  });
}

const routed: Case = {
  model: oneGroup(40),
  calls: [{ x: waves(240) }, { x: waves(18, 5) }, { x: waves(6, 1) }, {
    x: [],
  }],
};
holdsGathered("capacity of all tokens", routed, EXPERTS);

/** Presets that use routing groups, with topK and other options. */
const PRESETS = [
  ["switch.top1", 1],
  ["gshard.top2", 2],
  ["deepspeed.top1", 1],
  ["deepspeed.top2", 2],
  ["deepspeed.topk", 3],
  ["tutel.topk", 2],
  ["tutel.prioritised", 2],
  ["megatron.preSoftmax", 2],
  ["expertChoice", 5],
  ["forced", 2],
] as const;
holdsGathered("every preset, with all tokens in one group", {
  calls: [{ x: waves(31 * 6) }, { x: waves(6, 4) }, { x: [] }],
  model: model({ token: upTo(31), embed: 6, expert: 5 }, (m) => {
    const x = m.input("x", "token embed");
    const logits = dot(x, m.param("router", "expert embed"), "embed");
    const mask = m.input("mask", "token", { dtype: "i32" });
    const random = m.input("random", "token expert");
    return Object.fromEntries(PRESETS.flatMap(([preset, topK], i) => {
      const routing = route(logits, {
        over: "expert",
        topK,
        preset,
        mask,
        choice: `choice${topK}`,
        ...preset === "deepspeed.top1" ? { random } : {},
        ...preset === "megatron.preSoftmax" ? { capacity: { factor: 1 } } : {},
      });
      return [
        [preset, combine(dispatch(x, routing), routing)],
        [`${preset}.index`, routing.index],
        [`${preset}.weight`, routing.weight],
        ...i % 2 ? [[`${preset}.load`, mean(routing.kept, "token")]] : [],
      ];
    }));
  }),
}, EXPERTS.filter((_, i) => i !== 1));

holdsGathered("tokens assigned by sequence", {
  model: model(
    {
      token: upTo(12),
      embed: 8,
      head: 2,
      dim: 4,
      sequence: 4,
      context: 8,
      expert: 4,
    },
    (m) => {
      const x = m.input("x", "token embed");
      const q = split(x, "embed", "head dim");
      const { y, keys, values } = attention(q, {
        key: q,
        value: q,
        keys: m.state("keys", "sequence context head dim"),
        values: m.state("values", "sequence context head dim"),
        sequence: m.input("sequence", "token", { dtype: "i32" }),
        position: m.input("position", "token", { dtype: "i32" }),
      });
      const logits = dot(y, m.param("router", "expert head dim"), "head dim");
      const options = {
        over: "expert",
        topK: 2,
        preset: "fairscale.top2",
      } as const;
      const all = route(logits, options);
      const by = route(logits, {
        ...options,
        group: m.input("who", "token", { dtype: "i32" }),
        choice: "other",
      });
      return {
        keys,
        values,
        all: combine(dispatch(x, all), all),
        by: combine(dispatch(x, by), by),
        slot: all.slot,
        slotBy: by.slot,
        total: sum(y, "token"),
        gram: dot(x, cast(y, "f32"), "token"),
      };
    },
  ),
  calls: [
    {
      x: waves(96),
      sequence: [0, 1, 2, 2, 1, 1, 1, 3, 1, 2, 0, 2],
      position: [0, 0, 0, 1, 1, 2, 3, 0, 4, 2, 1, 3],
      who: [0, 1, 0, 1, 2, 2, 2, 0, 1, 0, 0, 0],
    },
    {
      x: waves(24, 2),
      sequence: [3, 0, 3],
      position: [1, 2, 2],
      who: [5, 5, 5],
    },
    { x: [], sequence: [], position: [], who: [] },
  ],
}, EXPERTS);

holdsGathered("members of a group sharded over ranks", {
  model: model({ group: 2, member: 6, embed: 4, expert: 4 }, (m) => {
    const x = m.input("x", "group member embed");
    const routing = route(dot(x, m.param("router", "expert embed"), "embed"), {
      over: "expert",
      topK: 2,
      preset: "fairscale.top2",
      group: "group",
    });
    return { y: combine(dispatch(x, routing), routing), slot: routing.slot };
  }),
}, [
  {},
  { mesh: { ep: 2 }, place: { group: "ep", expert: "ep" } },
  { mesh: { ep: 2 }, place: { member: "ep", expert: "ep" } },
  { mesh: { ep: 3 }, place: { member: "ep", expert: "ep" } },
]);

t.test("one rank needs no gather", async (t) => {
  const plan = await compileCase(routed, { mesh: { ep: 1 } });
  t.notMatch(formatPlan(plan), /allGather/);
});

t.test("the plan shows gathers", async (t) => {
  const text = formatPlan(await compileCase(routed, { mesh: { ep: 2 } }));
  const gathers = text.split("\n").filter((line) =>
    / allGather over /.test(line)
  )
    .map((line) => line.replace(/ {2}\/\/.*/, "").trim());
  t.equal(
    gathers[0],
    "%1 allGather over ep : f32[token/ep expert] -> f32[token expert]: gathered = allGather dot over ep (token/ep x 16 B to each of 1 others) by counts of token/ep over ep",
  );
  t.match(
    text,
    /all-gather of token\/ep +main\[1\] +gather +over ep +rows\(token\/ep\) x 16 B x 1 others/,
  );
});

t.test("bytes match the plan, between devices and on one", async (t) => {
  for (const sharing of ["shared", "separate"] as const) {
    const { results, ranks } = await countedRun(t, routed, {
      mesh: { ep: 3 },
      sharing,
    });
    const wanted = digest(await runCase(routed, "cpu"));
    t.equal(digest(results), wanted, "the same bits");
    const lengths = [[14, 13, 13], [1, 1, 1], [1, 0, 0], [0, 0, 0]];
    for (const { rank, sentBytes } of ranks) {
      // Logits, noise and the operand of the mean: rows of four numbers, to two other ranks.
      const tokens = lengths.reduce((n, call) => n + call[rank]!, 0);
      t.equal(sentBytes.gather.actual, tokens * 3 * 16 * 2);
    }
  }
});

t.test("random models, lengths and meshes", async (t) => {
  const sizes = fc.record({
    tokens: fc.integer({ min: 0, max: 80 }),
    embed: fc.integer({ min: 1, max: 9 }),
    ep: fc.integer({ min: 2, max: 5 }),
    assignment: fc.boolean(),
    seed: fc.integer({ min: 0, max: 999 }),
  });
  await holdsFor(t, sizes, {
    runs: 8,
    check: async ({ tokens, embed, ep, assignment, seed }) => {
      const of: Case = {
        lengths: { token: tokens },
        calls: [{
          x: waves(tokens * embed, seed),
          ...assignment
            ? { who: waves(tokens, seed).map((x) => Math.trunc(x * 5)) }
            : {},
        }],
        model: model({ token: upTo(80), embed, expert: 3 }, (m) => {
          const x = m.input("x", "token embed");
          const logits = dot(x, m.param("router", "expert embed"), "embed");
          const options = {
            over: "expert",
            topK: 2,
            preset: "fairscale.top2",
          } as const;
          const routing = route(logits, options);
          const grouped = assignment
            ? route(logits, {
              ...options,
              choice: "pair",
              group: m.input("who", "token", { dtype: "i32" }),
            }).slot
            : routing.slot;
          return {
            y: combine(dispatch(x, routing), routing),
            slot: routing.slot,
            grouped,
            // Without cancellation, which makes errors large relative to the mean.
            mean: mean(map((a) => a * a, x), "token"),
            max: max(logits, "token"),
            outer: dot(logits, x, "token"),
          };
        }),
      };
      await matches(t, of, "cpu", [{ mesh: { ep } }]);
      const wanted = digest(await runCase(of, "cpu"));
      const found = digest(await runCase(of, "cpu", { mesh: { ep } }));
      t.equal(found, wanted, "the same bits");
    },
  });
});
