/** Models of fuzzed plans, with their weights. */

import { readFile } from "node:fs/promises";
import path from "node:path";
import { compile, type Model } from "../../compiler/mod.ts";
import { storedDTypes } from "../../engine/checkpoint/weights.ts";
import { publishedModel } from "../../models/published.ts";
import { openSafetensors, type TensorDirectory } from "../../runtime/mod.ts";
import type { FileDType } from "../../spec/dtype.ts";
import { checkpointFolder } from "../helpers/checkpoints.ts";
import { randomWeights } from "./runs.ts";
import { tinyConfig } from "../helpers/tiny_training.ts";

/** Model with its weights. */
export interface Checkpoint {
  readonly modelFor: (
    options?: { readonly training: { readonly auxiliary: number } },
  ) => Model;
  readonly tensors: TensorDirectory;
  readonly stored: { readonly [tensor: string]: FileDType };
  /** Token ids are below this. */
  readonly vocabulary: number;
}

const BOUNDS = { maxTokens: 8, maxSequences: 2, maxContext: 8 };

/** Reads the bundled checkpoint. `layers`: number of layers to keep. Default: all. */
export async function demoCheckpoint(layers?: number): Promise<Checkpoint> {
  const folder = checkpointFolder("demo-lm");
  const config = JSON.parse(
    await readFile(path.join(folder, "config.json"), "utf8"),
  ) as { [key: string]: unknown };
  if (layers !== undefined) config["num_hidden_layers"] = layers;
  const bytes = await readFile(path.join(folder, "model.safetensors"));
  const tensors = await openSafetensors([{
    name: "model.safetensors",
    size: bytes.length,
    read: (at, length) =>
      Promise.resolve(new Uint8Array(bytes.subarray(at, at + length))),
  }]);
  return checkpointOf(config, tensors);
}

/** Creates a model of one layer with deterministic weights. A run takes milliseconds. */
export async function smallCheckpoint(): Promise<Checkpoint> {
  const config = await smallConfig();
  const plan = await compile(publishedModel(config).build(BOUNDS));
  return checkpointOf(config, randomWeights(plan));
}

async function smallConfig(): Promise<{ readonly [key: string]: unknown }> {
  return {
    ...await tinyConfig(),
    num_hidden_layers: 1,
    vocab_size: 64,
    hidden_size: 16,
    intermediate_size: 8,
  };
}

function checkpointOf(
  config: { readonly [key: string]: unknown },
  tensors: TensorDirectory,
): Checkpoint {
  const published = publishedModel(config);
  return {
    modelFor: (options = {} as never) =>
      published.build({ ...BOUNDS, ...options }),
    tensors,
    stored: storedDTypes(tensors),
    vocabulary: config["vocab_size"] as number,
  };
}
