/** Qwen3-MoE: queries and keys normalized per head, and optional layers without experts. */

import type { Model } from "switchyard-moe";
import {
  attendHeads,
  type Config,
  decoderModel,
  type DecoderOptions,
  defineFamily,
  experts,
  groupedAxes,
  normHeads,
  projectHeads,
  requireField,
  requireLayerTypes,
  rotate,
  routeLayer,
  sparseOrDense,
} from "switchyard-moe/models";
import { type QwenConfig, qwenFields } from "./qwen.ts";

/** The family of `Qwen3MoeForCausalLM`. */
export const family = defineFamily({
  architectures: ["Qwen3MoeForCausalLM"],
  config: readConfig,
  build,
});

/** A Qwen3-MoE configuration. */
type Qwen3MoeConfig = QwenConfig;

/** Reads a config.json of `Qwen3MoeForCausalLM`. Missing fields have transformers' defaults. */
function readConfig(config: Config): Qwen3MoeConfig {
  requireField(config, "attention_bias", false);
  requireField(config, "qkv_bias", false);
  requireField(config, "use_qk_norm", true);
  requireField(config, "shared_expert_intermediate_size", 0);
  requireLayerTypes(config, () => "full_attention");
  return qwenFields(config, {
    layers: 24,
    vocabulary: 151936,
    embed: 2048,
    heads: 32,
    kvHeads: 4,
    experts: 128,
    expertsPerToken: 8,
    ffn: 768,
    denseFfn: 6144,
    epsilon: 1e-6,
    theta: 10000,
    maxPositions: 32768,
  });
}

/** Builds the model of a configuration. */
function build(
  config: Qwen3MoeConfig,
  options: DecoderOptions,
): Model {
  return decoderModel(config, {
    axes: groupedAxes(config),
    attend: (m, rows, layer) =>
      m.block("self_attn", {}, (m) => {
        const heads = normHeads(m, projectHeads(m, rows), config);
        return attendHeads(m, rotate(heads, config.rotary, layer), layer);
      }),
    feed: sparseOrDense(config, (m, rows, layer) => {
      const routing = routeLayer(m, rows, layer, {
        topK: config.expertsPerToken,
        preset: "qwen3Moe",
        normalize: config.normalize ? "chosen" : "none",
      });
      return experts(m, rows, routing);
    }),
  }, options);
}
