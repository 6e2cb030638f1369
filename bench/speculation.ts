/**
 * Lossless speculation against generation without it: tokens per CPU second, interleaved, on repetitive text and on
 * other text, and the share of accepted drafts. The tokens are compared first. Flags: `--checkpoint FOLDER`,
 * `--speculate N`, `--tokens N`, `--runs N`, `--sequences N`, `--draft FOLDER`, `--kind repetitive|other`.
 */

import process from "node:process";
import { parseArgs } from "node:util";
import { fileURLToPath } from "node:url";
import { nodeFiles } from "../cli/files.ts";
import {
  Decoder,
  decoderShape,
  generate,
  type GenerateOptions,
  loadTarget,
  lookupDrafter,
  modelDrafter,
  openTokenizer,
  Speculation,
} from "../engine/mod.ts";
import { median } from "./measure.ts";
import { openOurs } from "./peers/engine.ts";

const DEMO = fileURLToPath(new URL("../examples/demo-lm", import.meta.url));

const options = parseArgs({
  options: {
    checkpoint: { type: "string", default: DEMO },
    draft: { type: "string" },
    speculate: { type: "string", default: "6" },
    tokens: { type: "string", default: "300" },
    runs: { type: "string", default: "9" },
    sequences: { type: "string", default: "1" },
    kind: { type: "string" },
  },
}).values;
const [max, tokens, runs, count] = [
  ...[options.speculate, options.tokens, options.runs, options.sequences],
].map(Number) as [number, number, number, number];

/** Prompts per sequence of the batch. */
const PROMPTS = 6;

/** Texts of each kind, and how they continue: the greedy text of a small model repeats itself, drawn text does not. */
const KINDS: {
  readonly [kind: string]: Partial<GenerateOptions> & {
    readonly texts: readonly string[];
  };
} = {
  "repetitive": {
    texts: Array.from(
      { length: PROMPTS * count },
      (_, i) =>
        `There were ${i} foxes. Once upon a time there was a king. Once upon a time there was a`,
    ),
  },
  "other": {
    texts: Array.from(
      { length: PROMPTS * count },
      (_, i) => `Once upon a time there were ${i} foxes`,
    ),
    temperature: 1,
    seed: 5,
  },
};

const files = nodeFiles();
const common = {
  adapter: "native",
  threads: 1,
  bounds: {
    maxTokens: 256,
    maxSequences: count,
    maxContext: 32 * Math.ceil((tokens + 96) / 32),
  },
} as const;
const tokenizer = (await openTokenizer(options.checkpoint, files))!;
const opened = await openOurs(await loadTarget(options.checkpoint, files), {
  ...common,
  next: { candidates: 1, logits: true, perSequence: 1 + max },
});
const decoder = new Decoder(opened.session, decoderShape(opened.plan)!);
const draft = options.draft === undefined
  ? undefined
  : await openOurs(await loadTarget(options.draft, files), {
    ...common,
    next: { candidates: 1 },
  });

/** CPU time of this process in milliseconds. */
function cpuMs(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

function speculationOf(): Speculation {
  const drafter = draft
    ? modelDrafter(
      new Decoder(draft.session, decoderShape(draft.plan)!),
      decoder.shape.vocabulary,
    )
    : lookupDrafter();
  return new Speculation({ max, drafter, now: () => performance.now() });
}

async function run(kind: string, speculation?: Speculation) {
  const { texts, ...sampling } = KINDS[kind]!;
  const prompts: number[][] = [];
  for (const text of texts) prompts.push(await tokenizer.encode(text));
  const begun = cpuMs();
  const { sequences } = await generate(decoder, prompts, {
    temperature: 0,
    ...sampling,
    maxNewTokens: tokens,
    stop: new Set<number>(),
    speculation,
  });
  const ms = cpuMs() - begun;
  const made = sequences.map((sequence) => sequence.tokens);
  const total = made.reduce((n, { length }) => n + length, 0);
  return { made: JSON.stringify(made), rate: 1000 * total / ms };
}

for (
  const kind of options.kind === undefined ? Object.keys(KINDS) : [options.kind]
) {
  const rates: { with: number; without: number }[] = [];
  let [drafted, accepted] = [0, 0];
  for (let i = -1; i < runs; i++) {
    const speculation = speculationOf();
    // Each is first in every other run.
    const order = i % 2 === 0 ? [undefined, speculation] : [speculation];
    const done = [];
    for (const each of order) done.push(await run(kind, each));
    const speculated = done.at(-1)!;
    const without = done[0] === speculated ? await run(kind) : done[0]!;
    if (speculated.made !== without.made) throw new Error("other tokens");
    if (i < 0) continue;
    rates.push({ with: speculated.rate, without: without.rate });
    drafted += speculation.stats.drafted;
    accepted += speculation.stats.accepted;
  }
  const ratio = median(rates.map((rate) => rate.with / rate.without));
  console.log(
    `${kind}: ${median(rates.map((rate) => rate.without)).toFixed(0)} to ${
      median(rates.map((rate) => rate.with)).toFixed(0)
    } tokens/s of CPU time, ${
      ratio.toFixed(2)
    }; accepted ${accepted} of ${drafted}`,
  );
}
tokenizer.close();
await draft?.close();
await opened.close();
