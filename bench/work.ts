/** The works of the benchmarks: the expert FFN, and prefill and decode of the bundled checkpoint. */

import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import type { CompileOptions, Model } from "../compiler/mod.ts";
import type { AdapterChoice } from "../engine/devices.ts";
import { storedDTypes } from "../engine/checkpoint/weights.ts";
import { publishedModel } from "../models/published.ts";
import {
  type FileSource,
  type HostTensor,
  openSafetensors,
} from "../runtime/mod.ts";
import { expertLayer } from "./models.ts";
import { type Bench, load, randomValues } from "./session.ts";

/** The device and mesh of a work. */
export interface Setup {
  readonly adapter: AdapterChoice;
  readonly mesh: { readonly [axis: string]: number };
}

/** Parses `--adapter` (default: `fallback`) and `--runs` (default: 9). */
export function workFlags(
  fallback: string,
): { adapter: AdapterChoice; repetitions: number } {
  const { adapter, runs } = parseArgs({
    options: {
      adapter: { type: "string", default: fallback },
      runs: { type: "string", default: "9" },
    },
  }).values;
  return {
    adapter: adapter === "auto" || adapter === "cpu" || adapter === "native"
      ? adapter
      : [Number(adapter)],
    repetitions: Number(runs),
  };
}

/** Tokens of the expert FFN, and its multiply-adds times two: 8 experts, top-2, 512 to 1024 and back, gated. */
export const FFN = { tokens: 512, flops: 512 * 2 * 3 * 2 * 512 * 1024 };

/** Loads the expert FFN with random weights. */
export async function loadFfn(setup: Setup): Promise<Bench> {
  return await load(expertLayer(FFN.tokens), setup);
}

/** Runs the expert FFN once. */
export function ffnOnce(bench: Bench): () => Promise<void> {
  const x = {
    dtype: "f32",
    shape: [FFN.tokens, 512],
    data: randomValues(FFN.tokens * 512),
  } as const;
  return () => bench.compute({ x });
}

/** The sequences of prefill and decode. */
export const PROMPT = { sequences: 4, length: 64, position: 0 };

/** Decode steps per measurement, which reduces the noise. */
export const STEPS = 16;

/** Returns the bundled checkpoint's model and weights. Without `next`, the model returns logits. */
export async function demoModel(
  next?: { readonly candidates: number },
): Promise<{
  readonly model: Model;
  readonly weights: NonNullable<CompileOptions["weights"]>;
  readonly files: readonly FileSource[];
}> {
  const folder = new URL("../examples/demo-lm/", import.meta.url);
  const config = readFileSync(new URL("config.json", folder), "utf8");
  const bytes = readFileSync(new URL("model.safetensors", folder));
  const file: FileSource = {
    name: "model.safetensors",
    size: bytes.length,
    read: (offset, length) =>
      Promise.resolve(bytes.subarray(offset, offset + length)),
  };
  const model = publishedModel(JSON.parse(config)).build({
    maxTokens: 256,
    maxSequences: 4,
    maxContext: 256,
    ...next ? { next } : {},
  });
  const weights = storedDTypes(await openSafetensors([file]));
  return { model, weights, files: [file] };
}

/** Loads the bundled checkpoint. */
export async function loadDemo(setup: Setup): Promise<Bench> {
  const { model, ...rest } = await demoModel({ candidates: 1 });
  return await load(model, { ...setup, ...rest });
}

/** Returns packed inputs: `length` tokens of each of `sequences` sequences, starting at `position`. */
export function packed(
  what: typeof PROMPT,
): { [name: string]: HostTensor } {
  const { sequences, length, position } = what;
  const ints = (of: (i: number) => number) => integers(sequences * length, of);
  return {
    ids: ints((i) => (i * 37 + position) % 1000),
    sequence: ints((i) => Math.floor(i / length)),
    position: ints((i) => position + i % length),
  };
}

/** Returns packed inputs with the rows of the last tokens. */
export function packedForNext(
  what: typeof PROMPT,
): { [name: string]: HostTensor } {
  const { sequences, length } = what;
  const rows = integers(sequences, (i) => (i + 1) * length - 1);
  return { ...packed(what), rows };
}

function integers(length: number, of: (i: number) => number): HostTensor {
  return {
    dtype: "i32",
    shape: [length],
    data: Int32Array.from({ length }, (_, i) => of(i)),
  };
}

/** The outputs that a step reads. */
const CHOSEN = ["candidates.logits", "candidates.ids"];

/** Processes all prompts from the start. */
export function prefillOnce({ session }: Bench): () => Promise<void> {
  return async () => {
    session.reset();
    await session.run("main", packedForNext(PROMPT), { outputs: CHOSEN });
  };
}

/** Runs `STEPS` steps of one token per sequence. The host's fraction of the time is added to `hostShare`. */
export function decodeSteps(
  { session, takeWaiting }: Bench,
  hostShare: number[] = [],
): () => Promise<void> {
  return async () => {
    takeWaiting();
    const start = performance.now();
    for (let i = 0; i < STEPS; i++) {
      const position = PROMPT.length + i;
      const inputs = packedForNext({ ...PROMPT, length: 1, position });
      await session.run("main", inputs, { outputs: CHOSEN });
    }
    const total = performance.now() - start;
    hostShare.push((total - takeWaiting()) / total);
  };
}
