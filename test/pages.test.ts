// Paged and 16-bit caches: bits of a sequence do not depend on pages, neighbours or arrival.
// needs: cpu
// rotates with: engine/generation/pages, compiler/passes/paginate.ts

import t from "tap";
import { compile } from "../compiler/mod.ts";
import {
  generate,
  loadTarget,
  PageTable,
  type PlanOptions,
  planTarget,
} from "../engine/mod.ts";
import { assignTokens } from "../engine/generation/packing.ts";
import { layer } from "../examples/layer.ts";
import { sum } from "../spec/sum.ts";
import {
  checkpointFolder,
  files,
  loadCheckpoint,
  meshOf,
  type Setup,
} from "./helpers/checkpoints.ts";
import { inTurn, isInTurn, oneInTurn } from "./helpers/seed.ts";

/** Two prompts with a common prefix, one that is a prefix of another, and more than fit at once. */
const COMMON = [5, 9, 2, 7, 11, 4, 8, 1, 3];
const PROMPTS = [
  [...COMMON, 6, 2],
  [3],
  [...COMMON, 12],
  [8, 8, 1],
  COMMON,
  [4, 6],
  ...Array.from({ length: 6 }, (_, i) => [i + 1, 9, i + 2, 7, 5]),
];

/** Generates from the prompts; returns tokens, log-probabilities and cache statistics. */
async function follow(name: string, place: Setup, prompts = PROMPTS) {
  const { decoder, plan, session, close } = await loadCheckpoint(name, place);
  try {
    const { sequences, prefillTokens } = await generate(decoder, prompts, {
      maxNewTokens: 9,
      stop: new Set([0]),
      temperature: 0,
      logprobs: 2,
    });
    return {
      sequences: sequences.map(({ tokens, logprobs }) => ({
        tokens,
        logprobs,
      })),
      prefillTokens,
      used: decoder.pages?.used,
      peaks: session.statistics().ranks.map(({ peakBytes }) => peakBytes),
      groups: decoder.shape.pagesShape?.groups,
      stateBytes: sum(
        Object.values(plan.buffers).filter(({ kind }) => kind === "state")
          .map(({ bytes }) => bytes as number),
      ),
    };
  } finally {
    await close();
  }
}

t.test("pages are allocated, shared and released", (t) => {
  const pages = new PageTable({
    size: 2,
    blocks: 3,
    owners: [0, 1, 0],
    groups: [{ input: "pages", seen: {}, count: 4 }],
  });
  const place = (sequence: number, tokens: readonly number[]) =>
    tokens.every((token, i) => pages.assign(sequence, i, token));
  t.ok(place(0, [7, 8, 9]));
  t.strictSame(pages.used, [2]);
  t.notOk(pages.share(1, [[7, 8]]), "not across ranks");
  t.ok(pages.share(2, [[7, 8]]), "a full page");
  t.notOk(pages.share(2, [[9, 9]]), "only full pages are shared");
  t.strictSame(pages.used, [2], "counted once");
  t.ok(pages.assign(2, 2, 5));
  t.strictSame(
    [...pages.tensors()["pages"]!.data].filter((_, i) => i % 3 < 2),
    [0, 1, 0, 0, 0, 2],
  );
  t.equal(pages.keep(0, 1), 0, "shared pages are not written");
  t.strictSame(pages.used, [2]);
  t.ok(place(0, [1, 2, 3, 4]));
  t.notOk(pages.assign(0, 4, 5), "no page is left");
  t.equal(pages.keep(2, 3), 3);
  t.equal(pages.keep(2, 0), 0);
  t.ok(pages.hasRoom(0, 4));
  t.notOk(pages.hasRoom(0, 5));
  t.notOk(pages.share(2, [[9, 9]]), "only full pages are shared");
  t.ok(pages.share(2, [[1, 2]]));
  t.ok(pages.assign(0, 3, 6), "written again");
  t.notOk(pages.share(2, [[3, 4]]), "overwritten pages are not shared");
  t.end();
});

t.test("full pages outlive their sequences; the least recently used is evicted", (t) => {
  const pages = new PageTable({
    size: 2,
    blocks: 4,
    owners: [0, 0],
    groups: [{ input: "pages", seen: {}, count: 4 }],
  });
  const run = (sequence: number, tokens: readonly number[]) => {
    const shared = pages.share(sequence, blocksOf(tokens)) as number;
    tokens.slice(shared).forEach((token, i) =>
      t.ok(pages.assign(sequence, shared + i, token))
    );
    return shared;
  };
  const blocksOf = (tokens: readonly number[]) =>
    Array.from(
      { length: Math.floor((tokens.length - 1) / 2) },
      (_, i) => tokens.slice(2 * i, 2 * i + 2),
    );
  t.equal(run(0, [1, 2, 3, 4, 5]), 0);
  pages.keep(0, 0);
  t.strictSame(pages.used, [0]);
  t.ok(pages.hasRoom(0, 8), "cached pages are evicted on demand");
  t.equal(run(0, [1, 2, 3, 4, 9, 9]), 4);
  t.strictSame(pages.used, [3]);
  t.equal(run(1, [1, 2, 7]), 2, "pages in use are shared, too");
  t.notOk(
    pages.assign(1, 4, 7) && pages.assign(1, 6, 7),
    "all pages are in use",
  );
  pages.keep(1, 0);
  pages.keep(0, 0);
  t.strictSame(pages.used, [0]);
  t.equal(run(1, [8, 8, 8, 8]), 0, "evicts the ends of earlier sequences");
  pages.keep(1, 0);
  t.equal(run(0, [1, 2, 3, 4, 5]), 4, "keeps their common prefix");
  t.equal(pages.share(1, [[8, 8]]), 2);
  t.end();
});

t.test("pages outside the window are released", (t) => {
  // A window of 3 covers two pages of 2, or three if it does not start at a page.
  const seen = { window: 3 };
  const pages = new PageTable({
    size: 2,
    blocks: 8,
    owners: [0, 0],
    groups: [
      { input: "pages", seen: {}, count: 12 },
      { input: "pages_window_3", seen, count: 4 },
    ],
  });
  const grow = (sequence: number, from: number, to: number) => {
    pages.advance(sequence, from);
    for (let at = from; at < to; at++) {
      if (!pages.assign(sequence, at, at)) return false;
    }
    return true;
  };
  for (let at = 0; at < 10; at++) t.ok(grow(0, at, at + 1));
  t.strictSame(pages.used, [5, 2]);
  t.equal(
    pages.share(1, [[0, 1]]),
    0,
    "the window of the next token includes an evicted page",
  );
  t.equal(
    pages.share(1, [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]),
    10,
    "pages before the window may be evicted",
  );
  t.strictSame(pages.used, [5, 2], "counted once");
  t.ok(grow(1, 10, 12));
  t.equal(pages.keep(0, 9), 8, "shared pages are not written");
  t.ok(grow(0, 8, 9));
  t.equal(pages.keep(0, 4), 0, "the window of the next token was evicted");
  t.equal(pages.keep(1, 0), 0);
  t.strictSame(pages.used, [0, 0]);
  t.notOk(grow(0, 0, 10), "more tokens at once than pages");
  t.ok(grow(0, 8, 10), "released pages are allocated again");
  t.end();
});

t.test("a step has all pages of its windows", (t) => {
  // A window of 3 covers two pages of 2. In a step of 4, two sequences may each start a page with their last tokens.
  const groups = [
    { input: "pages", seen: {}, count: 40 },
    { input: "pages_window_3", seen: { window: 3 }, count: 2 * 2 + 2 },
  ];
  const pages = new PageTable({
    size: 2,
    blocks: 16,
    owners: [0, 0, 0],
    groups,
  });
  const step = (...spans: readonly (readonly [number, number, number])[]) => {
    const all = spans.flatMap(([sequence, from, to]) =>
      Array.from({ length: to - from }, (_, i) => [sequence, from + i] as const)
    );
    assignTokens(pages, {
      ids: Int32Array.from(all, ([sequence, at]) => sequence * 100 + at),
      sequence: Int32Array.from(all, ([sequence]) => sequence),
      position: Int32Array.from(all, ([, at]) => at),
    });
  };
  step([0, 0, 3], [1, 0, 3]);
  step([0, 3, 5], [1, 3, 5]);
  t.strictSame(pages.used, [6, 6]);
  step([2, 0, 1]);
  t.strictSame(pages.used, [7, 5], "sequences outside of a step release pages");
  step([0, 5, 7]);
  t.throws(() => pages.assign(0, 3, 7), {
    name: "DataError",
    message:
      "Cannot run position 3 of sequence 0: it has given back pages that the token there sees, or others read the page that it is in. Feed it again from position 0, as 'keep' returns",
  });
  t.strictSame(pages.used, [4, 3]);
  t.end();
});

t.test("a full block replaces one with evicted pages", (t) => {
  const seen = { window: 2 };
  const pages = new PageTable({
    size: 2,
    blocks: 8,
    owners: [0, 0, 0],
    groups: [{ input: "pages_window_2", seen, count: 3 }],
  });
  const feed = (sequence: number, tokens: number) => {
    for (let at = 0; at < tokens; at++) pages.assign(sequence, at, at);
  };
  feed(0, 6);
  pages.advance(0, 6);
  for (let at = 0; at < 3; at++) t.ok(pages.assign(1, at, 9), "evicts two");
  pages.keep(1, 0);
  t.equal(pages.share(1, [[0, 1]]), 0, "it was evicted");
  feed(1, 2);
  t.equal(
    pages.share(2, [[0, 1]]),
    2,
    "the block of another sequence is shared",
  );
  t.end();
});

t.test("long prefixes are shared", (t) => {
  const size = 150_000;
  const pages = new PageTable({
    size,
    blocks: 1,
    owners: [0, 0],
    groups: [{ input: "pages", seen: {}, count: 2 }],
  });
  const tokens = new Array<number>(size).fill(1);
  tokens.forEach((token, at) => pages.assign(0, at, token));
  t.equal(pages.share(1, [tokens]), size);
  t.end();
});

t.test("the number of pages follows from known sequence lengths", async (t) => {
  const target = await loadTarget(checkpointFolder("olmoe-16e"), files);
  const pagesFor = async (
    mesh: string,
    sequences: number,
    lengths: readonly number[],
    place?: PlanOptions["place"],
  ) => {
    const need = { tokens: 64, sequences, context: 250, lengths };
    const options = { mesh: meshOf(mesh), need, ...place ? { place } : {} };
    const { axes } = await planTarget(target, files, options);
    return [axes["page"]!.size, axes["within"]!.size];
  };
  const pagesOf = async (
    mesh: string,
    sequences: number,
    place?: PlanOptions["place"],
  ) => {
    const lengths = [40, 250, 64, 65, 1];
    return await pagesFor(mesh, sequences, lengths, place);
  };
  t.strictSame(await pagesOf("ep=1", 4), [10 + 63 + 16 + 17, 4]);
  t.strictSame(await pagesOf("tp=2", 2), [63 + 16, 4], "consecutive sequences");
  t.strictSame(
    await pagesOf("ep=2", 4),
    [2 * (63 + 17), 4],
    "on each of two ranks",
  );
  const experts = await pagesOf("ep=2", 4, { expert: "ep" });
  t.strictSame(experts, [106, 4], "all sequences on each rank");
  const tokens = { expert: "ep", token: { over: ["ep"] } };
  t.strictSame(await pagesOf("ep=2", 4, tokens), [2 * (63 + 17), 4]);
  t.strictSame(await pagesFor("ep=1", 4, [250, 250]), [16, 32], "long ones");
  t.strictSame(await pagesFor("ep=1", 4, [20]), [8, 32], "one");
});

/** Pages for all sequences, for some, and pages that span several key blocks. */
const MANY = { count: 48, size: 4 };
const FEW = { count: 9, size: 4 };
const LONG = { count: 2, size: 32 };

const FED = PROMPTS.flat().length;

for (
  const [name, meshes] of Object.entries({
    "olmoe-16e": ["ep=1", "dp=2,ep=2", "tp=2"],
    // Sinks and windows; one latent vector for all heads.
    "gptoss-8e": ["ep=2"],
    "deepseekv2-lite-8e": ["ep=1"],
    // Selected keys in all layers but one.
    "glmmoedsa-16e": ["ep=1"],
  })
) {
  t.test(`${name}: text from paged caches`, async (t) => {
    const alone = await follow(name, { mesh: "ep=1", adapter: "cpu" });
    t.equal(alone.prefillTokens, FED);
    for (const mesh of meshes) {
      for (const [i, pages] of [FEW, LONG, MANY].entries()) {
        if (pages === MANY ? mesh !== "ep=1" : !isInTurn(i, 2)) continue;
        const { sequences, used, prefillTokens } = await follow(name, {
          mesh,
          adapter: "cpu",
          pages,
          bounds: { maxContext: 24 },
        });
        const title = `${mesh}, ${pages.count} pages of ${pages.size}`;
        t.strictSame(sequences, alone.sequences, title);
        t.ok(
          used!.every((n) => n <= 5),
          `${title}: ended sequences have released their pages`,
        );
        if (pages === MANY) {
          t.ok(prefillTokens < FED, "common prefixes are not recomputed");
        } else if (pages === FEW && mesh === "ep=1") {
          t.ok(prefillTokens > FED, "preempted sequences are recomputed");
        }
      }
    }
  });
}

for (
  const [name, seen, count, used] of [
    // A window of 8 covers 2 pages, a chunk of 128 covers 17. Each sequence of a step of 8 tokens may start one more.
    ["gptoss-8e", { window: 8 }, 2 * 2 + 2, [20, 2]],
    ["llama4-8e", { chunk: 128 }, 2 * 17 + 2, [20, 4]],
  ] as const
) {
  t.test(`${name}: pages of attention windows`, async (t) => {
    const long = Array.from({ length: 150 }, (_, i) => 3 + i * 7 % 200);
    const prompts = [long.slice(0, 40), [...long.slice(0, 100), 5, 6], long];
    const place = {
      ...{ mesh: "ep=1", adapter: "cpu" } as const,
      bounds: { maxTokens: 8, maxSequences: 2, maxContext: 176 },
    };
    const unpaged = await follow(name, place, prompts);
    const pages = { count: 44, size: 8 };
    const paged = await follow(name, { ...place, pages }, prompts);
    t.strictSame(paged.sequences, unpaged.sequences, "same bits");
    t.ok(paged.prefillTokens < unpaged.prefillTokens, "prefixes are shared");
    const [all, limited] = paged.groups!.toSorted((a, b) => b.count - a.count);
    t.strictSame([all!.count, limited!.count], [44, count]);
    t.match(limited!.seen, seen);
    const byCount = paged.groups!.map(({ count }, i) =>
      [count, paged.used![i]!] as const
    ).toSorted(([a], [b]) => b - a);
    t.strictSame(
      byCount.map(([, used]) => used),
      used,
      "pages of the last token's window",
    );
    // Layers without a window have as many positions as before.
    const layers = name === "gptoss-8e" ? [1, 1] : [1, 3];
    t.equal(
      paged.stateBytes / unpaged.stateBytes,
      (44 * layers[0]! + count * layers[1]!) / (44 * (layers[0]! + layers[1]!)),
    );
  });
}

/** Prompts with a common prefix of several pages; one prompt is a prefix of others. */
const FORKS = [5, 7, 9, 6, 8, 5].map((length, i) => [
  ...Array.from({ length: 9 }, (_, at) => 3 + at * 7 % 40),
  ...Array.from({ length: length - 5 }, (_, at) => 2 + at + i),
  i + 1,
]);

for (
  const [name, mesh] of inTurn(
    Object.entries({
      "qwen3next-16e": "ep=1",
      "qwen35moe-16e": "tp=2",
      "granitemoehybrid-12e": "ep=2",
      "nemotronh-16e": "ep=1",
      "lfm2moe-16e": "dp=2,ep=2",
    }),
    2,
  )
) {
  t.test(`${name}: prefixes are shared through snapshots`, async (t) => {
    const bounds = { maxContext: 24, maxSequences: 4 };
    const place = { mesh, adapter: "cpu", bounds } as const;
    const alone = await follow(name, place, FORKS);
    t.equal(alone.prefillTokens, FORKS.flat().length);
    for (const pages of oneInTurn([MANY, FEW, { ...MANY, snapshots: 1 }])) {
      const paged = await follow(name, { ...place, pages }, FORKS);
      const title = JSON.stringify(pages);
      t.strictSame(paged.sequences, alone.sequences, title);
      for (const { predicted, actual } of paged.peaks) {
        t.equal(actual, predicted, `${title}: planned memory`);
      }
      if (pages === FEW || mesh === "dp=2,ep=2") continue;
      t.ok(
        paged.prefillTokens < alone.prefillTokens,
        `${title}: ${paged.prefillTokens} of ${alone.prefillTokens} tokens fed`,
      );
    }
  });
}

t.test("entries of several tokens are not shared", async (t) => {
  const name = "deepseekv4-12e";
  const place = { mesh: "ep=1", adapter: "cpu" } as const;
  const alone = await follow(name, place);
  for (const pages of inTurn([MANY, FEW], 2)) {
    const bounds = { maxContext: 24 };
    const paged = await follow(name, { ...place, pages, bounds });
    const title = `${name}, ${pages.count} pages`;
    t.strictSame(paged.sequences, alone.sequences, title);
    t.ok(paged.prefillTokens >= FED, "all prompts are computed");
  }
});

t.test("a state without snapshots is not rewound", async (t) => {
  const place = { mesh: "ep=1", adapter: "cpu" } as const;
  const name = "lfm2moe-16e";
  const { decoder, close } = await loadCheckpoint(name, place);
  try {
    const reply = async (
      prompt: readonly number[],
      cached: readonly number[],
    ) => {
      const { sequences: [one], prefillTokens } = await generate(
        decoder,
        [prompt],
        { maxNewTokens: 4, stop: new Set(), temperature: 0, cached },
      );
      return { tokens: one!.tokens, prefillTokens };
    };
    const first = await reply(COMMON, []);
    const cached = [...COMMON, ...first.tokens.slice(0, -1)];
    const longer = [...COMMON, ...first.tokens, 7, 5];
    const next = await reply(longer, cached);
    t.equal(next.prefillTokens, longer.length - cached.length);
    const fed = [...longer, ...next.tokens.slice(0, -1)];
    const again = await reply(longer, fed);
    t.strictSame(again.tokens, next.tokens);
    t.equal(again.prefillTokens, longer.length, "all tokens are recomputed");
  } finally {
    await close();
  }
});

t.test("16-bit caches", async (t) => {
  await t.rejects(compile(layer, { kvCacheDtype: "f16" }), {
    message:
      "Cannot store caches in 16 bits: the model has no attention that reads one. Store them as f32",
  });
  const [name, adapter] = ["olmoe-16e", "cpu"] as const;
  const exact = await follow(name, { mesh: "ep=1", adapter });
  for (const kvCacheDtype of inTurn(["f16", "bf16"] as const, 2)) {
    const place = { adapter, kvCacheDtype };
    const one = await follow(name, { ...place, mesh: "ep=1" });
    const many = await follow(name, {
      ...place,
      mesh: "dp=2,ep=2",
      pages: FEW,
      bounds: { maxContext: 24 },
    });
    t.strictSame(many.sequences, one.sequences, `${kvCacheDtype}: same bits`);
    const first = ({ sequences }: typeof one) =>
      sequences.map(({ logprobs }) => logprobs![0]!.logprob);
    const differences = first(exact).map((p, i) =>
      Math.abs(p - first(one)[i]!)
    );
    const max = Math.max(...differences);
    t.ok(max > 0 && max < 0.05, `${kvCacheDtype}: ${max} from f32`);
    t.equal(one.stateBytes * 2, exact.stateBytes);
  }
});

t.test("16-bit caches next to rows of one element", async (t) => {
  const [name, adapter] = ["deepseekv4-12e", "cpu"] as const;
  const exact = await follow(name, { mesh: "ep=1", adapter });
  const place = { adapter, kvCacheDtype: "bf16" } as const;
  const one = await follow(name, { ...place, mesh: "ep=1" });
  const many = await follow(name, { ...place, mesh: "dp=2,ep=2" });
  t.strictSame(many.sequences, one.sequences, "same bits");
  const first = ({ sequences }: typeof one) =>
    sequences.map(({ logprobs }) => logprobs![0]!.logprob);
  const differences = first(exact).map((p, i) => Math.abs(p - first(one)[i]!));
  const max = Math.max(...differences);
  t.ok(max > 0 && max < 0.05, `${max} from f32`);
  t.ok(one.stateBytes < exact.stateBytes);
  t.ok(one.stateBytes * 2 > exact.stateBytes, "compressors keep f32");
});
