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
  type DecoderNames,
  type DecoderOptions,
  defineFamily,
  feedShared,
  latentAxes,
  nextLayer,
  predictorTensors,
  requireField,
} from "switchyard-moe/models";
import {
  DEEPSEEK_V3,
  type DeepseekConfig,
  deepseekFields,
} from "./deepseek.ts";

/** The family of `DeepseekV3ForCausalLM`. */
export const family = defineFamily({
  architectures: ["DeepseekV3ForCausalLM"],
  config: readDeepseekV3,
  build: buildDeepseek,
  unused: predictorTensors,
});

/** Reads a config.json of `DeepseekV3ForCausalLM`. Missing fields have transformers' defaults. */
export function readDeepseekV3(config: Config): DeepseekConfig {
  requireField(config, "topk_method", "noaux_tc");
  requireField(config, "scoring_func", "sigmoid");
  requireField(config, "moe_layer_freq", 1);
  return deepseekFields(config, {
    ...DEEPSEEK_V3,
    interleaved: booleanField(config, "rope_interleave", { default: true }),
  });
}

/** Builds the model of a configuration. `names`: those of tensors, if they differ. */
export function buildDeepseek(
  config: DeepseekConfig,
  options: DecoderOptions,
  names: Partial<DecoderNames> = {},
): Model {
  return decoderModel(config, {
    axes: latentAxes(config),
    attend: (m, rows, layer) => attendLatent(m, rows, layer, config),
    feed: feedShared(config),
    names,
    predictor: nextLayer(config, names.layer),
  }, options);
}
