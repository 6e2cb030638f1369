/** GLM-4.7-Flash: the latent attention and the experts of DeepSeek-V3, with other sizes. */

import {
  booleanField,
  type Config,
  defineFamily,
  predictorTensors,
  requireField,
} from "switchyard-moe/models";
import { type DeepseekConfig, deepseekFields } from "./deepseek.ts";
import { buildDeepseek } from "./deepseek_v3.ts";

/** The family of `Glm4MoeLiteForCausalLM`. */
export const family = defineFamily({
  architectures: ["Glm4MoeLiteForCausalLM"],
  config: readConfig,
  build: buildDeepseek,
  unused: predictorTensors,
});

/** Reads a config.json of `Glm4MoeLiteForCausalLM`. Missing fields have transformers' defaults. */
function readConfig(config: Config): DeepseekConfig {
  requireField(config, "topk_method", "noaux_tc");
  return deepseekFields(config, {
    layers: 47,
    vocabulary: 154880,
    embed: 2048,
    heads: 20,
    nope: 192,
    value: 256,
    queryLatent: 768,
    denseFfn: 10240,
    ffn: 1536,
    experts: 64,
    sharedExperts: 1,
    expertsPerToken: 4,
    firstSparse: 1,
    routedScale: 1.8,
    normalize: true,
    maxPositions: 202752,
    epsilon: 1e-5,
    interleaved: booleanField(config, "rope_interleave", { default: true }),
  });
}
