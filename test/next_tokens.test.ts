/** Plans that return logits of some tokens only: the same bits and the same tokens as plans that return all logits. */
// needs: cpu, gpu
// rotates with: engine/decoder.ts, engine/ahead.ts, engine/sampling.ts, runtime/executor.ts

import t from "tap";
import { Decoder, decoderShape, generate, packPrompts } from "../engine/mod.ts";
import type { Session } from "../runtime/mod.ts";
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

t.test("a GPU starts a step before the one before it ends", {
  skip: skipWithoutGpu,
}, async (t) => {
  await use("demo-lm", {
    mesh: "ep=1",
    adapter: "auto",
    next: { candidates: 2 },
    pages: { size: 4, count: 64 },
  }, async ({ session, plan }) => {
    const prompts = Array.from({ length: 10 }, (_, i) => [5, 9, i, 7 + i]);
    const grow = async (runsAhead: boolean, stop: Iterable<number>) => {
      session.reset();
      let [running, ahead] = [0, 0];
      const run: Session["run"] = async (...args) => {
        if (running++ > 0) ahead++;
        return await session.run(...args).finally(() => running--);
      };
      const watched = { run, concurrentRuns: 1, runsAhead };
      const decoder = new Decoder(watched, decoderShape(plan)!);
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
      return { tokens, fed: second.prefillTokens, ahead };
    };
    const plain = await grow(false, []);
    const stop = plain.tokens[0]!.slice(0, 5).map((tokens) => tokens[4]!);
    for (const stops of [[], stop]) {
      const wanted = await grow(false, stops);
      const { ahead, ...found } = await grow(true, stops);
      t.strictSame(found, { tokens: wanted.tokens, fed: wanted.fed });
      t.equal(wanted.ahead, 0);
      t.ok(ahead >= 8, `${ahead} steps started early`);
    }
  });
});
