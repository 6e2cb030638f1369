/**
 * K-EXAONE: the attention of Qwen3-MoE, with a window in most layers and positions only in these, and the experts of
 * DeepSeek-V3.
 */

import type { Model } from "switchyard-moe";
import {
  attendHeads,
  type Config,
  decoderModel,
  type DecoderOptions,
  defineFamily,
  feedShared,
  groupedAxes,
  type GroupedDecoder,
  groupedFields,
  ignoreFields,
  integerField,
  normHeads,
  projectHeads,
  requireField,
  rotate,
  type SharedExperts,
  sharedExperts,
  slidingLayers,
  windowField,
} from "switchyard-moe/models";

/** The family of `ExaoneMoEForCausalLM`. */
export const family = defineFamily({
  architectures: ["ExaoneMoEForCausalLM", "ExaoneMoeForCausalLM"],
  config: readConfig,
  build,
  unused: () => ["mtp."],
});

/** A K-EXAONE configuration. */
interface ExaoneMoeConfig extends GroupedDecoder, SharedExperts {}

/** Reads a config.json of K-EXAONE. Missing fields have transformers' defaults. */
function readConfig(config: Config): ExaoneMoeConfig {
  requireField(config, "scoring_func", "sigmoid");
  requireField(config, "topk_method", "noaux_tc");
  ignoreFields(config, ["is_moe_layer", "mtp_loss_scaling_factor"]);
  const fields = groupedFields(config, {
    layers: 32,
    vocabulary: 102400,
    embed: 4096,
    heads: 32,
    experts: 64,
    expertsPerToken: 8,
    ffn: 1024,
    epsilon: 1e-5,
    theta: 10000,
    maxPositions: 2048,
  }, { experts: "num_experts", ffn: "moe_intermediate_size" });
  const shared = sharedExperts(config, fields.ffn, {
    denseFfn: 16384,
    sharedExperts: 1,
    firstSparse: 1,
    routedScale: 2.5,
    normalize: true,
  }, { sharedExperts: "num_shared_experts" });
  const window = windowField(config, { default: 4096 });
  // With a list of layers, the pattern is a repetition of it, such as "LLLG".
  const listed = Array.isArray(config["layer_types"]);
  if (listed) ignoreFields(config, ["sliding_window_pattern"]);
  const every = listed
    ? 4
    : integerField(config, "sliding_window_pattern", { default: 4 });
  const slides = slidingLayers(config, (layer) => (layer + 1) % every !== 0);
  return {
    ...fields,
    ...shared,
    kindOf: (layer) => ({
      ...shared.kindOf(layer),
      window: slides(layer) ? window : undefined,
      rotated: slides(layer),
    }),
  };
}

/** Builds the model of a configuration. */
function build(config: ExaoneMoeConfig, options: DecoderOptions): Model {
  return decoderModel(config, {
    axes: groupedAxes(config),
    attend: (m, rows, layer) =>
      m.block("self_attn", {}, (m) => {
        const { rotated, window } = layer.kind;
        const heads = normHeads(m, projectHeads(m, rows), config);
        const ready = rotated ? rotate(heads, config.rotary, layer) : heads;
        return attendHeads(m, ready, layer, { window });
      }),
    feed: feedShared(config, { bias: "e_score_correction_bias" }),
  }, options);
}
