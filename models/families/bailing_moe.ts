/**
 * Ling 2.0 and Ring (Bailing-MoE v2): grouped-query attention with one matrix for queries, keys and values, rotating a
 * part of each head, and the experts of DeepSeek-V3.
 */

import { dot, type Model, slice, split } from "switchyard-moe";
import {
  attendHeads,
  booleanField,
  type Config,
  decoderModel,
  type DecoderOptions,
  defineFamily,
  feedShared,
  groupedAxes,
  type GroupedDecoder,
  groupedFields,
  ignoreFields,
  normHeads,
  predictorTensors,
  requireField,
  rotate,
  type SharedExperts,
  sharedExperts,
} from "switchyard-moe/models";

/** The family of `BailingMoeV2ForCausalLM`. */
export const family = defineFamily({
  architectures: ["BailingMoeV2ForCausalLM"],
  config: readConfig,
  build,
  unused: predictorTensors,
});

/** A Ling 2.0 configuration. */
interface BailingMoeConfig extends GroupedDecoder, SharedExperts {
  /** Queries and keys are normalized per head. */
  readonly normed: boolean;
}

/** Reads a config.json of `BailingMoeV2ForCausalLM`. Missing fields have the defaults of the published code. */
function readConfig(config: Config): BailingMoeConfig {
  requireField(config, "use_qkv_bias", false);
  requireField(config, "use_bias", false);
  requireField(config, "moe_router_enable_expert_bias", true);
  requireField(config, "score_function", "sigmoid");
  requireField(config, "norm_topk_prob", true);
  ignoreFields(config, [
    "use_rmsnorm",
    "max_window_layers",
    "moe_shared_expert_intermediate_size",
    "mtp_loss_scaling_factor",
    "router_dtype",
    "norm_head",
    "norm_softmax",
  ]);
  const fields = groupedFields(config, {
    layers: 20,
    vocabulary: 157184,
    embed: 2048,
    heads: 16,
    kvHeads: 4,
    headDim: 128,
    experts: 256,
    expertsPerToken: 8,
    ffn: 512,
    epsilon: 1e-6,
    theta: 600000,
    part: 1,
    maxPositions: 32768,
  }, { experts: "num_experts", ffn: "moe_intermediate_size" });
  return {
    ...fields,
    ...sharedExperts(config, fields.ffn, {
      denseFfn: 5120,
      sharedExperts: 1,
      firstSparse: 1,
      routedScale: 1,
      normalize: true,
      groups: 8,
      topGroups: 4,
    }, { sharedExperts: "num_shared_experts" }),
    normed: booleanField(config, "use_qk_norm", { default: true }),
  };
}

/** Builds the model of a configuration. */
function build(config: BailingMoeConfig, options: DecoderOptions): Model {
  const { heads, kvHeads, epsilon, normed } = config;
  return decoderModel(config, {
    axes: {
      ...groupedAxes(config),
      allHead: heads + 2 * kvHeads,
      fused: (heads + 2 * kvHeads) * config.headDim,
    },
    names: { embedding: "model.word_embeddings.weight" },
    attend: (m, rows, layer) =>
      m.block("attention", {}, (m) => {
        const matrix = m.param("query_key_value.weight", "fused embed");
        const all = split(
          dot(rows, matrix, "embed"),
          "fused",
          "allHead headDim",
        );
        const projected = {
          q: slice(all, "allHead", 0, "head"),
          k: slice(all, "allHead", heads, "kvHead"),
          v: slice(all, "allHead", heads + kvHeads, "kvHead"),
        };
        const ready = normed
          ? normHeads(m, projected, {
            epsilon,
            names: ["query_layernorm", "key_layernorm"],
          })
          : projected;
        return attendHeads(m, rotate(ready, config.rotary, layer), layer, {
          block: "attention",
          output: "dense",
        });
      }),
    feed: feedShared(config, { bias: "gate.expert_bias" }),
  }, options);
}
