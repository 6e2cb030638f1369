/** Receive buffers smaller than the worst case: the same bits in rounds, exact bytes; invalid rounds are rejected. */
// needs: cpu, gpu
// rotates with: compiler/passes/rounds.ts, runtime/exchange/rounds.ts

import t from "tap";
import {
  add,
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
import { formatPlan, summarizePlan } from "../spec/mod.ts";
import { switchyard } from "./helpers/cli.ts";
import { stepAt } from "./helpers/break_plan.ts";
import { countedRun } from "./helpers/counted_run.ts";
import { type Mistake, testRefused } from "./helpers/refused.ts";
import {
  type Case,
  closeDevices,
  compileCase,
  digest,
  EXPERT_MESHES,
  runCase,
  skip,
  waves,
} from "./helpers/run_model.ts";
import { devicesInTurn } from "./helpers/needs.ts";
import { inTurn } from "./helpers/seed.ts";

t.teardown(closeDevices);

const TOKENS = 24;
const SIZES = { token: upTo(TOKENS), embed: 8, ffn: 12, expert: 8 };

/** Replayed choices; values of one routing, in sequence and at once; a nested routing. */
const layers: Case = {
  model: model({ ...SIZES, choice: 2 }, (m) => {
    const x = m.input("x", "token embed");
    const logits = dot(x, m.param("router", "expert embed"), "embed");
    const routing = route(logits, {
      over: "expert",
      topK: 2,
      preset: "mixtral",
      choices: m.input("choices", "token choice", { dtype: "i32" }),
    });
    const weighed = route(logits, {
      over: "expert",
      topK: 3,
      preset: "llama4",
      choice: "three",
      slot: "input",
    });
    const up = m.param("experts.{expert}.up", "expert ffn embed");
    const down = m.param("experts.{expert}.down", "expert embed ffn");
    const sent = dispatch(x, routing);
    const hidden = map((u) => Math.max(u, 0), dot(sent, up, "embed"));
    const done = dot(hidden, down, "ffn");
    const first = combine(done, routing);
    const again = dispatch(first, routing);
    const scaled = combine(mul(again, done), routing);
    return {
      first,
      scaled,
      same: combine(sent, routing),
      inner: add(x, combine(add(dispatch(scaled, weighed), 1), weighed)),
    };
  }),
  // Even choices, all to experts 0 and 1, all to the last two, one token, no tokens.
  calls: [
    [TOKENS, (i: number) => (5 * i + (i >> 1)) % 8],
    [TOKENS, (i: number) => i % 2],
    [TOKENS, (i: number) => 7 - i % 2],
    [1, (i: number) => 3 + i],
    [0, () => 0],
  ].map(([tokens, choice], n) => ({
    x: waves(8 * (tokens as number), n),
    choices: Array.from(
      { length: 2 * (tokens as number) },
      (_, i) => (choice as (i: number) => number)(i),
    ),
  })),
};

for (const kind of devicesInTurn("rounds")) {
  const options = kind === "gpu" ? { skip } : {};
  t.test(`rounds change no bit on a shared ${kind}`, options, async (t) => {
    const wanted = digest(await runCase(layers, kind));
    const meshes = kind === "gpu"
      ? EXPERT_MESHES.slice(2, 3)
      : inTurn(EXPERT_MESHES, 2);
    for (const mesh of meshes) {
      for (const receiveRows of kind === "gpu" ? ["9"] : ["1.25x", "5"]) {
        const found = await runCase(layers, kind, { ...mesh, receiveRows });
        t.equal(
          digest(found),
          wanted,
          `${JSON.stringify(mesh)} ${receiveRows}`,
        );
      }
    }
  });
}

t.test("rounds between devices send the same bytes", async (t) => {
  const [mesh] = EXPERT_MESHES.slice(-1);
  const of = async (options: CompileOptions) => {
    const { results, ranks } = await countedRun(t, layers, {
      ...mesh,
      ...options,
    });
    return [digest(results), ranks.map(({ sentBytes }) => sentBytes.counts)];
  };
  t.same(await of({ receiveRows: "1.25x" }), await of({ deduplicate: false }));
});

const one: Case = {
  model: model(SIZES, (m) => {
    const x = m.input("x", "token embed");
    const router = m.param("router", "expert embed");
    const routing = route(dot(x, router, "embed"), {
      over: "expert",
      topK: 2,
      preset: "mixtral",
    });
    const w = m.param("w", "expert ffn embed");
    return { y: combine(dot(dispatch(x, routing), w, "embed"), routing) };
  }),
};

t.test("rounds are neither in chunks nor deduplicated", async (t) => {
  for (const other of [{ chunks: 2 }, { deduplicate: true }, { check: true }]) {
    await t.rejects(
      compileCase(one, { mesh: { ep: 2 }, receiveRows: "1.25x", ...other }),
      /^Cannot receive the rows of a dispatch in rounds: it is /,
    );
  }
});

const plan = await compileCase(one, { mesh: { ep: 2 }, receiveRows: "1.25x" });
const { steps } = plan.programs[0]!;
const start = steps.findIndex(({ op }) => op === "rounds");
const exchanges = [...steps.keys()].filter((i) => steps[i]!.op === "allToAll");
const [forward, back] = exchanges as [number, number];

t.test("the plan states both sizes", (t) => {
  t.match(formatPlan(plan), /\(30 rows on a rank at a time, of up to 48\)/);
  t.match(
    summarizePlan(plan),
    "receive buffers: 30 rows per rank, of up to 48",
  );
  t.end();
});

const BROKEN: readonly Mistake[] = [
  ["without a start", "reads", /nothing has written it/, (p) => {
    p.programs[0]!.steps.splice(start, 1);
  }],
  ["of other experts", "transposed", /other counts or experts/, (p) => {
    stepAt(p, "rounds", start).splits = [0, 3, 8];
  }],
  ["larger than the buffers", "capacity", /up to 31 rows can be/, (p) => {
    stepAt(p, "rounds", start).rows = 31;
  }],
  ["of another worst case", "capacity", /up to 48 rows, not 40/, (p) => {
    stepAt(p, "rounds", start).maxRows = 40;
  }],
  ["of complete exchanges", "rounds", /by other counts/, (p) => {
    Reflect.deleteProperty(stepAt(p, "allToAll", forward), "inRounds");
  }],
  ["of asynchronous exchanges", "rounds", /is asynchronous/, (p) => {
    const exchange = stepAt(p, "allToAll", forward);
    exchange.handle = "a";
    const part = { ...exchange.part!, part: "wait" as const };
    const wait = { op: "wait", handle: "a", ranks: "all", part } as const;
    p.programs[0]!.steps.splice(forward + 1, 0, wait);
  }],
  ["that overwrite what they read", "overlap", /live at once/, (p) => {
    const { from: sent } = stepAt(p, "allToAll", forward);
    const { from: done } = stepAt(p, "allToAll", back);
    const { allocation, offset } = p.buffers[sent]!;
    Object.assign(p.buffers[done]!, { allocation, offset });
  }],
  ["whose last round has all rows", "rounds", /has one round/, (p) => {
    const { from } = stepAt(p, "allToAll", back);
    const [combine] = p.programs[0]!.steps.slice(back + 1);
    if (combine?.op === "launch") combine.bindings["returned"] = from;
  }],
  ["that write persistent buffers", "rounds", /written more than once/, (p) => {
    p.buffers[stepAt(p, "allToAll", forward).to]!.kind = "output";
  }],
];

testRefused(plan, BROKEN, (name) => `rounds ${name} are rejected`);

t.test("DeepSeek-V3 prefill of 4,096 tokens per rank fits with sized receive buffers", async (t) => {
  const sizes = ["--mesh", "ep=32", "--max-tokens", "131072"];
  const plan = (...flags: string[]) =>
    switchyard([
      ...["plan", "test/references/configs/deepseek-v3.json", ...sizes],
      ...["--max-sequences", "32", "--max-context", "4096"],
      ...["--target", "64x8xh800", ...flags],
    ]);
  const worst = await plan();
  t.equal(worst.code, 3);
  t.match(worst.out, "each of 32 ranks needs 135.7 GiB, and has 78.6 GiB");
  t.match(worst.out, "fix: --receive-rows 1.25x, or --max-tokens ");
  const needed = await plan("--receive-rows", "1.25x");
  t.equal(needed.code, 0, needed.out);
  t.match(
    needed.out,
    "receive buffers have 40960 rows per rank, of up to 1048576",
  );
});
