/** A.X K1: DeepSeek-V3 with a norm after the experts. */

import type { Model } from "switchyard-moe";
import {
  attendLatent,
  booleanField,
  type Config,
  decoderModel,
  type DecoderOptions,
  defineFamily,
  feedShared,
  latentAxes,
  layersWhere,
  predictorTensors,
  requireField,
} from "switchyard-moe/models";
import {
  DEEPSEEK_V3,
  type DeepseekConfig,
  deepseekFields,
} from "./deepseek.ts";

/** The family of `AXK1ForCausalLM`. */
export const family = defineFamily({
  architectures: ["AXK1ForCausalLM"],
  config: readConfig,
  build,
  unused: (config) => [...predictorTensors(config), ...unusedNorms(config)],
});

/** Reads a config.json of `AXK1ForCausalLM`. Missing fields have transformers' defaults. */
function readConfig(config: Config): DeepseekConfig {
  requireField(config, "topk_method", "noaux_tc");
  requireField(config, "scoring_func", "sigmoid");
  requireField(config, "moe_layer_freq", 1);
  return deepseekFields(config, {
    ...DEEPSEEK_V3,
    vocabulary: 163840,
    heads: 64,
    experts: 192,
    firstSparse: 1,
    maxPositions: 32768,
    interleaved: booleanField(config, "rope_interleave", { default: true }),
  });
}

/** Returns the norms that published checkpoints have in layers without experts. */
function unusedNorms({ layers, kindOf }: DeepseekConfig): string[] {
  return layersWhere(layers, (layer) => !kindOf(layer).experts)
    .map((layer) => `model.layers.${layer}.post_mlp_layernorm.`);
}

/** Builds the model of a configuration. */
function build(config: DeepseekConfig, options: DecoderOptions): Model {
  const feed = feedShared(config);
  return decoderModel(config, {
    axes: latentAxes(config),
    attend: (m, rows, layer) => attendLatent(m, rows, layer, config),
    feed(m, rows, layer) {
      const y = feed(m, rows, layer);
      return layer.kind.experts
        ? layer.norm(m, y, "post_mlp_layernorm.weight")
        : y;
    },
  }, options);
}
