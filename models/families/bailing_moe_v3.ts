/**
 * Ling 3.0 (Bailing-MoE v3): groups of layers with Kimi Delta Attention that end in a layer of latent attention with a
 * gate per head. The experts are those of DeepSeek-V3; activations of the last layers are limited.
 */

import { add, type Model } from "switchyard-moe";
import {
  attendLatent,
  type Config,
  decoderFields,
  decoderModel,
  type DecoderOptions,
  defineFamily,
  experts,
  groupEnds,
  ignoreFields,
  integerField,
  type KimiDelta,
  kimiDeltaAttention,
  latentAxes,
  latentFields,
  limitedGlu,
  mlp,
  numbersField,
  predictorTensors,
  readDecayLimit,
  requireField,
  ropeScaling,
  routeShared,
  sharedExperts,
  sparseOrDense,
} from "switchyard-moe/models";
import type { DeepseekConfig } from "./deepseek.ts";

/** The family of `BailingMoeV3ForCausalLM`. */
export const family = defineFamily({
  architectures: ["BailingMoeV3ForCausalLM"],
  config: readConfig,
  build,
  unused: predictorTensors,
});

/** A Ling 3.0 configuration. */
interface BailingMoeV3Config extends DeepseekConfig, KimiDelta {}

/** Reads a config.json. Missing fields have the values of Ling-3.0-flash. */
function readConfig(config: Config): BailingMoeV3Config {
  for (
    const [key, value] of Object.entries({
      use_qkv_bias: false,
      use_bias: false,
      use_mla_nope: false,
      use_nGPT: false,
      value_norm: false,
      up_proj_norm: false,
      scale_router_input: false,
      moe_router_enable_expert_bias: true,
      score_function: "sigmoid",
      scoring_func: "sigmoid",
      topk_method: "noaux_tc",
      norm_topk_prob: true,
      gated_attention_proj_granularity_type: "head_wise",
      no_kda_lora: true,
      kda_safe_gate: true,
      rope_interleave: true,
      group_norm_size: 1,
    })
  ) {
    requireField(config, key, value);
  }
  // The published code does not read these: whole `qk_rope_head_dim` elements are rotated.
  ignoreFields(config, [
    "embedding_dropout",
    "linear_silu",
    "max_window_layers",
    "mtp_loss_scaling_factor",
    "mtp_use_kda",
    "num_key_value_heads",
    "num_kv_heads_for_linear_attn",
    "output_dropout",
    "partial_rotary_factor",
    "qk_head_dim",
    "rotary_dim",
    "router_dtype",
    "use_kda_lora",
    "use_qk_norm",
  ]);
  const size = (key: string, value: number) =>
    integerField(config, key, { default: value });
  const fields = decoderFields(config, {
    layers: 42,
    vocabulary: 157184,
    embed: 2560,
    experts: 512,
    expertsPerToken: 8,
    ffn: 768,
    epsilon: 1e-6,
    maxPositions: 262144,
  }, { experts: "num_experts", ffn: "moe_intermediate_size" });
  const shared = sharedExperts(
    config,
    size("moe_shared_expert_intermediate_size", 768),
    {
      denseFfn: 6144,
      sharedExperts: 1,
      firstSparse: 2,
      routedScale: 2.5,
      normalize: true,
      groups: 8,
      topGroups: 4,
    },
    { sharedExperts: "num_shared_experts" },
  );
  const { partial_rotary_factor: _, ...scaling } = ropeScaling(config);
  const latent = latentFields({
    ...config,
    partial_rotary_factor: undefined,
    rope_scaling: undefined,
    rope_parameters: scaling,
  }, {
    heads: 32,
    interleaved: true,
    queryLatent: null,
    theta: 6000000,
  });
  const endsGroup = groupEnds({
    layers: fields.layers,
    every: size("layer_group_size", 6),
  });
  const isDelta = (layer: number) => !endsGroup(layer);
  const limits = numbersField(config, "expert_swiglu_limit_list");
  const sharedLimits = numbersField(config, "share_expert_swiglu_limit_list");
  return {
    ...latent,
    ...fields,
    ...shared,
    kindOf: (layer) => ({
      ...shared.kindOf(layer),
      mixer: isDelta(layer) ? "delta" : "latent",
      limits: [limits[layer] ?? 0, sharedLimits[layer] ?? 0],
    }),
    deltaHeads: latent.heads,
    deltaDim: size("head_dim", 128),
    taps: integerField(config, "short_conv_kernel_size", {
      default: 4,
      min: 2,
    }),
    decayLimit: readDecayLimit(config, "kda_lower_bound", -5),
    decays: "heads",
    wholeGate: true,
    wholeDecays: true,
    isDelta,
  };
}

/** Builds the model of a configuration. */
function build(config: BailingMoeV3Config, options: DecoderOptions): Model {
  const { sharedFfn } = config;
  const of = { ...config, block: "attention" };
  return decoderModel(config, {
    axes: latentAxes(config),
    names: { embedding: "model.word_embeddings.weight" },
    attend: (m, rows, layer) =>
      layer.kind.mixer === "delta"
        ? kimiDeltaAttention(m, rows, layer, of)
        : attendLatent(m, rows, layer, {
          ...of,
          gate: { name: "g_proj", of: "head" },
          output: "dense",
        }),
    feed: sparseOrDense(config, (m, rows, layer) => {
      const [limit, sharedLimit] = layer.kind.limits ?? [0, 0];
      const routing = routeShared(m, rows, layer, config, {
        bias: "gate.expert_bias",
      });
      return add(
        experts(m, rows, routing, { glu: limitedGlu(limit) }),
        mlp(m, rows, {
          name: "shared_experts",
          ffn: sharedFfn,
          glu: limitedGlu(sharedLimit),
        }),
      );
    }),
  }, options);
}
