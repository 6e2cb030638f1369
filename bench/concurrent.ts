/**
 * Tokens per CPU second of 1, 8 and 32 sequences at a time against llama.cpp, on the small Mixtral of `peers` in f32,
 * prompts included, interleaved, on one thread. Flags: `--runs N`, `--tokens N` (new tokens of a sequence),
 * `--counts N,…`.
 */

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { nodeFiles } from "../cli/files.ts";
import { Decoder, decoderShape, generate, loadTarget } from "../engine/mod.ts";
import { median } from "./measure.ts";
import { decoderFiles } from "./peers/decoder_files.ts";
import { openOurs } from "./peers/engine.ts";
import { installPeers, loadLlamaCpp } from "./peers/install.ts";

const options = parseArgs({
  options: {
    runs: { type: "string", default: "5" },
    tokens: { type: "string", default: "64" },
    counts: { type: "string", default: "1,8,32" },
  },
}).values;
const [runs, tokens] = [Number(options.runs), Number(options.tokens)];

/** Tokens of a prompt. */
const PROMPT = 24;

installPeers();
const folder = mkdtempSync(join(tmpdir(), "switchyard-concurrent-"));
for (const [name, bytes] of Object.entries(decoderFiles())) {
  writeFileSync(join(folder, name), bytes);
}
const target = await loadTarget(folder, nodeFiles());
const { getLlama } = await loadLlamaCpp();
const llama = await getLlama({
  gpu: false,
  build: "never",
  skipDownload: true,
  progressLogs: false,
  logLevel: "error",
  maxThreads: 1,
});
const model = await llama.loadModel({
  modelPath: join(folder, "model.gguf"),
  gpuLayers: 0,
});

function cpuSeconds(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
}

for (const count of options.counts.split(",").map(Number)) {
  const prompts = Array.from(
    { length: count },
    (_, i) =>
      Array.from({ length: PROMPT }, (_, j) => 3 + (31 * i + 7 * j) % 256),
  );
  const context = await model.createContext({
    contextSize: count * 128,
    batchSize: 512,
    sequences: count,
    threads: 1,
    flashAttention: false,
    experimentalKvCacheKeyType: "F32",
    experimentalKvCacheValueType: "F32",
  });
  const sequences = prompts.map(() => context.getSequence());
  const theirs = async (): Promise<number[][]> =>
    await Promise.all(sequences.map(async (sequence, i) => {
      await sequence.clearHistory();
      const made: number[] = [];
      const chosen = sequence.evaluate(prompts[i]!, {
        temperature: 0,
        yieldEogToken: true,
      });
      for await (const token of chosen) {
        made.push(token);
        if (made.length === tokens) break;
      }
      return made;
    }));
  const opened = await openOurs(target, {
    adapter: "native",
    threads: 1,
    bounds: { maxTokens: 512, maxSequences: count, maxContext: 128 },
    next: { candidates: 1 },
    pages: { count: 4 * count, size: 32 },
  });
  const decoder = new Decoder(opened.session, decoderShape(opened.plan)!);
  const ours = async (): Promise<number[][]> => {
    const { sequences } = await generate(decoder, prompts, {
      maxNewTokens: tokens,
      stop: new Set<number>(),
      temperature: 0,
    });
    return sequences.map(({ tokens }) => [...tokens]);
  };
  const seconds = { ours: [] as number[], theirs: [] as number[] };
  let equal = 0;
  for (let run = -1; run < runs; run++) {
    const timed = async (side: "ours" | "theirs") => {
      const begun = cpuSeconds();
      const made = await (side === "ours" ? ours : theirs)();
      if (run >= 0) seconds[side].push(cpuSeconds() - begun);
      return made;
    };
    const [mine, other] = [await timed("ours"), await timed("theirs")];
    equal = mine.filter((made, i) => `${made}` === `${other[i]!}`).length;
  }
  const ratio = median(seconds.theirs.map((s, i) => s / seconds.ours[i]!));
  const rate = (side: "ours" | "theirs") =>
    (count * tokens / median(seconds[side])).toFixed(0);
  console.log(
    `${count} at a time: ${rate("ours")} against ${
      rate("theirs")
    } tokens/s of CPU time, ${
      ratio.toFixed(2)
    }; ${equal} of ${count} sequences equal`,
  );
  await opened.close();
}
await llama.dispose();
rmSync(folder, { recursive: true });
