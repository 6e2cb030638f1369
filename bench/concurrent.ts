/**
 * Tokens per CPU second of 1, 8 and 32 sequences at a time against llama.cpp, prompts included, interleaved, on one
 * thread: generated in this process, and requested from a server. The checkpoint is the small Mixtral of `peers` in
 * f32, or with `--width olmoe|gpt-oss` a GGUF file of `--layers N` in `--type Q8_0`. Flags: `--runs N`, `--tokens N`
 * (new tokens of a sequence), `--counts N,…`.
 */

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { nodeFiles } from "../cli/files.ts";
import { Decoder, decoderShape, generate, loadTarget } from "../engine/mod.ts";
import { median } from "./measure.ts";
import { cpuSeconds as cpuSecondsOf } from "./large/process.ts";
import { DECODER, decoderFiles } from "./peers/decoder_files.ts";
import { openOurs } from "./peers/engine.ts";
import { installPeers, loadLlamaCpp } from "./peers/install.ts";
import { quantizedFile, VOCABULARY, type WidthName } from "./quantized/file.ts";
import { complete, startServer } from "./serve/server.ts";

const options = parseArgs({
  options: {
    runs: { type: "string", default: "5" },
    tokens: { type: "string", default: "64" },
    counts: { type: "string", default: "1,8,32" },
    width: { type: "string" },
    layers: { type: "string", default: "3" },
    type: { type: "string", default: "Q8_0" },
  },
}).values;
const [runs, tokens] = [Number(options.runs), Number(options.tokens)];

/** Tokens of a prompt. */
const PROMPT = 24;

installPeers();
const { path, gguf, vocabulary, remove } = await checkpoint();
const target = await loadTarget(path, nodeFiles());
const served = await startServer(gguf, [
  ...["--max-sequences", "32", "--max-context", "128"],
], { core: 0 });
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
  modelPath: gguf,
  gpuLayers: 0,
});

/** Writes the checkpoint, for both sides. */
async function checkpoint() {
  const { width, type, layers } = options;
  if (width !== undefined) {
    const name = width as WidthName;
    const gguf = await quantizedFile({
      type,
      layers: Number(layers),
      width: name,
    });
    return { path: gguf, gguf, vocabulary: VOCABULARY, remove: () => {} };
  }
  const path = mkdtempSync(join(tmpdir(), "switchyard-concurrent-"));
  for (const [name, bytes] of Object.entries(decoderFiles())) {
    writeFileSync(join(path, name), bytes);
  }
  return {
    path,
    gguf: join(path, "model.gguf"),
    vocabulary: DECODER.vocabulary,
    remove: () => rmSync(path, { recursive: true }),
  };
}

function cpuSeconds(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
}

for (const count of options.counts.split(",").map(Number)) {
  // Prompts differ between runs, so that no prefix is cached.
  const promptsOf = (run: number) =>
    Array.from(
      { length: count },
      (_, i) =>
        Array.from(
          { length: PROMPT },
          (_, j) => vocabulary - 1 - (31 * i + (7 + 2 * run) * j) % 256,
        ),
    );
  let prompts = promptsOf(0);
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
  const requested = async (): Promise<undefined> => {
    await Promise.all(prompts.map((prompt) =>
      complete(served, {
        prompt,
        max_tokens: tokens,
        temperature: 0,
        ignore_eos: true,
      })
    ));
  };
  const sides = {
    "in this process": { run: ours, seconds: cpuSeconds },
    "by a server": {
      run: requested,
      seconds: () => cpuSecondsOf(served.pid),
    },
    "llama.cpp": { run: theirs, seconds: cpuSeconds },
  };
  const found: { [side: string]: number[] } = {};
  let equal = 0;
  for (let run = -1; run < runs; run++) {
    prompts = promptsOf(run);
    const made: { [side: string]: number[][] | undefined } = {};
    for (const [side, { run: once, seconds }] of Object.entries(sides)) {
      const begun = seconds();
      made[side] = await once();
      if (run >= 0) (found[side] ??= []).push(seconds() - begun);
    }
    const [mine, other] = [made["in this process"]!, made["llama.cpp"]!];
    equal = mine.filter((made, i) => `${made}` === `${other[i]!}`).length;
  }
  for (const [side, seconds] of Object.entries(found)) {
    const ratio = median(found["llama.cpp"]!.map((s, i) => s / seconds[i]!));
    const rate = (count * tokens / median(seconds)).toFixed(0);
    console.log(
      `${count} at a time, ${side}: ${rate} tokens/s of CPU time, ${
        ratio.toFixed(2)
      }`,
    );
  }
  console.log(`${equal} of ${count} sequences equal to llama.cpp's`);
  await opened.close();
}
await served.stop();
remove();
// llama.cpp may wait for its contexts for ever.
process.exit();
