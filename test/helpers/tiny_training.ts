/** Small model to train, and a reader of trained checkpoints that is independent of the engine. */

import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { cp, mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { adamw, type TrainOptions } from "../../engine/mod.ts";
import { checkpointFolder, meshOf } from "./checkpoints.ts";
import { type RawTensor, readRaw, temporaryFolder } from "./cli.ts";

/** Text to train on. */
export const TEXT = fileURLToPath(
  new URL("../../examples/demo-lm/README.md", import.meta.url),
);

/** Fields in which a small OLMoE differs from the demo. */
const SIZES = {
  hidden_size: 32,
  intermediate_size: 24,
  num_hidden_layers: 2,
  num_experts: 4,
  num_attention_heads: 2,
  num_key_value_heads: 2,
};

/** Configuration of a small OLMoE with the demo's vocabulary. */
export async function tinyConfig(): Promise<
  { readonly [key: string]: unknown }
> {
  const demo = path.join(checkpointFolder("demo-lm"), "config.json");
  return { ...JSON.parse(await readFile(demo, "utf8")) as object, ...SIZES };
}

/** Creates a folder with a small model without weights. Default: an OLMoE. */
export async function tinyModel(
  t: { teardown(fn: () => void): unknown },
  config?: object,
): Promise<string> {
  const folder = path.join(temporaryFolder(t), "tiny");
  await mkdir(folder);
  await writeFile(
    path.join(folder, "config.json"),
    JSON.stringify(config ?? await tinyConfig()),
  );
  const demo = checkpointFolder("demo-lm");
  for (const name of ["tokenizer.json", "tokenizer_config.json"]) {
    await cp(path.join(demo, name), path.join(folder, name));
  }
  return folder;
}

/** Options of a training on the CPU. */
export function tinyOptions(
  mesh: string,
  steps: number,
  more: Partial<TrainOptions> = {},
): TrainOptions {
  return {
    steps,
    batch: 4,
    length: 16,
    schedule: { rate: 0.01, warmup: 2 },
    sharing: "shared",
    adapter: "cpu",
    mesh: meshOf(mesh),
    optimizer: adamw({ betas: [0.9, 0.95] }),
    data: [() => createReadStream(TEXT, "utf8")],
    statistics: true,
    now: () => performance.now(),
    ...more,
  };
}

/** Returns the files of a checkpoint in hexadecimal, except metrics, which contain times. */
export async function contents(
  folder: string,
): Promise<{ [name: string]: string }> {
  const found: { [name: string]: string } = {};
  for (const name of (await readdir(folder)).sort()) {
    if (/\.(jsonl|svg)$/.test(name)) continue;
    found[name] = (await readFile(path.join(folder, name))).toString("hex");
  }
  return found;
}

/** Index of a trained checkpoint. */
interface Index {
  readonly weight_map: { readonly [tensor: string]: string };
  readonly metadata: {
    readonly total_size: number;
    readonly training: {
      readonly step: number;
      readonly sha256: { readonly [tensor: string]: string };
      readonly optimizerState: {
        readonly [state: string]: {
          readonly shape: readonly number[];
          readonly slices: readonly {
            readonly file: string;
            readonly tensor: string;
            readonly start: readonly number[];
            readonly shape: readonly number[];
            readonly sha256: string;
          }[];
        };
      };
    };
  };
}

/** Trained checkpoint on disk: unsharded tensors, in hexadecimal. */
export interface OnDisk {
  readonly step: number;
  readonly parameters: { readonly [name: string]: string };
  readonly optimizerState: { readonly [name: string]: string };
  /** Files with parameters. */
  readonly shards: readonly string[];
}

/** Decodes f32 values from hexadecimal. */
export function floatsOf(hex: string): Float32Array {
  return new Float32Array(Uint8Array.from(Buffer.from(hex, "hex")).buffer);
}

/** Reads a trained checkpoint. Throws if a file is missing or a tensor does not match its hash. */
export async function readOnDisk(folder: string): Promise<OnDisk> {
  const { weight_map, metadata } = JSON.parse(
    await readFile(path.join(folder, "model.safetensors.index.json"), "utf8"),
  ) as Index;
  const { step, sha256, optimizerState } = metadata.training;
  const read = new Map<string, { readonly [name: string]: RawTensor }>();
  const tensorOf = async (file: string, name: string, hash: string) => {
    const tensors = read.get(file) ?? await readRaw(path.join(folder, file));
    read.set(file, tensors);
    const tensor = tensors[name];
    const found = tensor &&
      createHash("sha256").update(tensor.data).digest("hex");
    if (found !== hash) throw new Error(`${name} in ${file} is another one`);
    return tensor!;
  };
  const parameters: { [name: string]: string } = {};
  for (const [name, file] of Object.entries(weight_map)) {
    const { data } = await tensorOf(file, name, sha256[name]!);
    parameters[name] = Buffer.from(data).toString("hex");
  }
  const states: { [name: string]: string } = {};
  for (const [state, { shape, slices }] of Object.entries(optimizerState)) {
    const tensor = Buffer.alloc(4 * product(shape));
    let elements = 0;
    for (const slice of slices) {
      const { data } = await tensorOf(slice.file, slice.tensor, slice.sha256);
      elements += product(slice.shape);
      copyBlock(Buffer.from(data), slice, tensor, shape);
    }
    if (4 * elements !== tensor.length) throw new Error(`${state} has gaps`);
    states[state] = tensor.toString("hex");
  }
  const bytes = Object.values(parameters).reduce((n, d) => n + d.length / 2, 0);
  if (bytes !== metadata.total_size) throw new Error("another total size");
  const shards = [...new Set(Object.values(weight_map))].sort();
  return {
    step,
    parameters: sorted(parameters),
    optimizerState: sorted(states),
    shards,
  };
}

function sorted(map: { readonly [name: string]: string }) {
  return Object.fromEntries(Object.entries(map).sort());
}

function product(sizes: readonly number[]): number {
  return sizes.reduce((a, b) => a * b, 1);
}

/** Copies a block into a tensor, row by row. */
function copyBlock(
  block: Buffer,
  { start, shape }: {
    readonly start: readonly number[];
    readonly shape: readonly number[];
  },
  tensor: Buffer,
  sizes: readonly number[],
): void {
  // Elements along the last axis are contiguous in both.
  const length = shape.at(-1) ?? 1;
  for (let i = 0; i < product(shape); i += length) {
    let [rest, to, stride] = [i, 0, 1];
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      to += (start[axis]! + rest % shape[axis]!) * stride;
      rest = Math.floor(rest / shape[axis]!);
      stride *= sizes[axis]!;
    }
    block.copy(tensor, 4 * to, 4 * i, 4 * (i + length));
  }
}
