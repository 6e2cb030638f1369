/** Rows of families with the experts of DeepSeek-V3 and other attention: Trinity, Ling 2.0, K-EXAONE and Hunyuan 3. */

import type { GgufArchitecture } from "../architecture.ts";
import {
  DENSE,
  EXPERTS,
  SHARED,
  SIGMOID,
  SPARSE_FIELDS,
} from "../common_names.ts";
import { FULL, SLIDING, slidingTypes, windowKeys } from "../layer_types.ts";

/** Fields of families that call the numbers of experts so. */
const FIELDS = {
  ...SPARSE_FIELDS,
  num_experts: "expert_count",
  num_shared_experts: "expert_shared_count",
} as const;

/** Every fourth layer has no window. */
const PATTERN = [SLIDING, SLIDING, SLIDING, FULL] as const;

/** Trinity. Layers with a window, and the layers whose queries and keys are rotated, are constants of llama.cpp. */
export const AFMOE: GgufArchitecture = {
  architecture: "AfmoeForCausalLM",
  fields: {
    intermediate_size: "feed_forward_length",
    moe_intermediate_size: "expert_feed_forward_length",
    num_experts: "expert_count",
    num_shared_experts: "expert_shared_count",
    num_dense_layers: "leading_dense_block_count",
    route_scale: "expert_weights_scale",
  },
  constants: {
    attention_bias: false,
    global_attn_every_n_layers: PATTERN.length,
    mup_enabled: true,
  },
  keys: { expert_gating_func: SIGMOID, expert_weights_norm: true },
  pattern: PATTERN,
  ties: true,
  tensors: {
    ...EXPERTS,
    ...DENSE,
    ...SHARED,
    attn_gate: "self_attn.gate_proj",
    post_attention_norm: "post_attention_layernorm",
    ffn_norm: "pre_mlp_layernorm",
    post_ffw_norm: "post_mlp_layernorm",
    ffn_gate_inp: "mlp.router.gate",
    exp_probs_b: { name: "mlp.expert_bias", bare: "bias" },
  },
};

/** Ling 2.0 and Ring. */
export const BAILING_MOE2: GgufArchitecture = {
  architecture: "BailingMoeV2ForCausalLM",
  fields: FIELDS,
  constants: { use_qkv_bias: false, use_bias: false, use_qk_norm: true },
  keys: { expert_gating_func: SIGMOID },
  // The width of one shared expert.
  products: { expert_shared_feed_forward_length: ["moe_intermediate_size"] },
  rotatesPart: true,
  tensors: {
    ...EXPERTS,
    ...DENSE,
    ...SHARED,
    attn_qkv: "attention.query_key_value",
    attn_output: "attention.dense",
    attn_q_norm: "attention.query_layernorm",
    attn_k_norm: "attention.key_layernorm",
    exp_probs_b: { name: "mlp.gate.expert_bias", bare: "bias" },
  },
  outer: { "token_embd.weight": "model.word_embeddings.weight" },
};

/** K-EXAONE. */
export const EXAONE_MOE: GgufArchitecture = {
  architecture: "ExaoneMoEForCausalLM",
  others: ["ExaoneMoeForCausalLM"],
  fields: FIELDS,
  keys: { expert_gating_func: SIGMOID },
  products: {
    expert_shared_feed_forward_length: [
      "num_shared_experts",
      "moe_intermediate_size",
    ],
  },
  tensors: {
    ...EXPERTS,
    ...DENSE,
    ...SHARED,
    exp_probs_b: { name: "mlp.e_score_correction_bias", bare: "bias" },
  },
  config: {
    read: (name, { keys }) => ({ layer_types: slidingTypes(name, keys) }),
    write(_, config) {
      const layers = Number(config.get("num_hidden_layers"));
      const every = Number(config.get("sliding_window_pattern") ?? 4);
      const types = config.get("layer_types") ??
        Array.from(
          { length: layers },
          (_, layer) => (layer + 1) % every === 0 ? FULL : SLIDING,
        );
      return windowKeys(types as readonly string[]);
    },
  },
};

/** Hunyuan 3. The selection bias has no ending in files. */
export const HY_V3: GgufArchitecture = {
  architecture: "HYV3ForCausalLM",
  fields: {
    intermediate_size: "feed_forward_length",
    moe_intermediate_size: "expert_feed_forward_length",
    num_experts: "expert_count",
    router_scaling_factor: "expert_weights_scale",
  },
  constants: { attention_bias: false, mlp_bias: false },
  keys: { expert_gating_func: SIGMOID, expert_weights_norm: true },
  products: {
    expert_shared_feed_forward_length: [
      "num_shared_experts",
      "moe_intermediate_size",
    ],
  },
  listsDense: "mlp_layer_types",
  ties: true,
  tensors: {
    ...EXPERTS,
    ...DENSE,
    ffn_gate_shexp: "mlp.shared_mlp.gate_proj",
    ffn_up_shexp: "mlp.shared_mlp.up_proj",
    ffn_down_shexp: "mlp.shared_mlp.down_proj",
    ffn_gate_inp: "mlp.router.gate",
    exp_probs_b: { name: "mlp.expert_bias", bare: "" },
  },
};
