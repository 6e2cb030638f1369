/**
 * ERNIE-4.5-VL: ERNIE-4.5-MoE with further experts for images, which texts do not use. Routers are stored for both,
 * that of texts first.
 */

import type { Model } from "switchyard-moe";
import {
  type Config,
  type DecoderOptions,
  defineFamily,
  layerTypes,
  textConfig,
} from "switchyard-moe/models";
import {
  buildErnie,
  type Ernie45MoeConfig,
  readErnie,
} from "./ernie4_5_moe.ts";

/** The family of `Ernie4_5_VLMoeForConditionalGeneration`, text part. */
export const family = defineFamily({
  architectures: ["Ernie4_5_VLMoeForConditionalGeneration"],
  config: readConfig,
  build: (config: Ernie45MoeConfig, options: DecoderOptions): Model =>
    buildErnie(config, options, { modalities: 2 }),
  unused: ({ layers, experts }) => [
    "vision_model.",
    "model.resampler_model.",
    ...Array.from({ length: layers }, (_, layer) => `model.layers.${layer}.mlp`)
      .flatMap((block) => [
        `${block}.gate.weight_1`,
        ...Array.from(
          { length: experts },
          (_, i) => `${block}.experts.${experts + i}.`,
        ),
      ]),
  ],
});

/** Fields that are lists of a number for texts and one for images. */
const PAIRS = [
  "moe_num_experts",
  "moe_intermediate_size",
  "moe_layer_start_index",
  "moe_layer_end_index",
];

/** Reads a config.json. Missing fields have transformers' defaults. */
function readConfig(document: Config): Ernie45MoeConfig {
  const { config } = textConfig(document);
  const pairs = PAIRS.flatMap((key): [string, unknown][] => {
    const value = config[key];
    return Array.isArray(value) ? [[key, value[0]]] : [];
  });
  const fields = readErnie({ ...config, ...Object.fromEntries(pairs) });
  const typeOf = layerTypes(
    config,
    ["dense", "sparse"],
    (layer) => fields.kindOf(layer).experts ? "sparse" : "dense",
    "mlp_layer_types",
  );
  return {
    ...fields,
    kindOf: (layer) => ({ experts: typeOf(layer) === "sparse" }),
  };
}
