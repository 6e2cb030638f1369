/** A checkpoint with the shape of a published configuration in bf16 and fewer layers, with random weights. */

import { compile, paramFacts, trace } from "../../compiler/mod.ts";
import { publishedModel } from "../../models/published.ts";
import { sourceNames } from "../../spec/axis_parts.ts";
import { sum } from "../../spec/sum.ts";
import { partsOf } from "./olmoe.ts";

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

/** Returns the bytes of weights that a one-token step reads. */
export function publishedStepBytes(config: PublishedConfig): number {
  const facts = paramFacts(trace(modelOf(config)));
  // Of a table, one row is read.
  return 2 * sum(
    facts.filter(({ use }) => use !== "table")
      .map(({ active }) => active),
  );
}

/** Writes the files of a checkpoint. */
export async function writePublished(
  config: PublishedConfig,
  { write }: { write(name: string, parts: Iterable<Uint8Array>): void },
): Promise<void> {
  const plan = await compile(modelOf(config), { overLimits: true });
  const tensors = plan.weights.flatMap((weight) =>
    sourceNames(plan, weight).map((name) => ({ name, shape: weight.shape }))
  );
  write("model.safetensors", partsOf(tensors));
  write("config.json", [Buffer.from(JSON.stringify(config))]);
}

function modelOf(config: PublishedConfig) {
  return publishedModel(config)
    .build({ maxTokens: 64, maxSequences: 1, maxContext: 256 });
}
