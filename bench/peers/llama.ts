/** llama.cpp through node-llama-cpp: greedy tokens after a prompt, and logits. */

import process from "node:process";
import { type LlamaSequence, loadLlamaCpp } from "./install.ts";

/** One generation: the time of the first token, the time of the others, and the tokens. */
export interface Timed {
  readonly prefillMs: number;
  readonly decodeMs: number;
  readonly tokens: readonly number[];
}

/** Options for opening a model. */
export interface LlamaOptions {
  /** A GGUF file. */
  readonly file: string;
  /** Compute on the first Vulkan device, including software devices. Default: the CPU. */
  readonly vulkan?: boolean;
  readonly threads: number;
  readonly context: number;
  readonly vocabulary: number;
  readonly prompt: readonly number[];
  /** Prompts of the sequences that `generate` continues at the same time. Default: `prompt`. */
  readonly prompts?: readonly (readonly number[])[];
  readonly newTokens: number;
  /** The clock in ms. Default: `performance.now`. */
  readonly now?: () => number;
}

/** An open model. */
export interface LlamaModel {
  /** Opens a context with the given number of threads. */
  context(threads: number): Promise<{
    /** Returns the logits after the prompt. */
    logits(): Promise<Float32Array>;
    /** Returns the logits after each token of the prompt. */
    allLogits(): Promise<Float32Array>;
    generate(): Promise<Timed>;
  }>;
  close(): Promise<void>;
}

/** Opens a model in llama.cpp. */
export async function openLlama(options: LlamaOptions): Promise<LlamaModel> {
  const { vulkan = false } = options;
  // Required: otherwise Vulkan devices on the CPU are skipped.
  if (vulkan) process.env["GGML_VK_VISIBLE_DEVICES"] = "0";
  const { getLlama } = await loadLlamaCpp();
  const llama = await getLlama({
    gpu: vulkan ? "vulkan" : false,
    build: "never",
    skipDownload: true,
    progressLogs: false,
    logLevel: "error",
    maxThreads: options.threads,
  });
  const model = await llama.loadModel({
    modelPath: options.file,
    gpuLayers: vulkan ? "max" : 0,
  });
  const { prompt, prompts = [prompt] } = options;
  return {
    context: async (threads) => {
      const context = await model.createContext({
        contextSize: options.context * prompts.length,
        sequences: prompts.length,
        batchSize: prompt.length * prompts.length,
        threads,
        // All values in f32, as on this project's side. Its flash attention rounds to f16.
        flashAttention: false,
        experimentalKvCacheKeyType: "F32",
        experimentalKvCacheValueType: "F32",
      });
      const sequences = prompts.map(() => context.getSequence());
      const sequence = sequences[0]!;
      return {
        logits: () => logitsOf(sequence, prompt.length - 1, options),
        allLogits: () => logitsOf(sequence, 0, options),
        generate: () => generate(sequences, prompts, options),
      };
    },
    close: () => llama.dispose(),
  };
}

/** Returns the logits after the tokens of the prompt, from a given one on. */
async function logitsOf(
  sequence: LlamaSequence,
  from: number,
  { prompt, vocabulary }: LlamaOptions,
): Promise<Float32Array> {
  await sequence.clearHistory();
  const asked = { generateNext: { logits: true } };
  const rows = await sequence.controlledEvaluate(
    prompt.map((token, i) => i < from ? token : [token, asked] as const),
  );
  const logits = new Float32Array((prompt.length - from) * vocabulary);
  for (let i = from; i < prompt.length; i++) {
    const row = rows[i]!.next.logits!;
    for (let token = 0; token < vocabulary; token++) {
      logits[(i - from) * vocabulary + token] = row.get(token) ?? NaN;
    }
  }
  return logits;
}

/** Generates after all prompts at the same time. The prefill ends with the first token of the last sequence. */
async function generate(
  sequences: readonly LlamaSequence[],
  prompts: readonly (readonly number[])[],
  { newTokens, now = () => performance.now() }: LlamaOptions,
): Promise<Timed> {
  for (const sequence of sequences) await sequence.clearHistory();
  const started = now();
  let prefilled = started;
  const generated = await Promise.all(sequences.map(async (sequence, i) => {
    const tokens: number[] = [];
    const chosen = sequence.evaluate(prompts[i]!, {
      temperature: 0,
      yieldEogToken: true,
    });
    for await (const token of chosen) {
      tokens.push(token);
      if (tokens.length === 1) prefilled = now();
      if (tokens.length === newTokens) break;
    }
    return tokens;
  }));
  return {
    prefillMs: prefilled - started,
    decodeMs: now() - prefilled,
    tokens: generated.flat(),
  };
}
