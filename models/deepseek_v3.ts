/**
 * DeepSeek-V3: latent attention, group-limited routing by sigmoids and a bias, a shared expert, and first layers
 * without experts.
 */

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
  predictorTensors,
  requireField,
} from "switchyard-moe/models";
import { type DeepseekConfig, deepseekFields } from "./deepseek.ts";

/** The family of `DeepseekV3ForCausalLM`. */
export const family = defineFamily({
  architectures: ["DeepseekV3ForCausalLM"],
  config: readConfig,
  build: buildDeepseek,
  unused: predictorTensors,
});

/** Reads a config.json of `DeepseekV3ForCausalLM`. Missing fields have transformers' defaults. */
function readConfig(config: Config): DeepseekConfig {
  requireField(config, "topk_method", "noaux_tc");
  requireField(config, "scoring_func", "sigmoid");
  requireField(config, "moe_layer_freq", 1);
  return deepseekFields(config, {
    layers: 61,
    vocabulary: 129280,
    embed: 7168,
    heads: 128,
    denseFfn: 18432,
    ffn: 2048,
    experts: 256,
    sharedExperts: 1,
    expertsPerToken: 8,
    firstSparse: 3,
    routedScale: 2.5,
    normalize: true,
    groups: 8,
    topGroups: 4,
    maxPositions: 4096,
    epsilon: 1e-6,
    interleaved: booleanField(config, "rope_interleave", { default: true }),
  });
}

/** Builds the model of a configuration. */
export function buildDeepseek(
  config: DeepseekConfig,
  options: DecoderOptions,
): Model {
  return decoderModel(config, {
    axes: latentAxes(config),
    attend: (m, rows, layer) => attendLatent(m, rows, layer, config),
    feed: feedShared(config),
  }, options);
}
