/** Random models on random meshes: close to the reference evaluator, with the bits of one rank. */
// needs: cpu, gpu

import fc from "fast-check";
import t from "tap";
import {
  add,
  attention,
  cast,
  combine,
  type CompileOptions,
  dispatch,
  dot,
  map,
  type Model,
  model,
  mul,
  rmsNorm,
  rope,
  route,
  softmax,
  split,
  upTo,
} from "../compiler/mod.ts";
import {
  type Case,
  closeDevices,
  digest,
  matches,
  runCase,
  skip,
  waves,
} from "./helpers/run_model.ts";
import { holdsFor } from "./helpers/seed.ts";

t.teardown(closeDevices);

/** Random properties of a model. Sizes are small and mostly indivisible. */
const shapes = fc.record({
  token: fc.integer({ min: 1, max: 11 }),
  embed: fc.integer({ min: 1, max: 40 }),
  ffn: fc.integer({ min: 1, max: 40 }),
  expert: fc.integer({ min: 1, max: 9 }),
  topK: fc.integer({ min: 1, max: 4 }),
  head: fc.integer({ min: 1, max: 2 }),
  pairs: fc.integer({ min: 1, max: 3 }),
  preset: fc.constantFrom(
    ...["mixtral", "olmoe", "gptOss", "llama4", "megatron.sigmoid"] as const,
    // These drop by position or score: a token's choices depend on tokens of other ranks.
    ...["deepspeed.topk", "tutel.topk", "tutel.prioritised"] as const,
  ),
  /** Dtype of dispatched rows. */
  sent: fc.constantFrom("f32", "f16"),
  stored: fc.constantFrom("f32", "f16", "bf16"),
  attends: fc.boolean(),
}).map((drawn) => ({ ...drawn, topK: Math.min(drawn.topK, drawn.expert) }));

type Shape = typeof shapes extends fc.Arbitrary<infer S> ? S : never;

function modelOf(s: Shape): Model {
  const { topK, preset, head, pairs } = s;
  return model({
    token: upTo(s.token),
    embed: s.embed,
    ffn: s.ffn,
    expert: s.expert,
    head,
    dim: 2 * pairs,
    query: head * 2 * pairs,
    sequence: 3,
    context: 2 * s.token,
  }, (m) => {
    const x = m.input("x", "token embed");
    const normed = rmsNorm(x, m.param("gain", "embed"), "embed");
    const routing = route(m.input("logits", "token expert"), {
      ...{ over: "expert", topK, preset } as const,
    });
    const sent = cast(
      dispatch(s.sent === "f16" ? cast(normed, "f16") : normed, routing),
      "f32",
    );
    const gate = m.param("experts.{expert}.gate", "expert ffn embed");
    const hidden = map(
      (g, u, b) => g / (1 + Math.exp(-g)) * (u + b),
      dot(sent, gate, "embed"),
      dot(sent, m.param("up", "expert ffn embed"), "embed"),
      m.param("bias", "expert ffn"),
    );
    const down = m.param("experts.{expert}.down", "expert embed ffn");
    const y = add(x, combine(dot(hidden, down, "ffn"), routing));
    // Normalized again, so that later ops do not amplify rounding errors.
    const rows = rmsNorm(y, m.param("gain2", "embed"), "embed");
    const results = {
      y,
      index: routing.index,
      weight: routing.weight,
      shares: softmax(mul(rows, 2), "embed"),
    };
    if (!s.attends) return results;
    const position = m.input("position", "token", { dtype: "i32" });
    const heads = (name: string) =>
      split(
        dot(rows, m.param(name, "query embed"), "embed"),
        "query",
        "head dim",
      );
    const turn = { position, positions: 2 * s.token };
    const cache = "sequence context head dim";
    const attended = attention(rope(heads("q"), "dim", turn), {
      key: rope(heads("k"), "dim", turn),
      value: heads("v"),
      keys: m.state("keys", cache),
      values: m.state("values", cache),
      sequence: m.input("sequence", "token", { dtype: "i32" }),
      position,
    });
    const { keys, values } = attended;
    return { ...results, attended: attended.y, keys, values };
  });
}

/** Tokens of two steps, by sequence. */
const steps = fc.array(
  fc.record({
    tokens: fc.nat(11),
    sequences: fc.array(fc.nat(2), { minLength: 11, maxLength: 11 }),
  }),
  { minLength: 2, maxLength: 2 },
);

type Steps = typeof steps extends fc.Arbitrary<infer S> ? S : never;

function caseOf(s: Shape, drawn: Steps): Case {
  const next = [0, 0, 0];
  const drops = /deepspeed|tutel/.test(s.preset);
  const calls = drawn.map(({ tokens, sequences }, step) => {
    const sequence = sequences.slice(0, Math.min(tokens, s.token));
    const many = sequence.length;
    return {
      x: waves(many * s.embed, 5 * step),
      // Multiples of a quarter, so that there are ties; not for presets that drop, as their sums are rounded.
      logits: waves(many * s.expert, step)
        .map((v) => drops ? 2 * v : Math.round(8 * v) / 4),
      ...s.attends
        ? { sequence, position: sequence.map((n) => next[n]!++) }
        : {},
    };
  });
  return {
    model: modelOf(s),
    calls,
    stored: s.stored,
    // An element near a tie may round to another f16 than in the reference; attention amplifies the difference.
    tolerance: s.sent === "f16" ? 5e-3 : 2e-5,
  };
}

/** A mesh, the mesh axes of experts, and their assignment. */
const places = fc.record({
  mesh: fc.constantFrom(
    ...[{ ep: 1 }, { ep: 2 }, { ep: 3 }, { ep: 5 }, { dp: 2 }],
    ...[{ dp: 2, ep: 2 }, { ep: 2, dp: 3 }],
  ),
  experts: fc.constantFrom("none", "ep", "all"),
  assignment: fc.array(fc.nat(99), { minLength: 9, maxLength: 9 }),
  byTable: fc.boolean(),
  chunks: fc.integer({ min: 1, max: 4 }),
  tile: fc.record({
    rows: fc.integer({ min: 1, max: 4 }),
    columns: fc.constantFrom(2, 4),
    lanes: fc.constantFrom(4, 8, 32),
  }),
});

type Place = typeof places extends fc.Arbitrary<infer P> ? P : never;

function optionsOf(s: Shape, p: Place): CompileOptions {
  const mesh: { readonly [axis: string]: number } = p.mesh;
  const all = Object.keys(mesh);
  const over = p.experts === "none"
    ? []
    : all.filter((axis) => p.experts === "all" || axis === p.experts);
  const positions = over.reduce((n, axis) => n * mesh[axis]!, 1);
  // Some ranks get several experts in any order, others none.
  const table = Array.from(
    { length: positions },
    (_, at) =>
      Array.from({ length: s.expert }, (_, e) => e)
        .filter((e) => p.assignment[e]! % positions === at)
        .sort((a, b) => p.assignment[a]! - p.assignment[b]! || a - b),
  );
  return {
    mesh,
    place: {
      token: all,
      expert: p.byTable ? { over, table } : { over },
    },
    chunks: p.chunks,
    tuning: { matmul: p.tile },
  };
}

for (
  const { kind, runs } of [
    { kind: "cpu", runs: 15 },
    // Every shape has its own kernels, which a software adapter compiles slowly.
    { kind: "gpu", runs: 1 },
  ] as const
) {
  t.test(`any model on any mesh, on the ${kind}`, {
    skip: kind === "gpu" && skip,
  }, async (t) => {
    const cases = fc.record({ shape: shapes, steps, place: places });
    await holdsFor(t, cases, {
      runs,
      check: async ({ shape, steps, place }) => {
        const of = caseOf(shape, steps);
        const options = optionsOf(shape, place);
        await matches(t, of, kind, [options]);
        t.equal(
          digest(await runCase(of, kind, options)),
          digest(await runCase(of, kind)),
          "the bits of one rank",
        );
      },
    });
  });
}
