/** Strategies of dispatch compose: drawn meshes, chunks, deduplication, routers, dtypes and capacities give the bytes of one rank. */
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
  route,
  upTo,
} from "../compiler/mod.ts";
import { verifyPlan } from "../spec/verify.ts";
import {
  type Case,
  closeDevices,
  compileCase,
  digest,
  EXPERT_MESHES,
  runCalls,
  runCase,
  tensorsOf,
  waves,
} from "./helpers/run_model.ts";
import { openSession } from "./helpers/sessions.ts";

t.teardown(closeDevices);

const RUNS = 40;

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

/** A layer of 8 experts with a residual, and the same rows doubled by the same routing. */
function layer(
  router: typeof ROUTERS[number],
  { capacity, dtype, tokens }: {
    readonly capacity: typeof CAPACITIES[number];
    readonly dtype: "f32" | "f16";
    readonly tokens: number;
  },
): Case {
  return {
    model: model({ token: upTo(40), embed: 16, ffn: 24, expert: 8 }, (m) => {
      const x = m.input("x", "token embed");
      const logits = dot(x, m.param("router", "expert embed"), "embed");
      const routing = route(logits, {
        ...{ over: "expert", ...router },
        ...capacity === undefined ? {} : { capacity },
      });
      const rows = cast(dispatch(x, routing), dtype);
      const up = m.param("experts.{expert}.up", "expert ffn embed");
      const down = m.param("experts.{expert}.down", "expert embed ffn");
      const hidden = map(
        (u) => Math.max(u, 0),
        dot(cast(rows, "f32"), up, "embed"),
      );
      const y = combine(dot(hidden, down, "ffn"), routing);
      return { y: add(x, y) };
    }),
    calls: [{ x: waves(16 * tokens, tokens) }],
  };
}

t.test("no bit depends on the strategy", async (t) => {
  let cut = 0;
  let both = 0;
  await fc.assert(
    fc.asyncProperty(
      fc.record({
        router: fc.constantFrom(...ROUTERS),
        capacity: fc.constantFrom(...CAPACITIES),
        dtype: fc.constantFrom("f32" as const, "f16" as const),
        tokens: fc.integer({ min: 0, max: 40 }),
        mesh: fc.constantFrom(...EXPERT_MESHES),
        chunks: fc.integer({ min: 1, max: 3 }),
        deduplicate: fc.constantFrom(true, true, false),
        check: fc.boolean(),
      }),
      async ({ router, mesh, chunks, deduplicate, check, ...rest }) => {
        const made = layer(router, rest);
        const wanted = digest(await runCase(made, "cpu"));
        const options = { ...mesh, chunks, deduplicate, check };
        const plan = await compileCase(made, options);
        const problems = verifyPlan(plan);
        if (problems.length > 0) throw new Error(JSON.stringify(problems));
        const steps = plan.programs.flatMap(({ steps }) => steps);
        const inChunks = steps.some(({ op }) => op === "wait");
        const once = steps.some(({ part }) => part?.part === "exchange reach");
        if (inChunks) cut++;
        if (inChunks && once) both++;
        const found = await runCase(made, "cpu", options);
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
  t.ok(cut > 3 && both > 1, `${cut} in chunks, ${both} deduplicated too`);
});

t.test("fast numerics: rows are added up before they return", async (t) => {
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
        dispatcher: fc.constantFrom("allToAll" as const, "allGather" as const),
      }),
      async ({ router, mesh, chunks, dispatcher, ...rest }) => {
        const made = layer(router, rest);
        const options = {
          ...{ ...mesh, chunks, deduplicate: true, check: true, dispatcher },
          numerics: "fast" as const,
        };
        const plan = await compileCase(made, options);
        const problems = verifyPlan(plan);
        if (problems.length > 0) throw new Error(JSON.stringify(problems));
        const steps = plan.programs.flatMap(({ steps }) => steps);
        const sums = steps.some(({ part }) => part?.part === "sum");
        if (sums) summed++;
        if (dispatcher === "allGather") {
          const exchange = steps.find(({ op }) => op === "allToAll");
          if (exchange) throw new Error("rows are exchanged");
          gathered++;
        }
        const [wanted] = await runCase(made, "cpu");
        const [found] = await runCase(made, "cpu", options);
        const again = await runCase(made, "cpu", options);
        for (const [name, { data }] of Object.entries(found!)) {
          if (!name.startsWith("check.")) continue;
          if (data.some((n) => n !== 0)) throw new Error("rows are lost");
        }
        const far = [...found!.y!.data].findIndex((n, i) =>
          !(Math.abs(n - wanted!.y!.data[i]!) <= 1e-5)
        );
        if (far >= 0) {
          throw new Error(
            `y[${far}] = ${found!.y!.data[far]}, not ${wanted!.y!.data[far]}`,
          );
        }
        return digest(again) === digest([found!]);
      },
    ),
    { numRuns: 30, seed: 17 },
  );
  t.ok(
    summed > 6 && gathered > 6,
    `${summed} exchange rows, ${gathered} gather tokens`,
  );
});

t.test("no token is sent twice where experts are over ep and tp", async (t) => {
  const made = layer(ROUTERS[1], {
    ...{ capacity: undefined, dtype: "f32", tokens: 40 },
  });
  const bytes = async (options: CompileOptions) => {
    const session = await openSession(await compileCase(made, options), {
      ...{ target: "cpu", sharing: "separate", statistics: true },
      tensors: await tensorsOf(made),
    });
    const results = digest(await runCalls(made, session));
    const { ranks } = session.statistics();
    session.close();
    const ops = ["dispatch", "combine"] as const;
    const sent = ops.map((op) =>
      ranks.reduce((n, { sentBytes }) => n + sentBytes[op].actual, 0)
    );
    return { results, sent };
  };
  for (const deduplicate of [false, true]) {
    const wanted = await bytes({ mesh: { ep: 4 }, deduplicate });
    // Tokens are replicated over tp until dispatch slices them.
    const found = await bytes({ mesh: { ep: 2, tp: 2 }, deduplicate });
    t.strictSame(found, wanted);
    t.ok(wanted.sent.every((n) => n > 0));
  }
});
