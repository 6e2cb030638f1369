/** OLMoE: norms over whole queries and keys, optional clipping, and expert weights directly from the softmax. */

import { clamp, type Model } from "switchyard-moe";
import {
  attendHeads,
  booleanField,
  type Config,
  decoderModel,
  type DecoderOptions,
  defineFamily,
  experts,
  groupedAxes,
  type GroupedDecoder,
  groupedFields,
  normAllHeads,
  optionalField,
  project,
  requireField,
  rotate,
  routeLayer,
  splitHeads,
} from "switchyard-moe/models";

/** The family of `OlmoeForCausalLM`. */
export const family = defineFamily({
  architectures: ["OlmoeForCausalLM"],
  config: readConfig,
  build,
});

/** An OLMoE configuration. */
interface OlmoeConfig extends GroupedDecoder {
  /** Divide the weights of a token's experts by their sum. */
  readonly normalize: boolean;
  /** Queries, keys and values are clipped to ± this value. Undefined: no clipping. */
  readonly clip: number | undefined;
}

/** Reads a config.json of `OlmoeForCausalLM`. Missing fields have transformers' defaults. */
function readConfig(config: Config): OlmoeConfig {
  requireField(config, "attention_bias", false);
  const { head_dim: _, ...rest } = config;
  return {
    ...groupedFields(rest, {
      layers: 16,
      vocabulary: 50304,
      embed: 2048,
      heads: 16,
      experts: 64,
      expertsPerToken: 8,
      ffn: 2048,
      epsilon: 1e-5,
      theta: 10000,
      maxPositions: 4096,
    }, { experts: "num_experts", ffn: "intermediate_size" }),
    normalize: booleanField(config, "norm_topk_prob", { default: false }),
    clip: optionalField(config, "clip_qkv"),
  };
}

/** Builds the model of a configuration. */
function build(config: OlmoeConfig, options: DecoderOptions): Model {
  const { clip = Infinity } = config;
  return decoderModel(config, {
    axes: groupedAxes(config),
    attend: (m, rows, layer) =>
      m.block("self_attn", {}, (m) => {
        const { q, k, v } = normAllHeads(m, project(m, rows), config);
        const heads = splitHeads({
          q: clamp(q, -clip, clip),
          k: clamp(k, -clip, clip),
          v: clamp(v, -clip, clip),
        });
        return attendHeads(m, rotate(heads, config.rotary, layer), layer);
      }),
    feed: (m, rows, layer) =>
      m.block("mlp", { ffn: config.ffn }, (m) => {
        const routing = routeLayer(m, rows, layer, {
          topK: config.expertsPerToken,
          preset: "olmoe",
          normalize: config.normalize ? "chosen" : "none",
        });
        return experts(m, rows, routing);
      }),
  }, options);
}
