/**
 * Quantized files of the bundled checkpoint in llama.cpp: greedy tokens after prompts against ours, and the largest
 * difference of logits. Linux on x64 only; `bench/peers` installs llama.cpp.
 */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { nodeFiles } from "../cli/files.ts";
import { packageFile } from "../cli/places.ts";
import {
  Decoder,
  decoderShape,
  generate,
  loadTarget,
  openTarget,
  openTokenizer,
  QUANTIZE_TARGETS,
  quantizeCheckpoint,
  type QuantizeTargetName,
} from "../engine/mod.ts";
import { openLlama } from "./peers/llama.ts";

const PROMPTS = [
  "Once upon a time there was a",
  "The king said to his daughter",
  "In the middle of the forest",
  "'Dear me!' cried the Rabbit",
];

const NEW_TOKENS = 48;

const files = nodeFiles();
const checkpoint = packageFile("examples/demo-lm");
const folder = mkdtempSync(join(tmpdir(), "switchyard-"));
const tokenizer = (await openTokenizer(checkpoint, files))!;
const prompts: number[][] = [];
for (const prompt of PROMPTS) prompts.push(await tokenizer.encode(prompt));
tokenizer.close();
try {
  for (const [name, { writes }] of Object.entries(QUANTIZE_TARGETS)) {
    if (writes[0] === "file") await compare(name as QuantizeTargetName);
  }
} finally {
  rmSync(folder, { recursive: true });
}

async function compare(to: QuantizeTargetName): Promise<void> {
  const file = join(folder, `${to}.gguf`);
  await quantizeCheckpoint(checkpoint, files, { to, out: file });
  const found = await ours(file);
  for (const [i, prompt] of prompts.entries()) {
    const llama = await openLlama({
      file,
      prompt,
      threads: 1,
      context: 256,
      vocabulary: 2048,
      newTokens: NEW_TOKENS,
    });
    const context = await llama.context(1);
    const logits = await context.logits();
    const { tokens } = await context.generate();
    await llama.close();
    const { sequence, last, margins } = found[i]!;
    let [worst, largest] = [0, 0];
    logits.forEach((x, at) => {
      worst = Math.max(worst, Math.abs(x - last[at]!));
      largest = Math.max(largest, Math.abs(x));
    });
    const same = sequence.findIndex((token, at) => token !== tokens[at]);
    const margin = same < 0 ? Infinity : margins[same]!;
    console.log(
      `${to}, prompt ${i + 1}: ${
        same < 0
          ? "all"
          : `the first ${same} (then a margin of ${margin.toExponential(1)})`
      } of ${NEW_TOKENS} tokens equal, logits within ${
        (worst / largest).toExponential(1)
      } of the largest`,
    );
    // Either side may be off by the difference of logits.
    if (same >= 0 && margin > 2 * worst) process.exitCode = 1;
  }
}

/** Greedy tokens after each prompt, and the logits after the prompt. */
async function ours(file: string) {
  const results: {
    sequence: readonly number[];
    /** Distance of the two largest logits before each token. */
    margins: readonly number[];
    last: Float32Array;
  }[] = [];
  const opened = await openTarget(await loadTarget(file, files), files, {
    sharing: "shared",
    adapter: "cpu",
    need: { tokens: 64, sequences: 1, context: 256 },
  });
  const decoder = new Decoder(opened.session, decoderShape(opened.plan)!);
  for (const prompt of prompts) {
    opened.session.reset();
    const { sequences } = await generate(decoder, [prompt], {
      maxNewTokens: NEW_TOKENS,
      stop: new Set(),
      logprobs: 2,
    });
    opened.session.reset();
    const [next] = await decoder.next({
      ids: Int32Array.from(prompt),
      sequence: new Int32Array(prompt.length),
      position: Int32Array.from(prompt.keys()),
      cell: Int32Array.from(prompt.keys()),
    }, [prompt.length - 1]);
    const [{ tokens, logprobs = [] } = { tokens: [] }] = sequences;
    results.push({
      sequence: tokens,
      margins: logprobs.map(({ top }) => top[0]!.logprob - top[1]!.logprob),
      last: next!.logits,
    });
  }
  await opened.close();
  return results;
}
