/** llama.cpp through node-llama-cpp: greedy tokens behind a prompt, and logits. */

import process from "node:process";
import { type LlamaSequence, loadLlamaCpp } from "./install.ts";

/** One generation: the time to the first token, the time of the others, and which they were. */
export interface Timed {
  readonly prefillMs: number;
  readonly decodeMs: number;
  readonly tokens: readonly number[];
}

/** How a model is opened. */
export interface LlamaOptions {
  /** A GGUF file. */
  readonly file: string;
  /** Compute on the first Vulkan device, a software one included; default: on the CPU. */
  readonly vulkan?: boolean;
  readonly threads: number;
  readonly context: number;
  readonly vocabulary: number;
  readonly prompt: readonly number[];
  readonly newTokens: number;
  /** The clock, in ms. Default: `performance.now`. */
  readonly now?: () => number;
}

/** An open model. */
export interface LlamaModel {
  /** A context of so many threads. */
  context(threads: number): Promise<{
    /** Logits behind the prompt. */
    logits(): Promise<Float32Array>;
    /** Logits behind each of its tokens, one after the other. */
    allLogits(): Promise<Float32Array>;
    generate(): Promise<Timed>;
  }>;
  close(): Promise<void>;
}

/** Open a model in llama.cpp. */
export async function openLlama(options: LlamaOptions): Promise<LlamaModel> {
  const { vulkan = false } = options;
  // Without it, Vulkan devices that compute on the CPU are passed over.
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
  return {
    context: async (threads) => {
      const context = await model.createContext({
        contextSize: options.context,
        batchSize: options.prompt.length,
        threads,
        // All in f32, as on our side; its flash attention rounds to f16.
        flashAttention: false,
        experimentalKvCacheKeyType: "F32",
        experimentalKvCacheValueType: "F32",
      });
      const sequence = context.getSequence();
      return {
        logits: () => logitsOf(sequence, options.prompt.length - 1, options),
        allLogits: () => logitsOf(sequence, 0, options),
        generate: () => generate(sequence, options),
      };
    },
    close: () => llama.dispose(),
  };
}

/** Logits behind the tokens of the prompt from one on. */
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

async function generate(
  sequence: LlamaSequence,
  { prompt, newTokens, now = () => performance.now() }: LlamaOptions,
): Promise<Timed> {
  await sequence.clearHistory();
  const tokens: number[] = [];
  const started = now();
  let prefilled = started;
  const chosen = sequence.evaluate(prompt, {
    temperature: 0,
    yieldEogToken: true,
  });
  for await (const token of chosen) {
    tokens.push(token);
    if (tokens.length === 1) prefilled = now();
    if (tokens.length === newTokens) break;
  }
  return {
    prefillMs: prefilled - started,
    decodeMs: now() - prefilled,
    tokens,
  };
}
