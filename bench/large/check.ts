/**
 * Logits of a large checkpoint after every token of a prompt. This project's devices and meshes are compared with each
 * other bit by bit, and with llama.cpp on the same bf16 weights. The prompt contains the last token of the vocabulary,
 * and some tokens are sent to the last expert of the last layer. Weights beyond 2^31 bytes are therefore used.
 */

import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { nodeFiles } from "../../cli/files.ts";
import type { AdapterChoice } from "../../engine/devices.ts";
import {
  Decoder,
  decoderShape,
  loadTarget,
  packPrompts,
  type Target,
} from "../../engine/mod.ts";
import { openOurs } from "../peers/engine.ts";
import { installPeers } from "../peers/install.ts";
import { openLlama } from "../peers/llama.ts";
import { writeOlmoeGguf } from "../peers/olmoe_gguf.ts";
import { machine } from "../measure.ts";
import { writeDocument } from "../results.ts";

/**
 * Allowed difference of llama.cpp's logits, relative to the largest logit. With bf16 weights it also rounds the other
 * factor to bf16. With the same weights in f32 it does not round.
 */
const TOLERANCE = { bf16: 1e-2, f32: 1e-4 };

const TOKENS = 32;

/** A device and a mesh of ranks that share it. */
interface Setup {
  readonly adapter: AdapterChoice;
  readonly ranks: number;
  /** Shard the rows of the vocabulary's tables as experts. */
  readonly vocabulary?: boolean;
}

const SETUPS: { readonly [name: string]: Setup } = {
  "native, ep=1": { adapter: "native", ranks: 1 },
  "native, ep=4": { adapter: "native", ranks: 4 },
  "WebAssembly, ep=1": { adapter: "cpu", ranks: 1 },
  "WebAssembly, ep=4": { adapter: "cpu", ranks: 4 },
  "WebAssembly, ep=4, vocab=ep": {
    adapter: "cpu",
    ranks: 4,
    vocabulary: true,
  },
  "adapter 0, ep=1": { adapter: [0], ranks: 1 },
  "adapter 0, ep=2, vocab=ep": { adapter: [0], ranks: 2, vocabulary: true },
  "adapter 0, ep=4, vocab=ep": { adapter: [0], ranks: 4, vocabulary: true },
};

/** The results of a place. */
interface Found {
  readonly logits: Float32Array;
  /** Experts of every token in the last layer. */
  readonly choices: Int32Array;
}

/** The saved results of a place. */
type Saved =
  | { readonly refused: string }
  | {
    /** Difference from llama.cpp's logits, by the storage type of its weights. */
    readonly difference: { readonly [stored: string]: number };
    /** Difference from the first place. */
    readonly meshDifference: number;
    /** Whether the bits equal those of the first place of the same kind of device, processor or adapter. */
    readonly equalBits: boolean;
    readonly tokensOfLastExpert: number;
  };

/**
 * Checks the checkpoint in a folder, prints the results and saves them to a file. Returns whether all results are
 * correct.
 */
export async function checkLarge(
  folder: string,
  { only = "", out }: { readonly only?: string; readonly out?: string },
): Promise<boolean> {
  const versions = installPeers();
  const target = await loadTarget(folder, nodeFiles());
  if (target.kind !== "checkpoint") throw new Error("no checkpoint");
  const { experts, layers, vocabulary } = target.checkpoint.published.decoder;
  const prompt = Array.from(
    { length: TOKENS },
    (_, i) => vocabulary - 1 - i * 1571,
  );
  const theirs = {
    bf16: await theirLogits(folder, { prompt, vocabulary, matrices: "bf16" }),
    f32: await theirLogits(folder, { prompt, vocabulary, matrices: "f32" }),
  };
  const results: { [setup: string]: Saved } = {};
  const first: { processor?: Found; adapter?: Found } = {};
  let good = true;
  for (const [name, setup] of Object.entries(SETUPS)) {
    if (!name.includes(only)) continue;
    try {
      const found = await run(target, { setup, prompt, layers });
      const kind = typeof setup.adapter === "string" ? "processor" : "adapter";
      const same = first[kind] ??= found;
      const difference = {
        bf16: differenceOf(found.logits, theirs.bf16),
        f32: differenceOf(found.logits, theirs.f32),
      };
      const saved = results[name] = {
        difference,
        meshDifference: differenceOf(
          found.logits,
          (first.processor ?? found).logits,
        ),
        equalBits: hash(found.logits) === hash(same.logits),
        tokensOfLastExpert: found.choices.filter((expert) =>
          expert === experts - 1
        ).length,
      };
      good &&= difference.bf16 <= TOLERANCE.bf16 &&
        difference.f32 <= TOLERANCE.f32 && saved.equalBits &&
        saved.tokensOfLastExpert > 0;
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      results[name] = { refused: error.message };
    }
    console.log(`${name}: ${JSON.stringify(results[name])}`);
  }
  console.log(good ? "all as it must be" : "NOT as it must be");
  if (out !== undefined) {
    const { [LLAMA]: llama } = versions;
    writeDocument(out, {
      program: "large --check",
      machine: machine(),
      versions: { [LLAMA]: llama },
      tokens: TOKENS,
      results,
    });
  }
  return good;
}

const LLAMA = "node-llama-cpp";

/** Returns llama.cpp's logits. */
async function theirLogits(
  folder: string,
  { prompt, vocabulary, matrices }: {
    readonly prompt: readonly number[];
    readonly vocabulary: number;
    readonly matrices: "f32" | "bf16";
  },
): Promise<Float32Array> {
  const file = join(folder, `${matrices}.gguf`);
  if (!existsSync(file)) await writeOlmoeGguf(folder, { file, matrices });
  const llama = await openLlama({
    file,
    vocabulary,
    prompt,
    context: 256,
    newTokens: 1,
    threads: availableParallelism(),
  });
  const context = await llama.context(availableParallelism());
  const logits = await context.allLogits();
  await llama.close();
  return logits;
}

async function run(
  target: Target,
  { setup, prompt, layers }: {
    readonly setup: Setup;
    readonly prompt: readonly number[];
    readonly layers: number;
  },
): Promise<Found> {
  const opened = await openOurs(target, {
    adapter: setup.adapter,
    threads: availableParallelism(),
    need: { tokens: prompt.length, sequences: 1, context: prompt.length },
    mesh: { ep: setup.ranks },
    ...setup.vocabulary ? { place: { expert: "ep", vocab: "ep" } } : {},
  });
  const decoder = new Decoder(opened.session, decoderShape(opened.plan)!);
  const outputs = await decoder.outputs(packPrompts([prompt]));
  await opened.close();
  return {
    logits: outputs["logits"]!.data as Float32Array,
    choices: outputs[`layer${layers - 1}.topk_idx`]!.data as Int32Array,
  };
}

function hash(logits: Float32Array): string {
  return createHash("sha256").update(logits).digest("hex");
}

/** Returns the largest difference, relative to the largest value. */
function differenceOf(ours: Float32Array, theirs: Float32Array): number {
  let [difference, greatest] = [0, 0];
  theirs.forEach((value, i) => {
    const apart = Math.abs(ours[i]! - value);
    if (!(apart <= difference)) difference = apart;
    greatest = Math.max(greatest, Math.abs(value));
  });
  return difference / greatest;
}
