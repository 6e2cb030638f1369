/** A checkpoint with the shape of a published configuration in bf16 and fewer layers, with random weights. */

import { compile, paramFacts, trace } from "../../compiler/mod.ts";
import { publishedModel } from "../../models/published.ts";
import { sourceNames } from "../../spec/axis_parts.ts";
import { sum } from "../../spec/sum.ts";
import { compiledAs, readStoredAs } from "../../engine/checkpoint/stored_as.ts";
import type { Plan, PlanWeight } from "../../spec/plan/plan.ts";
import { partsOf, type Tensor, tensorBytes } from "./olmoe.ts";

/** A config.json. */
export interface PublishedConfig {
  readonly [key: string]: unknown;
  readonly text_config?: { readonly [key: string]: unknown };
}

/** The configuration with another number of layers; of a multimodal model, that of its text model. */
export function withLayers(
  config: PublishedConfig,
  layers: number,
): PublishedConfig {
  const kinds = config["layer_types"];
  const text = config.text_config;
  return {
    ...config,
    ...text ? { text_config: withLayers(text, layers) } : {
      num_hidden_layers: layers,
      ...Array.isArray(kinds) ? { layer_types: kinds.slice(0, layers) } : {},
    },
  };
}

/** Writes the files of a checkpoint with the storage dtypes of the configuration, in the order of the model. */
export async function writePublished(
  config: PublishedConfig,
  { write, shards = 1 }: {
    write(name: string, parts: Iterable<Uint8Array>): void;
    /** Number of weight files. */
    readonly shards?: number;
  },
): Promise<void> {
  const plan = await planOf(config);
  const tensors = plan.weights.flatMap((weight) =>
    sourceNames(plan, weight).map((name): Tensor => ({
      name,
      ...tensorOf(weight),
    }))
  );
  const all = sum(tensors.map(tensorBytes));
  const files: Tensor[][] = [[]];
  let bytes = 0;
  for (const tensor of tensors) {
    if (bytes > all / shards * files.length) files.push([]);
    files.at(-1)!.push(tensor);
    bytes += tensorBytes(tensor);
  }
  const nameOf = (i: number) =>
    shards === 1 ? "model.safetensors" : `model-${i + 1}.safetensors`;
  for (const [i, tensors] of files.entries()) {
    tensors.sort((a, b) => a.name < b.name ? -1 : 1);
    write(nameOf(i), partsOf(tensors));
  }
  const map = files.flatMap((tensors, i) =>
    tensors.map(({ name }) => [name, nameOf(i)])
  );
  if (shards > 1) {
    const index = { weight_map: Object.fromEntries(map) };
    const text = JSON.stringify(index);
    write("model.safetensors.index.json", [Buffer.from(text)]);
  }
  write("config.json", [Buffer.from(JSON.stringify(config))]);
}

/** Bytes of all weights, and bytes of weights that one token uses. */
export async function publishedBytes(
  config: PublishedConfig,
): Promise<{ readonly all: number; readonly used: number }> {
  const plan = await planOf(config);
  const { num_experts_per_tok: topK } = config.text_config ?? config;
  const weights = plan.weights.map((weight) => {
    const name = weight.stack ?? weight.axes[0]!;
    const { experts, size } = plan.axes[name]!;
    const copies = weight.stack === undefined ? 1 : size;
    const all = copies * tensorBytes({ name: "", ...tensorOf(weight) });
    const isTable = weight.source.includes("embed_tokens");
    return {
      all,
      used: isTable ? 0 : experts ? all * Number(topK) / size : all,
    };
  });
  return {
    all: sum(weights.map(({ all }) => all)),
    used: sum(weights.map(({ used }) => used)),
  };
}

/** A tensor of a weight: words are stored as bytes. */
function tensorOf({ stored, shape }: PlanWeight): Omit<Tensor, "name"> {
  if (stored !== "u32" && stored !== "u8") return { shape };
  const bytes = stored === "u32" ? 4 : 1;
  const last = shape.length - 1;
  return {
    shape: shape.map((n, i) => i === last ? bytes * n : n),
    dtype: "U8",
  };
}

async function planOf(config: PublishedConfig): Promise<Plan> {
  const model = modelOf(config);
  const stored = readStoredAs(config, undefined);
  return await compile(model, {
    overLimits: true,
    weights: compiledAs(stored, paramFacts(trace(model))),
  });
}

function modelOf(config: PublishedConfig) {
  return publishedModel(config)
    .build({ maxTokens: 64, maxSequences: 1, maxContext: 256 });
}
