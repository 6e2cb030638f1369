/**
 * Qwen3-MoE, also as the text model of Qwen3-VL-MoE: queries and keys normalized per head, and optional layers without
 * experts.
 */

import type { Model } from "switchyard-moe";
import {
  attendHeads,
  type Config,
  decoderModel,
  type DecoderOptions,
  defineFamily,
  experts,
  fusedExperts,
  groupedAxes,
  normHeads,
  projectHeads,
  requireField,
  requireLayerTypes,
  rotate,
  routeLayer,
  sparseOrDense,
  textConfig,
  WRAPPED,
} from "switchyard-moe/models";
import { type QwenConfig, qwenFields } from "./qwen.ts";

/** The family of `Qwen3MoeForCausalLM`, and of `Qwen3VLMoeForConditionalGeneration`, text part. */
export const family = defineFamily({
  architectures: ["Qwen3MoeForCausalLM", "Qwen3VLMoeForConditionalGeneration"],
  config: readConfig,
  build,
  unused: ({ wrapped }) => wrapped ? ["model.visual."] : [],
});

/** A Qwen3-MoE configuration. */
interface Qwen3MoeConfig extends QwenConfig {
  /** Tensors have the names of a model of text and images, and one tensor has the matrices of all experts. */
  readonly wrapped: boolean;
}

/** Reads a config.json of either. Missing fields have transformers' defaults, but sizes are those of Qwen3-MoE. */
function readConfig(document: Config): Qwen3MoeConfig {
  const { config, wrapped } = textConfig(document);
  if (wrapped) requireField(config, "norm_topk_prob", true);
  requireField(config, "attention_bias", false);
  requireField(config, "qkv_bias", false);
  requireField(config, "use_qk_norm", true);
  requireField(config, "shared_expert_intermediate_size", 0);
  requireLayerTypes(config, () => "full_attention");
  const fields = qwenFields(config, {
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
    normalize: wrapped,
  });
  return { ...fields, wrapped };
}

/** Builds the model of a configuration. */
function build(
  config: Qwen3MoeConfig,
  options: DecoderOptions,
): Model {
  const { ffn, wrapped } = config;
  return decoderModel(config, {
    axes: groupedAxes(config),
    names: wrapped ? WRAPPED : {},
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
      return wrapped
        ? fusedExperts(m, rows, routing, {
          ffn,
          inward: "experts.gate_up_proj",
          outward: "experts.down_proj",
          transposed: true,
        })
        : experts(m, rows, routing);
    }),
  }, options);
}
