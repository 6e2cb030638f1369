// Continuous batching: sequences added and cancelled at any step have the same bits as alone, on every mesh.
// needs: cpu
// rotates with: engine/generation/batch.ts, engine/generation/schedule.ts, engine/generation/pages, engine/generation/sampling.ts

import t from "tap";
import {
  Batch,
  type Drafter,
  type Logprobs,
  randomNumbers,
  type SequenceOptions,
  Speculation,
} from "../engine/mod.ts";
import { loadCheckpoint, type Loaded } from "./helpers/checkpoints.ts";
import { inTurn, repeatWith, SEED } from "./helpers/seed.ts";

interface Request {
  readonly prompt: readonly number[];
  readonly options: SequenceOptions;
  /** Added before this step. */
  readonly at: number;
  /** Cancelled this many steps later. */
  readonly cancelAfter: number;
}

interface Result {
  readonly tokens: readonly number[];
  readonly logprobs: readonly Logprobs[];
  readonly ending: string | undefined;
}

const COMMON = [5, 9, 2, 7, 11, 4, 8, 1, 3, 6, 10, 12];
const random = randomNumbers(SEED, 0);
const below = (n: number) => Math.floor(random() * n);
const REQUESTS = Array.from({ length: 24 }, (): Request => {
  const own = Array.from({ length: 1 + below(20) }, () => below(2048));
  return {
    prompt: [...COMMON.slice(0, below(2) * COMMON.length), ...own],
    options: {
      maxNewTokens: 1 + below(12),
      stop: new Set([0]),
      seed: below(1000),
      stream: below(3),
      logprobs: below(3),
      ...below(2) === 0 ? { temperature: 0.3 + random() } : {},
      ...below(2) === 0 ? { topK: 1 + below(40) } : {},
      ...below(2) === 0 ? { topP: 0.5 + random() / 2 } : {},
      ...below(4) === 0 ? { presencePenalty: 2 * random() } : {},
      ...below(4) === 0 ? { frequencyPenalty: 2 * random() } : {},
      ...below(4) === 0 ? { repeatPenalty: 1 + random() } : {},
      ...below(4) === 0 ? { bias: new Map([[below(2048), 9]]) } : {},
      ...below(6) === 0 ? { forced: [below(2048), 0, below(2048)] } : {},
    },
    at: below(30),
    cancelAfter: below(4) === 0 ? 1 + below(6) : Infinity,
  };
});

/** Loads the model with so few cache pages that sequences are preempted. */
async function load(
  mesh: string,
  sharing: "shared" | "separate" = "shared",
): Promise<Loaded> {
  const loaded = await loadCheckpoint("demo-lm", {
    mesh,
    sharing,
    next: { perSequence: 4 },
    pages: { count: 24, size: 4 },
    bounds: { maxTokens: 16, maxSequences: 4, maxContext: 64 },
  });
  t.teardown(loaded.close);
  return loaded;
}

/** Adds and cancels requests at their steps; returns their results. */
async function run(
  { decoder }: Loaded,
  requests: readonly Request[],
  speculation?: Speculation,
): Promise<Result[]> {
  const batch = new Batch(decoder, { speculation });
  const waiting = requests.map((request, i) => ({ ...request, i }))
    .sort((a, b) => a.at - b.at);
  const results: Result[] = [];
  const cancels: (readonly [step: number, cancel: () => void])[] = [];
  for (let step = 0;; step++) {
    while (waiting[0] && waiting[0].at <= step) {
      const { i, prompt, options, cancelAfter } = waiting.shift()!;
      const sequence = batch.add(prompt, options);
      results[i] = sequence;
      cancels.push([step + cancelAfter, () => batch.cancel(sequence)]);
    }
    for (const [at, cancel] of cancels) if (at === step) cancel();
    if (!await batch.step() && waiting.length === 0) break;
  }
  t.strictSame(decoder.pages!.used, [0], "all pages are freed");
  return results;
}

/** Compares the result of a request, perhaps cancelled, with its complete result. */
function checkPrefix(
  i: number,
  { tokens, logprobs, ending }: Result,
  all: Result,
) {
  t.ok(ending ?? REQUESTS[i]!.cancelAfter < Infinity, "the sequence ended");
  t.strictSame(
    { tokens, logprobs, ending: ending ?? all.ending },
    {
      tokens: all.tokens.slice(0, tokens.length),
      logprobs: all.logprobs.slice(0, tokens.length),
      ending: all.ending,
    },
    `request ${i}. ${repeatWith()}`,
  );
}

const loaded = await load("ep=1");
const together = await run(loaded, REQUESTS);
const complete = REQUESTS.map((one) => ({
  ...one,
  at: 0,
  cancelAfter: Infinity,
}));

const alone: Result[] = [];

t.test("a batched sequence has the same bits as alone", async (t) => {
  for (const request of complete) alone.push(...await run(loaded, [request]));
  for (const [i, { options: { forced = [] } }] of complete.entries()) {
    checkPrefix(i, together[i]!, alone[i]!);
    t.strictSame(
      alone[i]!.tokens.slice(0, forced.length),
      forced.slice(0, alone[i]!.tokens.length),
    );
  }
});

for (const mesh of inTurn(["ep=4", "tp=2,ep=2"], 2)) {
  t.test(`the same on ${mesh}, all at once`, async () => {
    const all = await run(await load(mesh), complete);
    for (const [i, result] of together.entries()) {
      checkPrefix(i, result, all[i]!);
    }
  });
}

t.test("the same with a step in flight on each of four stages", async (t) => {
  const staged = await load("pp=4", "separate");
  t.equal(staged.decoder.concurrentRuns, 4);
  const results = await run(staged, REQUESTS);
  for (const [i, result] of results.entries()) {
    checkPrefix(i, result, alone[i]!);
  }
});

/** Drafts the known continuation; 20% of the tokens are wrong. */
function drafterOf(results: readonly Result[]): Drafter {
  const random = randomNumbers(SEED, 1);
  const right = new Map(
    results.map(({ tokens }, i) => [complete[i]!.prompt, tokens]),
  );
  return {
    kindOf: () => ({ name: "known", assumed: 1 }),
    draft: (wanted) =>
      Promise.resolve(
        wanted.map(({ sequence: { prompt, tokens }, count }) =>
          right.get(prompt)!.slice(tokens.length, tokens.length + count)
            .map((token) => random() < 0.2 ? (token + 1) % 2048 : token)
        ),
      ),
  };
}

for (const mesh of inTurn(["ep=1", "ep=4", "tp=2,ep=2"], 3)) {
  t.test(`the same with drafted tokens on ${mesh}`, async (t) => {
    const speculation = new Speculation({
      max: 3,
      drafter: drafterOf(alone),
      // Free drafts always pay off.
      now: () => 0,
    });
    const drafted = await run(await load(mesh), REQUESTS, speculation);
    for (const [i, result] of drafted.entries()) {
      checkPrefix(i, result, alone[i]!);
    }
    const { stats } = speculation;
    t.ok(
      0 < stats.accepted && stats.accepted < stats.drafted,
      "some drafts are accepted, some rejected",
    );
  });
}

t.test("a long prompt delays other sequences by at most one chunk", async (t) => {
  const batch = new Batch(loaded.decoder);
  const add = (prompt: readonly number[]) =>
    batch.add(prompt, { maxNewTokens: 8, stop: new Set<number>() });
  const first = add(COMMON);
  while (first.tokens.length === 0) await batch.step();
  const long = add([...COMMON, ...COMMON, ...COMMON]);
  for (let steps = 1; !first.ending; steps++) {
    const step = await batch.step();
    t.ok(step!.tokens <= loaded.decoder.shape.maxTokens);
    t.equal(first.tokens.length, 1 + steps, "a token in each step");
  }
  while (await batch.step());
  t.equal(long.tokens.length, 8);
});

t.test("a sequence without enough pages ends with its context", async (t) => {
  const ended: string[] = [];
  const batch = new Batch(loaded.decoder);
  for (const name of ["first", "second", "third"]) {
    batch.add(COMMON, {
      maxNewTokens: 100,
      stop: new Set<number>(),
      onEnd: (ending) => ended.push(`${name} ${ending}`),
    });
  }
  while (await batch.step());
  t.strictSame(ended, ["first context", "second context", "third context"]);
});
