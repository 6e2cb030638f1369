/**
 * Qwen3-MoE, also as the text model of Qwen3-VL-MoE and Qwen3-Omni-MoE: queries and keys normalized per head, and
 * optional layers without experts.
 */

import type { Model } from "switchyard-moe";
import {
  attendHeads,
  type Config,
  decoderModel,
  type DecoderNames,
  type DecoderOptions,
  defineFamily,
  experts,
  fusedExperts,
  groupedAxes,
  innerConfig,
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

/** The family of `Qwen3MoeForCausalLM`, and of two models with other modalities, text part. */
export const family = defineFamily({
  architectures: [
    "Qwen3MoeForCausalLM",
    "Qwen3VLMoeForConditionalGeneration",
    "Qwen3OmniMoeForConditionalGeneration",
  ],
  config: readConfig,
  build,
  unused: ({ layout }) => UNUSED[layout],
});

/** Names and layout of the tensors: of Qwen3-MoE, Qwen3-VL-MoE or Qwen3-Omni-MoE. */
type Layout = "plain" | "vision" | "omni";

const NAMES: { readonly [L in Layout]: Partial<DecoderNames> } = {
  plain: {},
  vision: WRAPPED,
  omni: {
    embedding: "thinker.model.embed_tokens.weight",
    layer: "thinker.model.layers",
    norm: "thinker.model.norm.weight",
    output: "thinker.lm_head.weight",
  },
};

const UNUSED: { readonly [L in Layout]: readonly string[] } = {
  plain: [],
  vision: ["model.visual."],
  omni: ["thinker.audio_tower.", "thinker.visual.", "talker.", "code2wav."],
};

/** A Qwen3-MoE configuration. */
interface Qwen3MoeConfig extends QwenConfig {
  readonly layout: Layout;
}

/** Reads a config.json. Missing fields have transformers' defaults, but sizes are those of Qwen3-MoE. */
function readConfig(document: Config): Qwen3MoeConfig {
  const thinker = innerConfig(document, "thinker_config");
  const { config, wrapped } = textConfig(thinker ?? document);
  const layout = thinker ? "omni" : wrapped ? "vision" : "plain";
  if (layout === "vision") requireField(config, "norm_topk_prob", true);
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
  return { ...fields, layout };
}

/** Builds the model of a configuration. */
function build(
  config: Qwen3MoeConfig,
  options: DecoderOptions,
): Model {
  const { ffn, layout } = config;
  return decoderModel(config, {
    axes: groupedAxes(config),
    names: NAMES[layout],
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
      return layout === "vision"
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
