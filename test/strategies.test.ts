/** Dispatch strategies compose: random meshes, chunks, routers, dtypes and capacities give the bytes of one rank. */
// needs: cpu

import fc from "fast-check";
import t from "tap";
import {
  add,
  cast,
  combine,
  type CompileOptions,
  dispatch,
  dot,
  map,
  model,
  mul,
  route,
  upTo,
} from "../compiler/mod.ts";
import { kernelsByKey } from "../runtime/kernel_key.ts";
import { DISPATCHER_NAMES, dispatcherWords } from "../spec/strategies.ts";
import { WIRE_NAMES } from "../spec/wire.ts";
import { countedRun } from "./helpers/counted_run.ts";
import {
  type Case,
  closeDevices,
  compileCase,
  digest,
  EXPERT_MESHES,
  matches,
  runCase,
  runPlan,
  waves,
} from "./helpers/run_model.ts";
import { stepCase } from "./helpers/training_layer.ts";

t.teardown(closeDevices);

const RUNS = 40;

/** Dispatchers that do not change bits. */
const EXACT_DISPATCHERS = DISPATCHER_NAMES.filter((name) =>
  !dispatcherWords(name).reorders
);

const ROUTERS = [
  { preset: "mixtral", topK: 2 },
  { preset: "qwen3Moe", topK: 4 },
  { preset: "deepseekV3", topK: 3 },
  { preset: "llama4", topK: 2 },
  { preset: "switch.top1", topK: 1 },
  { preset: "gshard.top2", topK: 2 },
] as const;

const CAPACITIES = [
  undefined,
  "dropless",
  { slots: 3, drop: "position", order: "token" },
  { slots: "ceil", factor: 1, drop: "score", order: "token" },
] as const;

/** A layer of 8 experts with a residual. */
function layer(
  router: typeof ROUTERS[number],
  { capacity, dtype, tokens, stored = "f32" }: {
    readonly capacity: typeof CAPACITIES[number];
    readonly dtype: "f32" | "f16";
    readonly tokens: number;
    readonly stored?: "f32" | "f16" | "bf16";
  },
): Case {
  return {
    stored,
    model: model({ token: upTo(40), embed: 16, ffn: 22, expert: 8 }, (m) => {
      const x = m.input("x", "token embed");
      const logits = dot(x, m.param("router", "expert embed"), "embed");
      const routing = route(logits, {
        over: "expert",
        ...router,
        ...capacity === undefined ? {} : { capacity },
      });
      const rows = cast(dispatch(x, routing), dtype);
      const up = m.param("experts.{expert}.up", "expert ffn embed");
      const down = m.param("experts.{expert}.down", "expert embed ffn");
      const hidden = map(
        (u) => Math.max(u, 0),
        dot(cast(rows, "f32"), up, "embed"),
      );
      const scaled = mul(dot(hidden, down, "ffn"), m.param("scale", "expert"));
      const y = combine(scaled, routing);
      return { y: add(x, y) };
    }),
    calls: [{ x: waves(16 * tokens, tokens) }],
  };
}

/** Runs a case on ranks with separate devices; returns a digest of the results and the bytes sent by all ranks. */
async function statisticsOf(of: Case, options: CompileOptions) {
  const { results, ranks } = await countedRun(t, of, options);
  const bytes: { [kind: string]: number } = {};
  for (const { sentBytes } of ranks) {
    for (const [kind, { actual }] of Object.entries(sentBytes)) {
      bytes[kind] = (bytes[kind] ?? 0) + actual;
    }
  }
  return { results: digest(results), bytes };
}

/**
 * Compiles and verifies a case. Returns undefined if experts are in unequal blocks, whose weights cannot be gathered.
 */
async function compiled(of: Case, options: CompileOptions) {
  const even = 8 % options.mesh!["ep"]! === 0;
  try {
    return await compileCase(of, options);
  } catch (error) {
    const refused = error instanceof Error && !even &&
      /^Cannot gather parameters of axis 'expert'/.test(error.message);
    if (refused) return undefined;
    throw error;
  }
}

t.test("bits do not depend on the strategy", async (t) => {
  let chunked = 0;
  let both = 0;
  await fc.assert(
    fc.asyncProperty(
      fc.record({
        router: fc.constantFrom(...ROUTERS),
        capacity: fc.constantFrom(...CAPACITIES),
        dtype: fc.constantFrom("f32" as const, "f16" as const),
        stored: fc.constantFrom(
          "f32" as const,
          "f16" as const,
          "bf16" as const,
        ),
        tokens: fc.integer({ min: 0, max: 40 }),
        mesh: fc.constantFrom(...EXPERT_MESHES),
        chunks: fc.integer({ min: 1, max: 3 }),
        deduplicate: fc.constantFrom(true, true, false),
        dispatcher: fc.constantFrom(...EXACT_DISPATCHERS),
        check: fc.boolean(),
        wire: fc.constantFrom("f32" as const, ...WIRE_NAMES),
      }),
      async (
        { router, mesh, capacity, dtype, stored, tokens, ...strategy },
      ) => {
        const of = layer(router, { capacity, dtype, stored, tokens });
        const { wire } = strategy;
        const wanted = digest(await runCase(of, "cpu", { wire }));
        const options = { ...mesh, ...strategy };
        const plan = await compiled(of, options);
        if (plan === undefined) return true;
        const steps = plan.programs.flatMap(({ steps }) => steps);
        const inChunks = steps.some(({ op }) => op === "wait");
        const once = steps.some(({ part }) =>
          part?.part === "exchange indices"
        );
        if (inChunks) chunked++;
        if (inChunks && once) both++;
        const found = await runPlan(of, "cpu", plan);
        const values = found.map((outputs) =>
          Object.fromEntries(
            Object.entries(outputs).filter(([name, { data }]) => {
              if (!name.startsWith("check.")) return true;
              if (data.some((n) => n !== 0)) throw new Error("rows are lost");
              return false;
            }),
          )
        );
        return digest(values) === wanted;
      },
    ),
    { numRuns: RUNS, seed: 16 },
  );
  t.ok(
    chunked > 3 && both > 1,
    `${chunked} in chunks, ${both} of them deduplicated`,
  );
});

t.test("fast numerics sum rows before they return", async (t) => {
  let summed = 0;
  let gathered = 0;
  await fc.assert(
    fc.asyncProperty(
      fc.record({
        router: fc.constantFrom(...ROUTERS),
        capacity: fc.constantFrom(...CAPACITIES),
        dtype: fc.constant("f32" as const),
        tokens: fc.integer({ min: 0, max: 40 }),
        mesh: fc.constantFrom(...EXPERT_MESHES),
        chunks: fc.integer({ min: 1, max: 3 }),
        dispatcher: fc.constantFrom(...DISPATCHER_NAMES),
      }),
      async ({ router, mesh, chunks, dispatcher, ...rest }) => {
        const of = layer(router, rest);
        const options = {
          ...mesh,
          chunks,
          deduplicate: true,
          check: true,
          dispatcher,
          numerics: "fast" as const,
        };
        const plan = await compiled(of, options);
        if (plan === undefined) return true;
        if (Object.values(kernelsByKey(plan)).some(({ fused }) => !fused)) {
          throw new Error("products are rounded");
        }
        const steps = plan.programs.flatMap(({ steps }) => steps);
        const sums = steps.some(({ part }) => part?.part === "sum");
        if (sums) summed++;
        if (dispatcher === "allGather") {
          const exchange = steps.find(({ op }) => op === "allToAll");
          if (exchange) throw new Error("rows are exchanged");
          gathered++;
        }
        const [wanted] = await runCase(of, "cpu");
        const twice = { ...of, calls: [...of.calls!, ...of.calls!] };
        const [found, again] = await runPlan(twice, "cpu", plan);
        // A sum of two terms has only one order.
        if (dispatcher === "allGather" && router.topK <= 2) {
          const same = digest([{ y: found!.y! }]) === digest([wanted!]);
          if (!same) throw new Error("bits of gathered tokens differ");
        }
        for (const [name, { data }] of Object.entries(found!)) {
          if (!name.startsWith("check.")) continue;
          if (data.some((n) => n !== 0)) throw new Error("rows are lost");
        }
        const wrong = [...found!.y!.data].findIndex((n, i) =>
          !(Math.abs(n - wanted!.y!.data[i]!) <= 1e-5)
        );
        if (wrong >= 0) {
          throw new Error(
            `y[${wrong}] = ${found!.y!.data[wrong]}, not ${
              wanted!.y!.data[wrong]
            }`,
          );
        }
        return digest([again!]) === digest([found!]);
      },
    ),
    { numRuns: 30, seed: 17 },
  );
  t.ok(
    summed > 6 && gathered > 6,
    `${summed} exchange rows, ${gathered} gather tokens`,
  );
});

t.test("tokens are gathered over the mesh axes of their experts only", async (t) => {
  const of = layer(ROUTERS[0], {
    capacity: undefined,
    dtype: "f32",
    tokens: 40,
  });
  const gather = { dispatcher: "allGather", numerics: "fast" } as const;
  const wanted = digest(await runCase(of, "cpu"));
  const words = 16 + 2 * ROUTERS[0].topK;
  for (
    const mesh of [
      { ep: 2 },
      { dp: 2, ep: 2 },
      { ep: 2, dp: 2 },
      { dp: 2, ep: 2, tp: 2 },
    ]
  ) {
    const { results, bytes } = await statisticsOf(of, { mesh, ...gather });
    t.equal(results, wanted, JSON.stringify(mesh));
    const copies = "tp" in mesh ? mesh.tp : 1;
    const sums = 40 * 16 * 4;
    t.strictSame(
      bytes,
      {
        counts: 0,
        dispatch: 0,
        combine: 0,
        // Each token once to the other rank of its group, with its choices; along tp, sums of half of its tokens.
        gather: 40 * words * 4 * copies + (copies - 1) * sums,
        // Of each token, terms from all other ranks of its group, each for a part of the tokens.
        reduce: sums * (2 * copies - 1),
        attention: 0,
        stages: 0,
      },
      JSON.stringify(mesh),
    );
  }
});

t.test("weights of experts are gathered in their stored dtype, and no rows are sent", async (t) => {
  // Rows of 16-bit elements are padded to multiples of four.
  const bytesOf = {
    f32: 8 * (16 * 22 + 22 * 16 + 1) * 4,
    bf16: 8 * (16 * 24 + 22 * 16 + 1) * 2,
  };
  for (const stored of ["f32", "bf16"] as const) {
    const of = layer(ROUTERS[1], {
      capacity: undefined,
      dtype: "f32",
      tokens: 40,
      stored,
    });
    const wanted = digest(await runCase(of, "cpu"));
    const { results, bytes } = await statisticsOf(of, {
      mesh: { dp: 2, ep: 2 },
      dispatcher: "gatherWeights",
    });
    t.equal(results, wanted);
    // Each of four ranks sends half of the weights to the other rank of its group.
    t.strictSame(bytes, {
      counts: 0,
      dispatch: 0,
      combine: 0,
      gather: 0,
      reduce: 4 * bytesOf[stored] / 2,
      attention: 0,
      stages: 0,
    });
    // A rank with two 16-bit scales stores four; the padding is not gathered.
    const padded = await statisticsOf(of, {
      mesh: { ep: 4 },
      dispatcher: "gatherWeights",
    });
    t.equal(padded.results, wanted);
  }
});

t.test("training by every dispatcher", async (t) => {
  const of = await stepCase();
  for (const dispatcher of DISPATCHER_NAMES.slice(1)) {
    const fast = { dispatcher, numerics: "fast" } as const;
    await matches(t, of, "cpu", [
      { mesh: { dp: 2, ep: 2 }, ...fast },
      { mesh: { ep: 2, dp: 2 }, ...fast, zero: 1 },
      { mesh: { ep: 2, tp: 2 }, ...fast, zero: 3 },
    ]);
  }
});

t.test("with experts over ep and tp, no token is sent twice", async (t) => {
  const of = layer(ROUTERS[1], {
    capacity: undefined,
    dtype: "f32",
    tokens: 40,
  });
  const bytes = async (options: CompileOptions) => {
    const { results, bytes } = await statisticsOf(of, options);
    return { results, sent: [bytes["dispatch"]!, bytes["combine"]!] };
  };
  for (const deduplicate of [false, true]) {
    const wanted = await bytes({ mesh: { ep: 4 }, deduplicate });
    // Tokens are replicated over tp until dispatch slices them.
    const found = await bytes({ mesh: { ep: 2, tp: 2 }, deduplicate });
    t.strictSame(found, wanted);
    t.ok(wanted.sent.every((n) => n > 0));
  }
});
