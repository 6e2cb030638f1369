/** MiniMax-M2: norms over whole queries and keys, partial rotation of heads, and routing by sigmoids and a bias. */

import type { Model } from "switchyard-moe";
import {
  attendHeads,
  type Config,
  decoderModel,
  type DecoderOptions,
  defineFamily,
  experts,
  fieldError,
  groupedAxes,
  type GroupedDecoder,
  groupedFields,
  ignoreFields,
  integersField,
  normAllHeads,
  NUMBERED,
  project,
  requireField,
  rotate,
  routeLayer,
  splitHeads,
} from "switchyard-moe/models";

/** The family of `MiniMaxM2ForCausalLM`. */
export const family = defineFamily({
  architectures: ["MiniMaxM2ForCausalLM"],
  config: readConfig,
  build,
});

/** Reads a config.json of `MiniMaxM2ForCausalLM`. Missing fields have transformers' defaults. */
function readConfig(config: Config): GroupedDecoder {
  requireField(config, "scoring_func", "sigmoid");
  requireField(config, "use_qk_norm", true);
  requireField(config, "qk_norm_type", "per_layer");
  requireField(config, "use_routing_bias", true);
  requireField(config, "shared_intermediate_size", 0);
  requireField(config, "sliding_window", null);
  const kinds = integersField(config, "attn_type_list") ?? [];
  if (kinds.some((kind) => kind !== 1)) {
    throw fieldError("attn_type_list", kinds, "a list of ones");
  }
  ignoreFields(config, [
    "use_mtp",
    "num_mtp_modules",
    "mtp_transformer_layers",
  ]);
  return groupedFields(config, {
    layers: 62,
    vocabulary: 200064,
    embed: 3072,
    heads: 48,
    kvHeads: 8,
    headDim: 128,
    experts: 256,
    expertsPerToken: 8,
    ffn: 1536,
    epsilon: 1e-6,
    theta: 5e6,
    part: 1,
    maxPositions: 196608,
  }, { experts: "num_local_experts", ffn: "intermediate_size" });
}

/** Builds the model of a configuration. */
function build(
  config: GroupedDecoder,
  options: DecoderOptions,
): Model {
  return decoderModel(config, {
    axes: groupedAxes(config),
    attend: (m, rows, layer) =>
      m.block("self_attn", {}, (m) => {
        const heads = splitHeads(normAllHeads(m, project(m, rows), config));
        return attendHeads(m, rotate(heads, config.rotary, layer), layer);
      }),
    feed: (m, rows, layer) =>
      m.block("block_sparse_moe", { ffn: config.ffn }, (m) => {
        const routing = routeLayer(m, rows, layer, {
          topK: config.expertsPerToken,
          score: "sigmoid",
          bias: m.param("e_score_correction_bias", "expert"),
          normalize: "chosen",
        });
        return experts(m, rows, routing, { names: NUMBERED });
      }),
    predictor: {
      missing:
        "published checkpoints of MiniMax-M2 do not have the layers that their config.json declares",
    },
  }, options);
}
