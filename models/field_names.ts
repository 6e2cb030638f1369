/**
 * Names and limits of the fields of config.json. An invalid field of an untrusted file is rejected by name before the
 * model is built.
 */

import { isOneSlip } from "../compiler/mod.ts";

/** Maximum of each integer field. Unlisted fields may be any 32-bit integer. */
const MAX: { readonly [key: string]: number } = {
  ...limited(
    512,
    "num_hidden_layers",
    "num_layers",
    "num_nextn_predict_layers",
  ),
  ...limited(
    2 ** 24,
    "vocab_size",
    "index_topk",
    "index_topk_blocks",
    "sparse_topk_blocks",
    "index_block_size",
    "sparse_block_size",
    "index_local_blocks",
    "sparse_local_block",
    "sparse_init_block",
  ),
  ...limited(
    2 ** 20,
    "hidden_size",
    "intermediate_size",
    "intermediate_size_mlp",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "prefix_dense_intermediate_size",
    "moe_shared_expert_intermediate_size",
    "shared_intermediate_size",
    "ffn_hidden_size",
    "expert_ffn_hidden_size",
  ),
  ...limited(
    2 ** 16,
    "num_attention_heads",
    "num_key_value_heads",
    "num_global_key_value_heads",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "mamba_num_heads",
    "mamba_n_heads",
    "n_groups",
    "mamba_n_groups",
    "kv_lora_rank",
    "q_lora_rank",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_num_experts",
    "index_n_heads",
    "sparse_num_index_heads",
    "num_heads",
  ),
  ...limited(
    2 ** 14,
    "head_dim",
    "global_head_dim",
    "qk_rope_head_dim",
    "qk_nope_head_dim",
    "v_head_dim",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "mamba_head_dim",
    "mamba_d_head",
    "index_head_dim",
    "sparse_index_dim",
    "ssm_state_size",
    "mamba_d_state",
  ),
  ...limited(
    2 ** 12,
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_k",
    "moe_topk",
    "top_k_experts",
    "n_shared_experts",
    "moe_num_shared_experts",
    "zero_expert_num",
    "num_shared_experts",
    "n_group",
    "num_expert_group",
    "topk_group",
  ),
  ...limited(
    2 ** 8,
    "mamba_expand",
    "conv_kernel",
    "conv_L_cache",
    "linear_conv_kernel_dim",
    "mamba_d_conv",
    "short_conv_kernel_size",
    // Iterations are steps of the plan.
    "hc_sinkhorn_iters",
  ),
};

function limited(
  value: number,
  ...keys: readonly string[]
): { readonly [key: string]: number } {
  return Object.fromEntries(keys.map((key) => [key, value]));
}

/** Returns the maximum of an integer field. */
export function maxOf(key: string): number {
  return Object.hasOwn(MAX, key) ? MAX[key]! : 2 ** 31 - 1;
}

/** Groups of field names with the same meaning in different families. */
const SYNONYMS: readonly (readonly string[])[] = [
  ["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"],
  [
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "moe_top_k",
    "moe_topk",
    "moe_k",
    "num_selected_experts",
  ],
  ["num_hidden_layers", "num_layers", "n_layers", "n_layer"],
  ["hidden_size", "d_model", "n_embd"],
  ["num_attention_heads", "num_heads", "n_heads", "n_head"],
  ["num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_head_kv"],
  ["rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_eps"],
  ["max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx"],
  ["vocab_size", "n_vocab", "padded_vocab_size"],
  ["rope_theta", "rotary_emb_base"],
  ["norm_topk_prob", "moe_normalize_expert_weights", "norm_top_k_prob"],
];

/**
 * Finds a key of `keys` that probably means `key`. It is another family's name, or differs by one letter removed,
 * added, replaced or swapped. Undefined if there is none.
 */
export function otherSpelling(
  key: string,
  keys: readonly string[],
): string | undefined {
  const names = SYNONYMS.find((group) => group.includes(key)) ?? [];
  return keys.find((other) => names.includes(other)) ??
    keys.find((other) => isOneSlip(other, key));
}

/** Fields without effect on the computation outside of training. */
const CHANGE_NOTHING: ReadonlySet<string> = new Set([
  "architectures",
  "attention_dropout",
  "auto_map",
  "seq_aux",
  "router_jitter_noise",
  "ep_size",
  "aux_loss_alpha",
  "bos_token_id",
  "dtype",
  "eos_token_id",
  "hidden_dropout",
  "index_share_for_mtp_iteration",
  "initializer_range",
  "mamba_ssm_cache_dtype",
  "model_type",
  "moe_router_dtype",
  "moe_shared_expert_overlap",
  "mtp_hybrid_override_pattern",
  "mtp_layers_block_type",
  "name_or_path",
  "_name_or_path",
  "num_logits_to_keep",
  "output_router_logits",
  "pad_token_id",
  "pretraining_tp",
  "rescale_prenorm_residual",
  "residual_in_fp32",
  "router_aux_loss_coef",
  "time_step_floor",
  "time_step_max",
  // transformers clamps to it only without its kernels.
  "time_step_min",
  "torch_dtype",
  "transformers_version",
  "use_cache",
  "use_mamba_kernels",
]);

/** Fields of the parts of a model besides its text model, such as `vision_config` and `image_token_id`. */
const OTHER_PARTS = /^(vision|image|video|audio|media|bo[ai]|eo[ai])_/;

/** Returns whether a field of config.json has no effect on the computation. */
export function changesNothing(key: string): boolean {
  return CHANGE_NOTHING.has(key) || OTHER_PARTS.test(key);
}
