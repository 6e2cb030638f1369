/** Qwen2-MoE: biases on queries, keys and values, a gated shared expert, and layers without experts. */

import type { Model } from "switchyard-moe";
import {
  attendHeads,
  booleanField,
  type Config,
  decoderModel,
  type DecoderOptions,
  defineFamily,
  experts,
  groupedAxes,
  integerField,
  projectHeads,
  requireLayerTypes,
  rotate,
  sparseOrDense,
} from "switchyard-moe/models";
import { feedGated, type QwenConfig, qwenFields } from "./qwen.ts";

/** The family of `Qwen2MoeForCausalLM`. */
export const family = defineFamily({
  architectures: ["Qwen2MoeForCausalLM"],
  config: readConfig,
  build,
});

/** A Qwen2-MoE configuration. */
interface Qwen2MoeConfig extends QwenConfig {
  /** Hidden size of the shared expert. */
  readonly sharedFfn: number;
  /** Queries, keys and values have biases. */
  readonly bias: boolean;
}

/** Reads a config.json of `Qwen2MoeForCausalLM`. Missing fields have transformers' defaults. */
function readConfig(config: Config): Qwen2MoeConfig {
  requireLayerTypes(config, () => "full_attention");
  return {
    ...qwenFields(config, {
      layers: 24,
      vocabulary: 151936,
      embed: 2048,
      heads: 16,
      kvHeads: 16,
      experts: 60,
      expertsPerToken: 4,
      ffn: 1408,
      denseFfn: 5632,
      epsilon: 1e-6,
      theta: 10000,
      maxPositions: 32768,
    }),
    sharedFfn: integerField(config, "shared_expert_intermediate_size", {
      default: 5632,
    }),
    bias: booleanField(config, "qkv_bias", { default: true }),
  };
}

/** Builds the model of a configuration. */
function build(
  config: Qwen2MoeConfig,
  options: DecoderOptions,
): Model {
  const { bias, sharedFfn } = config;
  return decoderModel(config, {
    axes: groupedAxes(config),
    attend: (m, rows, layer) =>
      m.block("self_attn", {}, (m) => {
        const heads = projectHeads(m, rows, { bias });
        return attendHeads(m, rotate(heads, config.rotary, layer), layer);
      }),
    feed: sparseOrDense(config, (m, rows, layer) =>
      feedGated(m, rows, layer, {
        topK: config.expertsPerToken,
        normalize: config.normalize,
        sharedFfn,
        experts: (routing) => experts(m, rows, routing),
      })),
  }, options);
}
