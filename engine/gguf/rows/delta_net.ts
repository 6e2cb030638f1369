/** Rows of the architectures with gated delta nets. Their norms are stored plus 1, their decays as -exp(A_log). */

import type { GgufArchitecture, TensorName } from "../architecture.ts";
import { EXPERTS, NEXT, partsOf } from "../common_names.ts";

function gain(name: string): TensorName {
  return { name, values: "gain" };
}

const FIELDS = {
  moe_intermediate_size: "expert_feed_forward_length",
  shared_expert_intermediate_size: "expert_shared_feed_forward_length",
  num_experts: "expert_count",
  full_attention_interval: "full_attention_interval",
  linear_conv_kernel_dim: "ssm.conv_kernel",
  linear_key_head_dim: "ssm.state_size",
  linear_num_key_heads: "ssm.group_count",
  linear_num_value_heads: "ssm.time_step_rank",
  num_nextn_predict_layers: "nextn_predict_layers",
} as const;

const SHARED_ROW = {
  fields: FIELDS,
  constants: { attention_bias: false, norm_topk_prob: true },
  products: {
    "ssm.inner_size": ["linear_value_head_dim", "linear_num_value_heads"],
  },
  pattern: [
    "linear_attention",
    "linear_attention",
    "linear_attention",
    "full_attention",
  ],
  rotatesPart: true,
  ties: true,
  predictorModule: true,
  outer: { "output_norm.weight": gain("model.norm.weight") },
} as const;

const TENSORS = {
  ...EXPERTS,
  ...NEXT,
  "nextn.enorm": gain(NEXT["nextn.enorm"]),
  "nextn.hnorm": gain(NEXT["nextn.hnorm"]),
  "nextn.shared_head_norm": gain(NEXT["nextn.shared_head_norm"]),
  ffn_gate_inp_shexp: { name: "mlp.shared_expert_gate", row: true },
  ffn_gate_shexp: "mlp.shared_expert.gate_proj",
  ffn_up_shexp: "mlp.shared_expert.up_proj",
  ffn_down_shexp: "mlp.shared_expert.down_proj",
  attn_norm: gain("input_layernorm"),
  post_attention_norm: gain("post_attention_layernorm"),
  attn_q_norm: gain("self_attn.q_norm"),
  attn_k_norm: gain("self_attn.k_norm"),
  attn_qkv: "linear_attn.in_proj_qkv",
  attn_gate: "linear_attn.in_proj_z",
  ssm_conv1d: { name: "linear_attn.conv1d", middle: true },
  ssm_norm: "linear_attn.norm",
  ssm_out: "linear_attn.out_proj",
} as const;

/** Qwen3-Next. Heads of values are in groups, one per head of keys, as in a checkpoint. */
export const QWEN3_NEXT: GgufArchitecture = {
  ...SHARED_ROW,
  architecture: "Qwen3NextForCausalLM",
  constants: { ...SHARED_ROW.constants, fused_projections: false },
  equivalents: { fused_projections: true },
  tensors: {
    ...TENSORS,
    ssm_ba: "linear_attn.in_proj_ba",
    ssm_dt: { name: "linear_attn.dt_bias", bare: "bias" },
    ssm_a: { name: "linear_attn.A_log", bare: "", values: "decay" },
  },
  splitsProjections: true,
};

/** Qwen3.5 and Qwen3.6. Heads of values are in the order of the heads of keys, repeated. */
export const QWEN35_MOE: GgufArchitecture = {
  ...SHARED_ROW,
  architecture: "Qwen3_5MoeForCausalLM",
  others: ["Qwen3_5MoeForConditionalGeneration"],
  fused: {
    "mlp.experts.gate_up_proj": {
      parts: partsOf("mlp", ["gate_proj.weight", "up_proj.weight"]),
    },
    "mlp.experts.down_proj": { parts: partsOf("mlp", ["down_proj.weight"]) },
  },
  sections: [11, 11, 10],
  tensors: {
    ...TENSORS,
    attn_qkv: { name: "linear_attn.in_proj_qkv", tiled: "channels" },
    attn_gate: { name: "linear_attn.in_proj_z", tiled: "rows" },
    ssm_alpha: { name: "linear_attn.in_proj_a", tiled: "heads" },
    ssm_beta: { name: "linear_attn.in_proj_b", tiled: "heads" },
    ssm_conv1d: { name: "linear_attn.conv1d", middle: true, tiled: "channels" },
    ssm_dt: { name: "linear_attn.dt_bias", bare: "bias", tiled: "heads" },
    ssm_a: {
      name: "linear_attn.A_log",
      bare: "",
      values: "decay",
      tiled: "heads",
    },
    ssm_out: { name: "linear_attn.out_proj", tiled: "columns" },
  },
};
