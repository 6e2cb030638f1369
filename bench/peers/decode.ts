/**
 * Prefill and greedy decode of a small Mixtral on the CPU: this project, in C and in WebAssembly, against llama.cpp
 * through node-llama-cpp.
 */

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { nodeFiles } from "../../cli/files.ts";
import {
  Decoder,
  decoderShape,
  generate,
  loadTarget,
} from "../../engine/mod.ts";
import { median } from "../measure.ts";
import { OURS, speedOf, timingOf } from "../results.ts";
import { DECODER, decoderFiles } from "./decoder_files.ts";
import {
  FAST,
  openOurs as openTargetHere,
  OUR_SIDES,
  pause,
  readPrompt,
  WASM,
} from "./engine.ts";
import { openLlama, type Timed } from "./llama.ts";
import { checkClose, type Compared, type Run } from "./run.ts";

const NEW_TOKENS = 33;

/** Allowed difference of logits, relative to the largest one. */
const TOLERANCE = 1e-4;

/** A side of the comparison. */
interface Side {
  /** Returns the logits after the prompt. */
  logits(): Promise<Float32Array>;
  generate(): Promise<Timed>;
}

/** Measures all sides. */
export async function compareDecode(
  run: Run & { readonly prompt: number },
): Promise<Compared> {
  const prompt = promptOf(run.prompt);
  for (const [name, bytes] of Object.entries(decoderFiles())) {
    writeFileSync(join(run.folder, name), bytes);
  }
  const llama = await openLlama({
    file: join(run.folder, "model.gguf"),
    threads: run.threads,
    context: prompt.length + NEW_TOKENS,
    vocabulary: DECODER.vocabulary,
    prompt,
    newTokens: NEW_TOKENS,
    now: run.now,
  });
  // Threads of llama.cpp wait in busy loops, which is slow if the cores have other work. A single thread may be faster.
  const counts = [...new Set([run.threads, 1])];
  const runs = {
    [OURS]: await openOurs(run, { side: OURS, prompt }),
    [FAST]: await openOurs(run, { side: FAST, prompt }),
    [WASM]: await openOurs(run, { side: WASM, prompt }),
  };
  const sides: { [name: string]: Side } = { ...runs };
  for (const threads of counts) {
    const name = `llama.cpp, ${threads} thread${threads === 1 ? "" : "s"}`;
    sides[name] = await llama.context(threads);
  }
  const others = Object.keys(sides).slice(1);
  const theirs = others.filter((name) => !(name in runs));
  const logits = await runs[OURS].logits();
  const difference: { [name: string]: number } = {};
  for (const name of others) {
    difference[name] = checkClose(logits, await sides[name]!.logits(), {
      what: "logits behind the prompt",
      tolerance: TOLERANCE,
    });
  }
  const prefill = timesOf(sides);
  const decode = timesOf(sides);
  for (let round = -run.warmUp; round < run.pairs; round++) {
    let first: Timed | undefined;
    for (const [name, side] of Object.entries(sides)) {
      await pause();
      const timed = await side.generate();
      first ??= timed;
      checkTokens(first.tokens, timed.tokens);
      if (round < 0) continue;
      prefill[name]!.push(timed.prefillMs);
      decode[name]!.push(timed.decodeMs / (NEW_TOKENS - 1));
    }
  }
  const hostShare = await runs[OURS].hostShare();
  for (const side of Object.values(runs)) await side.close();
  await llama.close();

  const { layers, embed, ffn, experts, topK } = DECODER;
  const model =
    `Mixtral of ${layers} layers, ${embed} wide, ${experts} experts of ${ffn}, top-${topK}, f32, one sequence`;
  const parts = [
    [`prefill, ${prompt.length} tokens`, prefill, prompt.length],
    ["decode, a token", decode, 1],
  ] as const;
  const fastest = (times: { readonly [name: string]: number[] }) =>
    theirs.reduce((best, name) =>
      median(times[name]!) < median(times[best]!) ? name : best
    );
  return {
    works: parts.map(([what, times, amount]) => ({
      work: `${what}: ${model}`,
      ...{ amount, unit: "tokens/s", difference } as const,
      sides: Object.fromEntries(
        Object.entries(times).map(([name, of]) => [name, timingOf(of)]),
      ),
    })),
    notes: [
      `host's share of a single decode step, by C: ${
        (100 * hostShare).toFixed(1)
      } %`,
    ],
    ratios: Object.fromEntries(parts.flatMap(([what, times]) => [
      [`${what}: C against WebAssembly`, speedOf(times[OURS]!, times[WASM]!)],
      [
        `${what}: C against llama.cpp`,
        speedOf(times[OURS]!, times[fastest(times)]!),
      ],
      [
        `${what}: C, fast numerics, against llama.cpp`,
        speedOf(times[FAST]!, times[fastest(times)]!),
      ],
    ])),
  };
}

/** Returns a prompt of the given number of tokens. */
function promptOf(length: number): number[] {
  return Array.from({ length }, (_, i) => 3 + i * 37 % 256);
}

function timesOf(
  sides: { readonly [name: string]: Side },
): { [name: string]: number[] } {
  return Object.fromEntries(Object.keys(sides).map((name) => [name, []]));
}

async function openOurs(
  run: Run,
  { side, prompt }: {
    readonly side: keyof typeof OUR_SIDES;
    readonly prompt: readonly number[];
  },
): Promise<
  Side & {
    /** Returns the fraction of a decode step in which no kernel runs. */
    hostShare(): Promise<number>;
    close(): Promise<void>;
  }
> {
  const target = await loadTarget(run.folder, nodeFiles());
  const opened = await openTargetHere(target, {
    ...OUR_SIDES[side],
    threads: run.threads,
    timestamps: true,
    // As in llama.cpp, unused rows of the last layer and their logits are not computed.
    next: { candidates: 1, logits: true },
    need: {
      tokens: prompt.length,
      sequences: 1,
      context: prompt.length + NEW_TOKENS,
    },
  });
  const decoder = new Decoder(opened.session, decoderShape(opened.plan)!);
  const feed = async () => {
    opened.session.reset();
    return await readPrompt(decoder, prompt);
  };
  return {
    logits: async () => (await feed()).logits.slice(),
    generate: async () => {
      opened.session.reset();
      const { sequences, prefillMs, decodeMs } = await generate(
        decoder,
        [prompt],
        {
          maxNewTokens: NEW_TOKENS,
          stop: new Set(),
          temperature: 0,
          now: run.now,
        },
      );
      return { prefillMs, decodeMs, tokens: sequences[0]!.tokens };
    },
    hostShare: async () => {
      const shares: number[] = [];
      await feed();
      await opened.timings();
      for (let i = 0; i < NEW_TOKENS - 1; i++) {
        const start = performance.now();
        await decoder.next({
          ids: Int32Array.of(prompt[i]!),
          sequence: Int32Array.of(0),
          position: Int32Array.of(prompt.length + i),
          cell: Int32Array.of(0),
        }, [0]);
        const all = performance.now() - start;
        const launches = (await opened.timings()).reduce(
          (ns, { start, end }) => ns + (end - start),
          0,
        );
        shares.push(1 - launches / 1e6 / all);
      }
      return median(shares);
    },
    close: () => opened.close(),
  };
}

function checkTokens(
  ours: readonly number[],
  theirs: readonly number[],
): void {
  const at = ours.findIndex((token, i) => token !== theirs[i]);
  if (at < 0 && ours.length === NEW_TOKENS) return;
  throw new Error(
    `Cannot compare decoding: token ${at} is ${ours[at]} here and ${
      theirs[at]
    } there. The two sides do not compute the same`,
  );
}
