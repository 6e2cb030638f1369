/**
 * Prompts of mixed lengths whose sequences end at different times, against the same number of tokens in batches that
 * are always full. Prints tokens/s of the small Mixtral of `bench peers`, interleaved, by CPU time and wall-clock time,
 * and the fraction of the states that live tokens use. It also compares sequences with the same sequences run alone.
 * Flags: `--prompts N`, `--slots N`, `--tokens N` (per step), `--runs N`, `--alone N` (number of compared sequences),
 * `--pages NxM` (pages and positions per page; default: as in `generate`), `--adapter native|cpu`, `--out FILE`.
 */

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { nodeFiles } from "../cli/files.ts";
import { parsePages } from "../cli/flags/values.ts";
import { Decoder, decoderShape, generate, loadTarget } from "../engine/mod.ts";
import { sum } from "../spec/sum.ts";
import { machine, median } from "./measure.ts";
import { DECODER, decoderFiles } from "./peers/decoder_files.ts";
import { openOurs } from "./peers/engine.ts";
import { writeDocument } from "./results.ts";

const options = parseArgs({
  options: {
    prompts: { type: "string", default: "1000" },
    slots: { type: "string", default: "32" },
    tokens: { type: "string", default: "128" },
    runs: { type: "string", default: "3" },
    alone: { type: "string", default: "20" },
    pages: { type: "string", default: "" },
    adapter: { type: "string", default: "native" },
    out: { type: "string", default: "" },
  },
}).values;
const [prompts, slots, tokens, runs, alone] = [
  ...[options.prompts, options.slots, options.tokens],
  ...[options.runs, options.alone],
].map(Number) as [number, number, number, number, number];

/** A sequence: its prompt, and the number of new tokens. */
interface Sequence {
  readonly prompt: readonly number[];
  readonly length: number;
}

/** Maximum prompt tokens and new tokens. */
const [PROMPT, NEW] = [96, 48];

let seed = 1;
function random(below: number): number {
  seed = Math.imul(seed, 1664525) + 1013904223 >>> 0;
  return Math.floor(seed / 2 ** 32 * below);
}

function sequenceOf(prompt: number, length: number): Sequence {
  const id = () => 3 + random(256);
  return { prompt: Array.from({ length: prompt }, id), length };
}

// The product of two uniform numbers makes short lengths the most frequent.
const mixed = Array.from({ length: prompts }, () =>
  sequenceOf(
    1 + Math.floor(random(PROMPT) * random(1000) / 1000),
    1 + Math.floor(random(NEW) * random(1000) / 1000),
  ));
function mean(of: (s: Sequence) => number): number {
  return Math.round(sum(mixed.map(of)) / prompts);
}
const full = Array.from(
  { length: Math.floor(prompts / slots) * slots },
  () => sequenceOf(mean((s) => s.prompt.length), mean((s) => s.length)),
);

const folder = mkdtempSync(join(tmpdir(), "switchyard-sequences-"));
for (const [name, bytes] of Object.entries(decoderFiles())) {
  writeFileSync(join(folder, name), bytes);
}
const target = await loadTarget(folder, nodeFiles());
const { plan, session, close } = await openOurs(target, {
  adapter: options.adapter as "native" | "cpu",
  threads: availableParallelism(),
  need: {
    tokens,
    sequences: slots,
    context: PROMPT + NEW,
    // The number of new tokens is known only at the end.
    lengths: mixed.map(({ prompt }) => prompt.length + NEW),
  },
  next: {},
  ...options.pages
    ? {
      pages: parsePages(options.pages),
      bounds: { maxSequences: slots, maxContext: PROMPT + NEW },
    }
    : {},
});
const decoder = new Decoder(session, decoderShape(plan)!);

/** For each step of mixed prompts: positions of used pages, and positions of live tokens. */
const steps: { taken: number; live: number }[] = [];
const { pages } = decoder;
const next = decoder.next.bind(decoder);
decoder.next = (packed, rows) => {
  const made = next(packed, rows);
  if (pages) {
    steps.push({ taken: sum(pages.used) * pages.size, live: pages.held });
  }
  return made;
};

/** Generates sequences. Returns the tokens, and tokens per second by wall-clock time and by CPU time. */
async function run(sequences: readonly Sequence[]) {
  const made: number[][] = sequences.map(() => []);
  const [before, began] = [process.cpuUsage(), performance.now()];
  const generated = await generate(
    decoder,
    sequences.map(({ prompt }) => prompt),
    {
      maxNewTokens: NEW + 1,
      stop: new Set<number>(),
      temperature: 0,
      now: () => performance.now(),
      onToken: (sequence, token) => {
        made[sequence]!.push(token);
        return made[sequence]!.length >= sequences[sequence]!.length
          ? "stop"
          : undefined;
      },
    },
  );
  const { prefillTokens } = generated;
  const { user, system } = process.cpuUsage(before);
  const count = sum(sequences.map((s) => s.prompt.length + s.length));
  return {
    made,
    prefillTokens,
    clock: count / (performance.now() - began) * 1e3,
    cpu: count / (user + system) * 1e6,
  };
}

const rates = { mixed: [] as number[], full: [] as number[] };
const cpu = { mixed: [] as number[], full: [] as number[] };
let together: number[][] = [];
let fed = 0;
let used: typeof steps = [];
for (let round = 0; round <= runs; round++) {
  for (const [name, of] of [["mixed", mixed], ["full", full]] as const) {
    // The first run is a warm-up.
    steps.length = 0;
    const { made, prefillTokens, ...rate } = await run(
      round === 0 ? of.slice(0, slots) : of,
    );
    if (round === 0) continue;
    rates[name].push(rate.clock);
    cpu[name].push(rate.cpu);
    if (name === "mixed") {
      together = made;
      fed = prefillTokens;
      used = steps.slice();
    }
  }
}
let equal = 0;
for (let i = 0; i < alone; i++) {
  const at = Math.floor(i * prompts / alone);
  const { made } = await run([mixed[at]!]);
  if (made[0]!.join() === together[at]!.join()) equal++;
}
await close();
rmSync(folder, { recursive: true });

/** Excludes the beginning, when the batch fills up, and the end, when no prompts wait. */
const busy = used.slice(
  Math.floor(used.length / 10),
  Math.ceil(used.length * 9 / 10),
);
const live = busy.map((step) => step.live).sort((a, b) => a - b);
const pool = decoder.shape.pagesShape && {
  positions: decoder.shape.pagesShape.size *
    sum(decoder.shape.pagesShape.groups.map(({ count }) => count)),
};
const states = sum(
  Object.values(plan.buffers).filter(({ kind }) => kind === "state")
    .map(({ bytes }) => bytes as number),
);
const result = {
  program: "sequences",
  machine: machine(),
  adapter: options.adapter,
  what:
    `Mixtral of ${DECODER.layers} layers, ${DECODER.embed} wide; ${prompts} prompts of 1 to ${PROMPT} tokens (mean ${
      mean((s) => s.prompt.length)
    }), 1 to ${NEW} new ones (mean ${
      mean((s) => s.length)
    }), ${slots} at a time, steps of ${tokens} tokens`,
  tokensPerSecond: Object.fromEntries(
    Object.entries(rates).map(([name, all]) => [name, all.map(Math.round)]),
  ),
  ratios: {
    "mixed against full batches, by the clock": ratio(rates),
    "mixed against full batches, by CPU time": ratio(cpu),
    "sequences that are as they are alone": equal / alone,
    ...pool
      ? {
        "pages against what live tokens need": round2(
          median(busy.map(({ taken, live }) => taken / live)),
        ),
        // Released pages are reused first, so no other part of the states is ever written or resident.
        "pages ever used against what live tokens need at the fullest step":
          round2(Math.max(...used.map(({ taken }) => taken)) / live.at(-1)!),
        "all pages against that": round2(pool.positions / live.at(-1)!),
        "tokens of prompts that were fed, against those there are": round2(
          fed / sum(mixed.map(({ prompt }) => prompt.length)),
        ),
      }
      : {
        "states against what a sequence of mean length needs": round2(
          (PROMPT + NEW) / mean((s) => s.prompt.length + s.length),
        ),
      },
  },
  stateBytes: states,
};

function ratio(of: { mixed: number[]; full: number[] }): number {
  return round2(median(of.mixed.map((rate, i) => rate / of.full[i]!)));
}

function round2(value: number): number {
  return Math.round(value * 100) / 100;
}

console.log(JSON.stringify(result, undefined, 2));
if (options.out) writeDocument(options.out, result);
