// Speculation by lookup and by a draft checkpoint: `generate` and `serve` give the same tokens as without it.
// needs: cpu
// rotates with: engine/generation/speculation/, cli/speculation

import t from "tap";
import { main } from "../cli/main.ts";
import {
  type Drafter,
  generate,
  lookupDrafter,
  modelDrafter,
  Speculation,
} from "../engine/mod.ts";
import { sum } from "../spec/sum.ts";
import {
  checkpointFolder,
  loadCheckpoint,
  type Loaded,
  type Setup,
} from "./helpers/checkpoints.ts";
import {
  copyCheckpoint,
  switchyard,
  temporaryFolder,
  withOutput,
} from "./helpers/cli.ts";
import {
  DRAFT_PROMPTS,
  draftsChangeNoToken,
  FREE_DRAFTS,
  type Tokens,
} from "./helpers/drafts.ts";
import { startServerWith } from "./helpers/serve.ts";
import { inTurn, isInTurn } from "./helpers/seed.ts";
import { metricOf } from "./helpers/serve_requests.ts";

const DEMO = checkpointFolder("demo-lm");
const LINE = "Once upon a time there was a king who had a fox";
const PROMPTS = Array.from(
  { length: 16 },
  (_, i) => Array.from({ length: 12 + i }, (_, j) => 300 + 7 * ((i + j) % 6)),
);

/** Loads the bundled checkpoint. */
async function load(
  place: Pick<Setup, "mesh" | "next" | "pages">,
): Promise<Loaded> {
  const bounds = { maxTokens: 128, maxSequences: 16, maxContext: 160 };
  return await loadCheckpoint("demo-lm", { ...place, adapter: "cpu", bounds });
}

/** Drafters; `model` uses the decoder itself as the draft model. */
const DRAFTERS = {
  lookup: lookupDrafter,
  model: (own: Loaded) =>
    modelDrafter(own.decoder, own.decoder.shape.vocabulary),
} as const;

const WAYS = { greedy: {}, seeded: { temperature: 0.4, topK: 30, seed: 3 } };

/** Meshes, drafters and pages: 10,000 tokens over all of them. */
const PLACES = [
  ["ep=1", "model", undefined],
  ["ep=4", "lookup", undefined],
  ["tp=2,ep=2", "lookup", { count: 160, size: 8 }],
] as const;

t.test("thousands of tokens equal those without speculation", async (t) => {
  const own = await load({ mesh: "ep=1", next: { candidates: 1 } });
  t.teardown(own.close);
  let tokens = 0;
  const plain: { [way: string]: Tokens } = {};
  const places = inTurn(PLACES, 3);
  for (const [mesh, drafter, pages] of places) {
    const loaded = await load({
      mesh,
      next: { candidates: 30, perSequence: 4 },
      ...pages ? { pages } : {},
    });
    const run = async (way: keyof typeof WAYS, speculation?: Speculation) => {
      const { sequences } = await generate(loaded.decoder, PROMPTS, {
        ...WAYS[way],
        maxNewTokens: 105,
        stop: new Set<number>(),
        speculation,
      });
      return sequences.map(({ tokens }) => tokens);
    };
    for (const way of ["greedy", "seeded"] as const) {
      plain[way] ??= await run(way);
      const speculation = new Speculation({
        max: 3,
        drafter: DRAFTERS[drafter](own),
        ...FREE_DRAFTS,
      });
      const found = await run(way, speculation);
      t.strictSame(found, plain[way], `${way} on ${mesh}`);
      tokens += sum(found.map(({ length }) => length));
      const { accepted, drafted } = speculation.stats;
      t.ok(100 < accepted && accepted <= drafted, `${accepted} of ${drafted}`);
    }
    await loaded.close();
  }
  t.ok(tokens >= 10_000 / 3 * places.length, `${tokens} tokens`);
});

/** Drafts tokens of known texts; about one in three is wrong. */
function wrongDrafter(known: Tokens): Drafter {
  return {
    kindOf: () => ({ name: "known", assumed: 1 }),
    draft: (wanted) =>
      Promise.resolve(wanted.map(({ sequence: { prompt, tokens }, count }) => {
        const text = known[DRAFT_PROMPTS.indexOf(prompt)]!;
        const first = tokens.length;
        return text.slice(first, first + count).map((token, i) =>
          (first + i * first) % 3 === 0 ? token ^ 1 : token
        );
      })),
  };
}

/** Models with recurrent states, with enough pages or so few that sequences are preempted. */
const RECURRENT = [
  ["qwen3next-16e", "tp=2,ep=2", { count: 60, size: 4 }],
  ["nemotronh-16e", "ep=4", { count: 26, size: 4 }],
  ["granitemoehybrid-12e", "ep=1", { count: 26, size: 4 }],
  ["qwen3next-16e", "ep=4", { count: 26, size: 4 }],
  ["nemotronh-16e", "tp=2,ep=2", { count: 60, size: 4 }],
  ["qwen3next-16e", "ep=1", { count: 60, size: 4 }],
  ["granitemoehybrid-12e", "ep=4", { count: 60, size: 4 }],
  ["nemotronh-16e", "ep=1", { count: 26, size: 4 }],
  ["granitemoehybrid-12e", "tp=2,ep=2", { count: 26, size: 4 }],
] as const;

t.test("recurrent states are rolled back", async (t) => {
  for (const [i, [name, mesh, pages]] of RECURRENT.entries()) {
    if (!isInTurn(i, 5)) continue;
    const { decoder, close } = await loadCheckpoint(name, {
      mesh,
      pages,
      adapter: "cpu",
      next: { candidates: 30, perSequence: 4 },
      bounds: { maxTokens: 24, maxSequences: 3, maxContext: 96 },
    });
    for (const way of ["greedy", "seeded"] as const) {
      await draftsChangeNoToken(t, decoder, {
        title: `${name}, ${way} on ${mesh}`,
        options: WAYS[way],
        drafter: wrongDrafter,
      });
    }
    await close();
  }
});

t.test("--speculate changes no token, and --stats counts drafts", async (t) => {
  const run = async (...args: string[]) => {
    const argv = [
      ...["generate", DEMO, "--adapter", "cpu", "--json", "--stats"],
      ...["-p", `${LINE} and a crow. ${LINE}`, "-n", "40", ...args],
    ];
    const { code, out, err } = await withOutput(
      (io) => main(argv, io),
      FREE_DRAFTS,
    );
    t.equal(code, 0, err);
    return JSON.parse(out) as {
      readonly sequences: unknown;
      readonly stats: { readonly [name: string]: number };
    };
  };
  const ways = [
    { args: ["--temperature", "0"], more: [] },
    { args: ["--temperature", "1", "--seed", "3"], more: ["--draft", DEMO] },
  ];
  for (const { args, more } of ways) {
    const plain = await run(...args);
    t.equal(plain.stats["draftedTokens"], undefined);
    const { sequences, stats } = await run(
      ...args,
      "--speculate",
      "4",
      ...more,
    );
    t.strictSame(sequences, plain.sequences);
    const { acceptedTokens: accepted, draftedTokens: drafted } = stats;
    t.ok(0 < drafted! && accepted! <= drafted!, `${accepted} of ${drafted}`);
  }
});

t.test("a server drafts, and its metrics count drafts", async (t) => {
  const server = await startServerWith(FREE_DRAFTS, [DEMO, "--speculate", "4"]);
  t.teardown(() => server.stop());
  const { client } = server;
  const { choices } = await client.completions.create({
    model: "demo-lm",
    prompt: `${LINE} and a crow. ${LINE}`,
    max_tokens: 60,
    temperature: 0,
  });
  const { out } = await switchyard([
    ...["generate", DEMO, "--adapter", "cpu", "-n", "60"],
    ...["-p", `${LINE} and a crow. ${LINE}`],
  ]);
  t.equal(`${choices[0]!.text}\n`, out);
  const drafted = await metricOf(server, "switchyard_drafted_tokens");
  const accepted = await metricOf(server, "switchyard_accepted_tokens");
  t.ok(0 < drafted && accepted <= drafted, `${accepted} of ${drafted}`);
});

t.test("models that cannot speculate state the reason", async (t) => {
  const refused = async (name: string, ...args: string[]) => {
    const { code, err } = await switchyard([
      ...["generate", name, "--adapter", "cpu", "--tokens", "1,2", "-n", "2"],
      ...args,
    ]);
    return [code, err.split("\n").at(-2)];
  };
  const recurrent = checkpointFolder("granitemoehybrid-12e");
  const compressed = checkpointFolder("deepseekv4-12e");
  t.strictSame(await refused(compressed, "--speculate", "2"), [
    1,
    "Cannot speculate with this model: its recurrent states contain every fed token and have no snapshots, so rejected ones cannot be removed. Run it without --speculate",
  ]);
  const draft = ["--speculate", "2", "--draft"];
  t.strictSame(await refused(DEMO, ...draft, recurrent), [
    1,
    "Cannot draft with this checkpoint: its recurrent states contain every fed token, so rejected ones cannot be removed. Give a checkpoint with attention only",
  ]);
  const other = await copyCheckpoint("mixtral-8e", temporaryFolder(t));
  t.match(await refused(DEMO, ...draft, other), [
    1,
    /^Cannot draft with this checkpoint: its vocabulary has \d+ tokens, and the model's 2048\. Give a checkpoint with the same tokenizer$/,
  ]);
  t.match(await refused(DEMO, "--draft", DEMO), [
    2,
    /^Cannot use --draft without --speculate/,
  ]);
});

t.test("lookup continues the longest match, and repeats its end", async (t) => {
  const drafter = lookupDrafter();
  const draft = async (prompt: number[], tokens: number[], count: number) => {
    const sequence = { prompt, tokens };
    const kind = drafter.kindOf(sequence);
    if (kind === undefined) return undefined;
    return (await drafter.draft([{ sequence, count }]))[0];
  };
  t.strictSame(await draft([1, 2, 3, 4], [5, 6], 2), undefined);
  t.strictSame(await draft([1, 2, 3, 9, 2, 3, 4, 1], [2, 3], 3), [9, 2, 3]);
  t.strictSame(await draft([7, 8, 7, 8], [7, 8], 5), [7, 8, 7, 8, 7]);
});
