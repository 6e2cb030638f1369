/** DeepSeek-V3: V2 with a router of sigmoids, whose bias steers choices and not weights, and groups by their two best. */

import type { Model } from "../compiler/mod.ts";
import {
  booleanField,
  type Config,
  type DecoderOptions,
  requireField,
} from "./config.ts";
import {
  type DeepseekConfig,
  deepseekFields,
  deepseekModel,
} from "./deepseek.ts";

/** A DeepSeek-V3 configuration. */
export interface DeepseekV3Config extends DeepseekConfig {
  /** Weights of a token's experts are divided by their sum. */
  readonly normalize: boolean;
}

/** Read a config.json of `DeepseekV3ForCausalLM`. What it leaves out has transformers' defaults. */
export function deepseekV3Config(config: Config): DeepseekV3Config {
  requireField(config, "topk_method", "noaux_tc");
  requireField(config, "scoring_func", "sigmoid");
  requireField(config, "moe_layer_freq", 1);
  requireField(config, "quantization_config", null);
  return {
    ...deepseekFields(config, {
      ...{ layers: 61, vocabulary: 129280, embed: 7168, heads: 128 },
      ...{ denseFfn: 18432, ffn: 2048, experts: 256, sharedExperts: 1 },
      ...{ expertsPerToken: 8, firstSparse: 3, routedScale: 2.5 },
      ...{ groups: 8, keptGroups: 4, maxPositions: 4096, epsilon: 1e-6 },
      interleaved: booleanField(config, "rope_interleave", true),
    }),
    normalize: booleanField(config, "norm_topk_prob", true),
  };
}

/** The model of a configuration. */
export function deepseekV3(
  config: DeepseekV3Config,
  options: DecoderOptions,
): Model {
  return deepseekModel(config, options, (m, gate) => ({
    topK: config.expertsPerToken,
    preset: "deepseekV3",
    bias: m.param(`${gate}.e_score_correction_bias`, "expert"),
    normalize: config.normalize ? "chosen" : "none",
  }));
}
