/** Hunyuan 3 (Hy3): the attention of Qwen3-MoE, with the experts of DeepSeek-V3. */

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
  normHeads,
  predictorTensors,
  projectHeads,
  requireField,
  rotate,
  type SharedExperts,
  sharedExperts,
} from "switchyard-moe/models";

/** The family of `HYV3ForCausalLM`. */
export const family = defineFamily({
  architectures: ["HYV3ForCausalLM"],
  config: readConfig,
  build,
  unused: predictorTensors,
});

/** A Hunyuan 3 configuration. */
interface HyV3Config extends GroupedDecoder, SharedExperts {}

/** Reads a config.json of `HYV3ForCausalLM`. Missing fields have transformers' defaults. */
function readConfig(config: Config): HyV3Config {
  requireField(config, "attention_bias", false);
  requireField(config, "mlp_bias", false);
  requireField(config, "qk_norm", true);
  requireField(config, "route_norm", true);
  requireField(config, "moe_router_use_sigmoid", true);
  requireField(config, "moe_router_enable_expert_bias", true);
  ignoreFields(config, [
    "enable_attention_fp32_softmax",
    "enable_lm_head_fp32",
    "enable_moe_fp32_combine",
    "use_grouped_mm",
  ]);
  const fields = groupedFields(config, {
    layers: 80,
    vocabulary: 120832,
    embed: 4096,
    heads: 64,
    kvHeads: 8,
    headDim: 128,
    experts: 192,
    expertsPerToken: 8,
    ffn: 1536,
    epsilon: 1e-5,
    theta: 11158840,
    maxPositions: 131072,
  }, { experts: "num_experts", ffn: "moe_intermediate_size" });
  return {
    ...fields,
    ...sharedExperts(config, fields.ffn, {
      denseFfn: 13312,
      sharedExperts: 1,
      firstSparse: 1,
      routedScale: 2.826,
      normalize: true,
    }, {
      sharedExperts: "num_shared_experts",
      routedScale: "router_scaling_factor",
    }),
  };
}

/** Builds the model of a configuration. */
function build(config: HyV3Config, options: DecoderOptions): Model {
  return decoderModel(config, {
    axes: groupedAxes(config),
    attend: (m, rows, layer) =>
      m.block("self_attn", {}, (m) => {
        const heads = normHeads(m, projectHeads(m, rows), config);
        return attendHeads(m, rotate(heads, config.rotary, layer), layer);
      }),
    feed: feedShared(config, {
      router: "router.gate",
      bias: "expert_bias",
      shared: "shared_mlp",
    }),
  }, options);
}
