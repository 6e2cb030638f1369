/** Tensor names and keys that several architectures share. */

/** Attention and norms, in most families. */
export const ATTENTION = {
  attn_norm: "input_layernorm",
  attn_q: "self_attn.q_proj",
  attn_k: "self_attn.k_proj",
  attn_v: "self_attn.v_proj",
  attn_output: "self_attn.o_proj",
  attn_q_norm: "self_attn.q_norm",
  attn_k_norm: "self_attn.k_norm",
  ffn_norm: "post_attention_layernorm",
} as const;

/** Routers and experts. */
export const EXPERTS = {
  ffn_gate_inp: "mlp.gate",
  ffn_gate_exps: "mlp.experts.{expert}.gate_proj",
  ffn_up_exps: "mlp.experts.{expert}.up_proj",
  ffn_down_exps: "mlp.experts.{expert}.down_proj",
} as const;

/** Queries and keys of architectures that rotate adjacent elements in files. */
export const INTERLEAVED = {
  attn_q: { name: "self_attn.q_proj", interleaved: "head_count" },
  attn_k: { name: "self_attn.k_proj", interleaved: "head_count_kv" },
} as const;

/** Feed-forward layers without experts. */
export const DENSE = {
  ffn_gate: "mlp.gate_proj",
  ffn_up: "mlp.up_proj",
  ffn_down: "mlp.down_proj",
} as const;

/** Routers and experts under the names of Mixtral. */
export const NUMBERED_EXPERTS = {
  ffn_gate_inp: "block_sparse_moe.gate",
  ffn_gate_exps: "block_sparse_moe.experts.{expert}.w1",
  ffn_up_exps: "block_sparse_moe.experts.{expert}.w3",
  ffn_down_exps: "block_sparse_moe.experts.{expert}.w2",
} as const;

/** Shared experts beside `NUMBERED_EXPERTS`. */
export const NUMBERED_SHARED = {
  ffn_gate_shexp: "block_sparse_moe.shared_experts.gate_proj",
  ffn_up_shexp: "block_sparse_moe.shared_experts.up_proj",
  ffn_down_shexp: "block_sparse_moe.shared_experts.down_proj",
} as const;

/** Shared experts. */
export const SHARED = {
  ffn_gate_shexp: "mlp.shared_experts.gate_proj",
  ffn_up_shexp: "mlp.shared_experts.up_proj",
  ffn_down_shexp: "mlp.shared_experts.down_proj",
} as const;

/** The layer that predicts a further token, besides its block. */
export const NEXT = {
  "nextn.eh_proj": "eh_proj",
  "nextn.enorm": "enorm",
  "nextn.hnorm": "hnorm",
  "nextn.shared_head_norm": "shared_head.norm",
} as const;

/** Tensors outside of layers. */
export const OUTER: { readonly [name: string]: string } = {
  "token_embd.weight": "model.embed_tokens.weight",
  "output_norm.weight": "model.norm.weight",
  "output.weight": "lm_head.weight",
};

/** The width of experts; older files have it in the key of dense layers. */
export const EXPERT_WIDTH = [
  "expert_feed_forward_length",
  "feed_forward_length",
];

/** Fields of models with some layers without experts. */
export const SPARSE_FIELDS = {
  intermediate_size: "feed_forward_length",
  moe_intermediate_size: "expert_feed_forward_length",
  first_k_dense_replace: "leading_dense_block_count",
  routed_scaling_factor: "expert_weights_scale",
  norm_topk_prob: "expert_weights_norm",
  n_group: "expert_group_count",
  topk_group: "expert_group_used_count",
} as const;

/** Fields of models whose experts are those of DeepSeek-V3. */
export const SHARED_FIELDS = {
  ...SPARSE_FIELDS,
  n_routed_experts: "expert_count",
  n_shared_experts: "expert_shared_count",
  num_nextn_predict_layers: "nextn_predict_layers",
} as const;

/** Fields of latent attention. */
export const LATENT_FIELDS = {
  head_dim: [],
  q_lora_rank: "attention.q_lora_rank",
  kv_lora_rank: "attention.kv_lora_rank",
  qk_rope_head_dim: "rope.dimension_count",
} as const;

/** Tensors of latent attention. */
export const LATENT = {
  attn_q_a: "self_attn.q_a_proj",
  attn_q_a_norm: "self_attn.q_a_layernorm",
  attn_q_b: "self_attn.q_b_proj",
  attn_kv_a_mqa: "self_attn.kv_a_proj_with_mqa",
  attn_kv_a_norm: "self_attn.kv_a_layernorm",
  attn_kv_b: "self_attn.kv_b_proj",
  attn_k_b: "self_attn.k_b_proj",
  attn_v_b: "self_attn.v_b_proj",
} as const;

/** `expert_gating_func`: scores are a softmax of logits. */
export const SOFTMAX = 1;

/** `expert_gating_func`: scores are sigmoids of logits. */
export const SIGMOID = 2;

/** Names of the matrices of all experts of a block. */
export function partsOf(block: string, names: readonly string[]): string[] {
  return names.map((name) => `${block}.experts.{expert}.${name}`);
}

/** Fields of Granite models. */
export const GRANITE_FIELDS = {
  head_dim: [],
  intermediate_size: EXPERT_WIDTH,
  num_local_experts: "expert_count",
  attention_multiplier: "attention.scale",
  embedding_multiplier: "embedding_scale",
  residual_multiplier: "residual_scale",
  logits_scaling: "logit_scale",
} as const;

/** Tensors of Granite models. */
export const GRANITE_TENSORS = {
  ...INTERLEAVED,
  ffn_gate_inp: "block_sparse_moe.router.layer",
  ffn_gate_exps: "block_sparse_moe.experts.{expert}.gate_proj",
  ffn_up_exps: "block_sparse_moe.experts.{expert}.up_proj",
  ffn_down_exps: "block_sparse_moe.experts.{expert}.down_proj",
} as const;

/** Fused tensors of Granite models. */
export const GRANITE_FUSED = {
  "block_sparse_moe.input_linear.weight": {
    parts: partsOf("block_sparse_moe", ["gate_proj.weight", "up_proj.weight"]),
  },
  "block_sparse_moe.output_linear.weight": {
    parts: partsOf("block_sparse_moe", ["down_proj.weight"]),
  },
} as const;
