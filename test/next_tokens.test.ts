/** Plans that return logits of some tokens only: the same bits and the same tokens as plans that return all logits. */
// needs: cpu, gpu
// rotates with: engine/server/step_times.ts, engine/generation/decoder.ts, engine/generation/ahead.ts, engine/generation/sampling.ts, runtime/executor.ts

import t, { type Test } from "tap";
import { Decoder, decoderShape, generate, packPrompts } from "../engine/mod.ts";
import type { Runs } from "../engine/generation/decoder.ts";
import { BatchLoop } from "../engine/server/loop.ts";
import {
  loadCheckpoint,
  type Loaded,
  type Setup,
} from "./helpers/checkpoints.ts";
import { gpuIsSoftware, skipWithoutGpu } from "./helpers/needs.ts";
import { inTurn, oneInTurn } from "./helpers/seed.ts";

const PROMPTS = [[5, 9, 2, 7], [3], [8, 8, 1], [4, 6]];
const LAST = [3, 4, 7, 9];

/** Returns the next logits of each prompt, and the tokens generated greedily and by sampling. */
async function resultsOf({ decoder, session }: Loaded): Promise<{
  logits: number[][];
  tokens: (readonly number[])[];
  drawn: (readonly number[])[];
}> {
  session.reset();
  const next = await decoder.next(packPrompts(PROMPTS), LAST);
  const grow = async (options: object) => {
    session.reset();
    const { sequences } = await generate(decoder, PROMPTS, {
      maxNewTokens: 6,
      stop: new Set(),
      ...options,
    });
    return sequences.map(({ tokens }) => tokens);
  };
  return {
    logits: next.map(({ logits }) => [...logits]),
    tokens: await grow({}),
    drawn: await grow({ temperature: 1.5, topK: 12, seed: 4 }),
  };
}

async function use<R>(
  name: string,
  setup: Setup,
  body: (loaded: Loaded) => Promise<R>,
): Promise<R> {
  const loaded = await loadCheckpoint(name, setup);
  try {
    return await body(loaded);
  } finally {
    await loaded.close();
  }
}

/** The `k` largest ids of a row, in order. */
function best(row: readonly number[], k: number): number[] {
  return row.map((_, id) => id)
    .sort((i, j) => row[j]! - row[i]! || i - j)
    .slice(0, k);
}

function testAgainstAll(
  name: string,
  { adapter, skip = false, meshes }: {
    readonly adapter: NonNullable<Setup["adapter"]>;
    readonly skip?: false | string;
    readonly meshes: readonly string[];
  },
): void {
  const title = `${name} on ${adapter === "cpu" ? "the CPU" : "a GPU"}`;
  t.test(`${title}: logits of the last tokens`, { skip }, async (t) => {
    const all = await use(name, { mesh: "ep=1", adapter }, resultsOf);
    for (const mesh of meshes) {
      const some = await use(name, { mesh, adapter, next: {} }, resultsOf);
      t.strictSame(some, all, `${mesh}: logits`);
      const both = { candidates: 12, logits: true };
      const either = await use(name, { mesh, adapter, next: both }, resultsOf);
      t.strictSame(either, all, `${mesh}: candidates or logits`);
      await use(
        name,
        { mesh, adapter, next: { candidates: 12 } },
        async (loaded) => {
          const { logits, tokens, drawn } = await resultsOf(loaded);
          t.strictSame(tokens, all.tokens, `${mesh}: greedy tokens`);
          t.strictSame(drawn, all.drawn, `${mesh}: drawn tokens`);
          t.strictSame(
            logits,
            all.logits.map((row) => best(row, 12).map((id) => row[id])),
            `${mesh}: the largest logits`,
          );
          await t.rejects(
            generate(loaded.decoder, PROMPTS, {
              maxNewTokens: 1,
              stop: new Set<number>(),
              temperature: 1,
              topK: 13,
            }),
            {
              message:
                "Cannot draw from the best 13 tokens: the plan returns only the best 12. Compile it for more candidates",
            },
          );
        },
      );
    }
  });
}

/** Rotated meshes: which rows a rank has does not depend on the family. */
const MESHES: { readonly [name: string]: readonly string[] } = {
  "demo-lm": ["ep=1", "dp=2,ep=2"],
  "deepseekv3-16e": ["ep=3"],
  "llama4-8e": ["dp=2,ep=2"],
  "granitemoe-8e": ["ep=3"],
};

for (const [name, meshes] of inTurn(Object.entries(MESHES), 2)) {
  testAgainstAll(name, { adapter: "cpu", meshes });
}
testAgainstAll("demo-lm", {
  adapter: "auto",
  skip: skipWithoutGpu,
  meshes: gpuIsSoftware
    ? oneInTurn(["ep=1", "dp=2,ep=2"])
    : ["ep=1", "dp=2,ep=2"],
});

/** Tokens generated greedily, and the number of tokens fed to continue them after each prompt. */
async function growTwice(
  { session, plan }: Loaded,
  runs: Runs,
  stop: readonly number[],
): Promise<{ tokens: (readonly number[])[][]; fed: number }> {
  session.reset();
  const prompts = Array.from({ length: 10 }, (_, i) => [5, 9, i, 7 + i]);
  const decoder = new Decoder(runs, decoderShape(plan)!);
  const options = { maxNewTokens: 11, stop: new Set(stop) };
  const first = await generate(decoder, prompts, options);
  // Prefix sharing includes tokens that only the device had.
  const longer = first.sequences.map(({ prompt, tokens }) => [
    ...prompt,
    ...tokens,
  ]);
  const second = await generate(decoder, longer, options);
  const tokens = [first, second].map(({ sequences }) =>
    sequences.map(({ tokens }) => tokens)
  );
  return { tokens, fed: second.prefillTokens };
}

/** Compares tokens with those of single steps, without stop tokens and with some. Returns the number of new tokens. */
async function compareGrown(
  t: Test,
  loaded: Loaded,
  runs: Runs,
): Promise<void> {
  const run: Runs["run"] = (...args) => loaded.session.run(...args);
  const single = { run, concurrentRuns: 1, runsAhead: false };
  const plain = await growTwice(loaded, single, []);
  const stops = plain.tokens[0]!.slice(0, 5).map((tokens) => tokens[4]!);
  t.strictSame(await growTwice(loaded, runs, []), plain);
  t.strictSame(
    await growTwice(loaded, runs, stops),
    await growTwice(loaded, single, stops),
  );
}

t.test("a GPU starts a step before the one before it ends", {
  skip: skipWithoutGpu,
}, async (t) => {
  await use("demo-lm", {
    mesh: "ep=1",
    adapter: "auto",
    next: { candidates: 2 },
    pages: { size: 4, count: 64 },
  }, async (loaded) => {
    let [running, ahead] = [0, 0];
    const run: Runs["run"] = async (...args) => {
      if (running++ > 0) ahead++;
      return await loaded.session.run(...args).finally(() => running--);
    };
    await compareGrown(t, loaded, { run, concurrentRuns: 1, runsAhead: true });
    t.ok(ahead >= 16, `${ahead} steps started early`);
  });
});

/** Caches without pages, with many, and with few that windows release. */
const SERIES = [
  { name: "mixtral-6e" },
  { name: "demo-lm", pages: { size: 4, count: 64 } },
  { name: "gptoss-8e", pages: { size: 2, count: 40 } },
];

for (const { name, pages } of inTurn(SERIES, 2)) {
  t.test(`${name}, ${pages?.count ?? "no"} pages: steps in series`, async (t) => {
    await use(name, {
      mesh: "ep=1",
      adapter: "cpu",
      next: { candidates: 2 },
      bounds: { maxContext: 32 },
      ...pages ? { pages } : {},
    }, async (loaded) => {
      const { session } = loaded;
      const lengths: number[] = [];
      await compareGrown(t, loaded, {
        run: (...args) => session.run(...args),
        concurrentRuns: 1,
        runsAhead: false,
        series: {
          length: 8,
          run: (program, runs, options) => {
            lengths.push(runs.length);
            return session.series!.run(program, runs, options);
          },
        },
      });
      t.ok(Math.max(...lengths) > 1, `${lengths} runs in series`);
    });
  });
}

t.test("a server divides the time of a series among its steps", async (t) => {
  await use("mixtral-6e", {
    mesh: "ep=1",
    adapter: "cpu",
    next: { candidates: 1 },
    bounds: { maxContext: 32 },
  }, async ({ plan, session }) => {
    let clock = 100;
    const took = <R>(ms: number, result: R): R => {
      clock += ms;
      return result;
    };
    const decoder = new Decoder({
      run: (...args) => took(7, session.run(...args)),
      concurrentRuns: 1,
      runsAhead: false,
      series: {
        length: 4,
        run: (program, runs, options) =>
          took(3 * runs.length, session.series!.run(program, runs, options)),
      },
    }, decoderShape(plan)!);
    const times: { at: number; ms: number }[] = [];
    const loop = new BatchLoop(decoder, {
      now: () => clock,
      onStep: (_, { at, ms }) => times.push({ at, ms }),
    });
    loop.add([5, 9, 2], { maxNewTokens: 9, stop: new Set() });
    loop.close();
    await loop.run();
    const each = [7, ...Array<number>(8).fill(3)];
    t.strictSame(times.map(({ ms }) => ms), each);
    t.equal(times.at(-1)!.at, clock);
  });
});
