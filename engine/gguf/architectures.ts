/** Architectures of GGUF files, one row each: fields of config.json and tensor names. */

import { DataError } from "../../spec/errors.ts";
import { shown } from "../../spec/shown.ts";
import { type GgufHeader, numberOf } from "./header.ts";

/** Mapping from a tensor of llama.cpp to tensors of a checkpoint. */
export interface TensorName {
  /** `{layer}` and, for stacked experts, `{expert}` are replaced by numbers. */
  readonly name: string;
  /** Rows are in the order of interleaved rotary dims: the key with their number of heads. */
  readonly interleaved?: "head_count" | "head_count_kv";
  /** A vector that is a matrix of one row in a checkpoint. */
  readonly row?: true;
  /** A matrix that has a second axis of length 1 in a checkpoint. */
  readonly middle?: true;
  /** The name in a checkpoint is complete. Only names in files have this ending. */
  readonly bare?: "weight" | "bias";
}

/** A tensor with all experts of a checkpoint whose files have one tensor for each part. */
export interface FusedTensor {
  /** Names of the parts. `{expert}` is replaced by the number of the expert. */
  readonly parts: readonly string[];
  /** Rows of the parts alternate. Default: parts follow each other. */
  readonly interleaved?: true;
  /** The last two axes are exchanged. */
  readonly transposed?: true;
}

/** A row of the table. */
export interface GgufArchitecture {
  /** `general.architecture`. Default: the key of the row. Rows with equal names differ in `keys`. */
  readonly name?: string;
  /** Name of the architecture in config.json. */
  readonly architecture: string;
  /**
   * Fields of config.json besides the common ones, with the keys that they are read from. The first existing key is
   * used.
   */
  readonly fields: ConfigFields;
  /** Fields of config.json with the same value in all models of the architecture, or in files without their key. */
  readonly constants?: { readonly [field: string]: unknown };
  /** Other values of constants that mean the same in files. */
  readonly equivalents?: { readonly [field: string]: unknown };
  /** Fields of config.json that say whether a tensor is there. */
  readonly present?: { readonly [field: string]: string };
  /** Keys with a number that all files of the architecture have. */
  readonly keys?: { readonly [key: string]: number };
  /** Keys that are products of fields of config.json. */
  readonly products?: { readonly [key: string]: readonly string[] };
  /** Only a part of the dims of heads is rotated. */
  readonly rotatesPart?: true;
  /** `alpha` of dynamic scaling is in the base of the rotary frequencies. */
  readonly raisesBase?: true;
  /** Attention is latent: heads have other sizes for keys and values, and `kv_b_proj` may be two tensors. */
  readonly latent?: true;
  /** Layers without experts are `mlp_only_layers` of config.json. */
  readonly listsDense?: true;
  /** `layer_types` of config.json, repeated. */
  readonly pattern?: readonly string[];
  /** `layer_types` of layers with and without key heads, whose numbers files list by layer. */
  readonly listsKeyHeads?: readonly [attention: string, other: string];
  /** Positions of a config.json without scaling are scaled, and the bounds of YaRN are not rounded. */
  readonly scalesByDefault?: true;
  /** Names of tensors that add to or replace the common ones, without `blk.N.` and `.weight`. */
  readonly tensors: { readonly [name: string]: string | TensorName };
  /** Names of tensors outside of layers that precede the common ones. */
  readonly outer?: { readonly [name: string]: string };
  /** Names of fused tensors in a layer of a checkpoint. */
  readonly fused?: { readonly [name: string]: FusedTensor };
  /** llama.cpp uses the embeddings where the file has no output matrix. */
  readonly ties?: true;
}

/** Keys of fields of config.json, without the name of the architecture. */
export type ConfigFields = {
  readonly [field: string]: string | readonly string[];
};

const EXPERTS = {
  ffn_gate_inp: "mlp.gate",
  ffn_gate_exps: "mlp.experts.{expert}.gate_proj",
  ffn_up_exps: "mlp.experts.{expert}.up_proj",
  ffn_down_exps: "mlp.experts.{expert}.down_proj",
} as const;

/** Queries and keys of architectures that rotate adjacent elements in files. */
const INTERLEAVED = {
  attn_q: { name: "self_attn.q_proj", interleaved: "head_count" },
  attn_k: { name: "self_attn.k_proj", interleaved: "head_count_kv" },
} as const;

const DENSE = {
  ffn_gate: "mlp.gate_proj",
  ffn_up: "mlp.up_proj",
  ffn_down: "mlp.down_proj",
} as const;

const SHARED = {
  ffn_gate_shexp: "mlp.shared_experts.gate_proj",
  ffn_up_shexp: "mlp.shared_experts.up_proj",
  ffn_down_shexp: "mlp.shared_experts.down_proj",
} as const;

/** Fields of models whose experts are those of DeepSeek-V3. */
const SHARED_FIELDS = {
  intermediate_size: "feed_forward_length",
  moe_intermediate_size: "expert_feed_forward_length",
  n_routed_experts: "expert_count",
  n_shared_experts: "expert_shared_count",
  first_k_dense_replace: "leading_dense_block_count",
  routed_scaling_factor: "expert_weights_scale",
  norm_topk_prob: "expert_weights_norm",
  n_group: "expert_group_count",
  topk_group: "expert_group_used_count",
  num_nextn_predict_layers: "nextn_predict_layers",
} as const;

/** `expert_gating_func`: scores are a softmax or sigmoids of logits. */
const SOFTMAX = 1;
const SIGMOID = 2;

/** Fields and tensors of latent attention. */
const LATENT_FIELDS = {
  head_dim: [],
  q_lora_rank: "attention.q_lora_rank",
  kv_lora_rank: "attention.kv_lora_rank",
  qk_rope_head_dim: "rope.dimension_count",
} as const;

const LATENT = {
  attn_q_a: "self_attn.q_a_proj",
  attn_q_a_norm: "self_attn.q_a_layernorm",
  attn_q_b: "self_attn.q_b_proj",
  attn_kv_a_mqa: "self_attn.kv_a_proj_with_mqa",
  attn_kv_a_norm: "self_attn.kv_a_layernorm",
  attn_kv_b: "self_attn.kv_b_proj",
} as const;

/** The width of experts; older files have it in the key of dense layers. */
const EXPERT_WIDTH = ["expert_feed_forward_length", "feed_forward_length"];

/** The table, by `general.architecture`. */
export const ARCHITECTURES: { readonly [name: string]: GgufArchitecture } = {
  llama: {
    architecture: "MixtralForCausalLM",
    fields: {
      intermediate_size: EXPERT_WIDTH,
      num_local_experts: "expert_count",
    },
    ties: true,
    tensors: {
      ...INTERLEAVED,
      ffn_gate_inp: "block_sparse_moe.gate",
      ffn_gate_exps: "block_sparse_moe.experts.{expert}.w1",
      ffn_up_exps: "block_sparse_moe.experts.{expert}.w3",
      ffn_down_exps: "block_sparse_moe.experts.{expert}.w2",
    },
  },
  olmoe: {
    architecture: "OlmoeForCausalLM",
    fields: {
      intermediate_size: EXPERT_WIDTH,
      num_experts: "expert_count",
    },
    constants: { norm_topk_prob: false },
    tensors: EXPERTS,
  },
  qwen2moe: {
    architecture: "Qwen2MoeForCausalLM",
    fields: {
      intermediate_size: "feed_forward_length",
      moe_intermediate_size: "expert_feed_forward_length",
      shared_expert_intermediate_size: "expert_shared_feed_forward_length",
      num_experts: "expert_count",
    },
    constants: { norm_topk_prob: false },
    listsDense: true,
    ties: true,
    tensors: {
      ...EXPERTS,
      ...DENSE,
      ffn_gate_inp_shexp: { name: "mlp.shared_expert_gate", row: true },
      ffn_gate_shexp: "mlp.shared_expert.gate_proj",
      ffn_up_shexp: "mlp.shared_expert.up_proj",
      ffn_down_shexp: "mlp.shared_expert.down_proj",
    },
  },
  deepseek2: {
    architecture: "DeepseekV3ForCausalLM",
    fields: { ...SHARED_FIELDS, ...LATENT_FIELDS },
    constants: {
      q_lora_rank: null,
      scoring_func: "sigmoid",
      topk_method: "noaux_tc",
    },
    keys: { expert_gating_func: SIGMOID },
    latent: true,
    tensors: {
      ...EXPERTS,
      ...DENSE,
      ...SHARED,
      ...LATENT,
      exp_probs_b: { name: "mlp.gate.e_score_correction_bias", bare: "bias" },
    },
  },
  // Files of DeepSeek-V2 may lack the key of scores.
  deepseek2_softmax: {
    name: "deepseek2",
    architecture: "DeepseekV2ForCausalLM",
    fields: { ...SHARED_FIELDS, ...LATENT_FIELDS },
    constants: {
      q_lora_rank: null,
      norm_topk_prob: false,
      scoring_func: "softmax",
      topk_method: "group_limited_greedy",
      n_group: 1,
      topk_group: 1,
    },
    equivalents: { topk_method: "greedy" },
    keys: { expert_gating_func: SOFTMAX },
    latent: true,
    tensors: { ...EXPERTS, ...DENSE, ...SHARED, ...LATENT },
  },
  dots1: {
    architecture: "Dots1ForCausalLM",
    fields: SHARED_FIELDS,
    constants: { attention_bias: false, sliding_window: null },
    keys: { expert_gating_func: SIGMOID },
    tensors: {
      ...EXPERTS,
      ...DENSE,
      ...SHARED,
      exp_probs_b: { name: "mlp.gate.e_score_correction_bias", bare: "bias" },
    },
  },
  "ernie4_5-moe": {
    architecture: "Ernie4_5_MoeForCausalLM",
    fields: {
      intermediate_size: "feed_forward_length",
      moe_intermediate_size: "expert_feed_forward_length",
      moe_num_experts: "expert_count",
      moe_k: "expert_used_count",
      num_experts_per_tok: [],
      moe_num_shared_experts: "expert_shared_count",
      moe_layer_start_index: "leading_dense_block_count",
      moe_layer_interval: "interleave_moe_layer_step",
    },
    constants: { use_bias: false },
    products: {
      expert_shared_feed_forward_length: [
        "moe_intermediate_size",
        "moe_num_shared_experts",
      ],
    },
    ties: true,
    tensors: {
      ...EXPERTS,
      ...DENSE,
      ...SHARED,
      exp_probs_b: {
        name: "mlp.moe_statics.e_score_correction_bias",
        bare: "bias",
        row: true,
      },
    },
  },
  glm4moe: {
    architecture: "Glm4MoeForCausalLM",
    fields: SHARED_FIELDS,
    present: {
      attention_bias: "attn_q.bias",
      use_qk_norm: "attn_q_norm.weight",
    },
    keys: { expert_gating_func: SIGMOID },
    rotatesPart: true,
    tensors: {
      ...EXPERTS,
      ...DENSE,
      ...SHARED,
      post_attention_norm: "post_attention_layernorm",
      exp_probs_b: { name: "mlp.gate.e_score_correction_bias", bare: "bias" },
    },
  },
  "gpt-oss": {
    architecture: "GptOssForCausalLM",
    fields: {
      intermediate_size: EXPERT_WIDTH,
      num_local_experts: "expert_count",
    },
    constants: { attention_bias: true, fused_experts: false },
    equivalents: { fused_experts: true },
    pattern: ["sliding_attention", "full_attention"],
    scalesByDefault: true,
    tensors: {
      ...EXPERTS,
      attn_sinks: { name: "self_attn.sinks", bare: "weight" },
      ffn_gate_inp: "mlp.router",
      post_attention_norm: "post_attention_layernorm",
    },
    fused: {
      "mlp.experts.gate_up_proj": {
        parts: partsOf("mlp", ["gate_proj.weight", "up_proj.weight"]),
        interleaved: true,
        transposed: true,
      },
      "mlp.experts.gate_up_proj_bias": {
        parts: partsOf("mlp", ["gate_proj.bias", "up_proj.bias"]),
        interleaved: true,
      },
      "mlp.experts.down_proj": {
        parts: partsOf("mlp", ["down_proj.weight"]),
        transposed: true,
      },
      "mlp.experts.down_proj_bias": {
        parts: partsOf("mlp", ["down_proj.bias"]),
      },
    },
  },
  granitemoe: {
    architecture: "GraniteMoeForCausalLM",
    fields: {
      head_dim: [],
      intermediate_size: EXPERT_WIDTH,
      num_local_experts: "expert_count",
      attention_multiplier: "attention.scale",
      embedding_multiplier: "embedding_scale",
      residual_multiplier: "residual_scale",
      logits_scaling: "logit_scale",
    },
    constants: { attention_bias: false, fused_experts: false },
    equivalents: { fused_experts: true },
    ties: true,
    tensors: {
      ...INTERLEAVED,
      ffn_gate_inp: "block_sparse_moe.router.layer",
      ffn_gate_exps: "block_sparse_moe.experts.{expert}.gate_proj",
      ffn_up_exps: "block_sparse_moe.experts.{expert}.up_proj",
      ffn_down_exps: "block_sparse_moe.experts.{expert}.down_proj",
    },
    fused: {
      "block_sparse_moe.input_linear.weight": {
        parts: partsOf("block_sparse_moe", [
          "gate_proj.weight",
          "up_proj.weight",
        ]),
      },
      "block_sparse_moe.output_linear.weight": {
        parts: partsOf("block_sparse_moe", ["down_proj.weight"]),
      },
    },
  },
  "hunyuan-moe": {
    architecture: "HunYuanMoEV1ForCausalLM",
    fields: {
      intermediate_size: EXPERT_WIDTH,
      num_experts: "expert_count",
      moe_topk: "expert_used_count",
      num_experts_per_tok: [],
    },
    constants: {
      num_shared_expert: 1,
      use_qk_norm: true,
      use_cla: false,
      use_mixed_mlp_moe: true,
    },
    keys: { expert_shared_count: 1 },
    raisesBase: true,
    products: {
      feed_forward_length: ["intermediate_size"],
      expert_shared_feed_forward_length: ["intermediate_size"],
    },
    ties: true,
    tensors: {
      ...EXPERTS,
      attn_q_norm: "self_attn.query_layernorm",
      attn_k_norm: "self_attn.key_layernorm",
      ffn_gate_inp: "mlp.gate.wg",
      ffn_gate_shexp: "mlp.shared_mlp.gate_proj",
      ffn_up_shexp: "mlp.shared_mlp.up_proj",
      ffn_down_shexp: "mlp.shared_mlp.down_proj",
    },
  },
  lfm2moe: {
    architecture: "Lfm2MoeForCausalLM",
    fields: {
      intermediate_size: "feed_forward_length",
      moe_intermediate_size: "expert_feed_forward_length",
      num_experts: "expert_count",
      num_dense_layers: "leading_dense_block_count",
      conv_L_cache: "shortconv.l_cache",
      norm_eps: "attention.layer_norm_rms_epsilon",
      rms_norm_eps: [],
      num_key_value_heads: [],
    },
    constants: {
      conv_bias: false,
      norm_topk_prob: true,
      routed_scaling_factor: 1,
      use_expert_bias: true,
    },
    keys: { expert_gating_func: SIGMOID },
    listsKeyHeads: ["full_attention", "conv"],
    ties: true,
    tensors: {
      attn_norm: "operator_norm",
      ffn_norm: "ffn_norm",
      attn_q_norm: "self_attn.q_layernorm",
      attn_k_norm: "self_attn.k_layernorm",
      attn_output: "self_attn.out_proj",
      "shortconv.conv": { name: "conv.conv", middle: true },
      "shortconv.in_proj": "conv.in_proj",
      "shortconv.out_proj": "conv.out_proj",
      ffn_gate: "feed_forward.w1",
      ffn_up: "feed_forward.w3",
      ffn_down: "feed_forward.w2",
      ffn_gate_inp: "feed_forward.gate",
      ffn_gate_exps: "feed_forward.experts.{expert}.w1",
      ffn_up_exps: "feed_forward.experts.{expert}.w3",
      ffn_down_exps: "feed_forward.experts.{expert}.w2",
      exp_probs_b: { name: "feed_forward.expert_bias", bare: "bias" },
    },
    outer: {
      "token_embd_norm.weight": "model.embedding_norm.weight",
      "output_norm.weight": "model.embedding_norm.weight",
    },
  },
  "minimax-m2": {
    architecture: "MiniMaxM2ForCausalLM",
    fields: {
      intermediate_size: EXPERT_WIDTH,
      num_local_experts: "expert_count",
    },
    keys: { expert_gating_func: SIGMOID },
    rotatesPart: true,
    tensors: {
      ffn_gate_inp: "block_sparse_moe.gate",
      ffn_gate_exps: "block_sparse_moe.experts.{expert}.w1",
      ffn_up_exps: "block_sparse_moe.experts.{expert}.w3",
      ffn_down_exps: "block_sparse_moe.experts.{expert}.w2",
      exp_probs_b: {
        name: "block_sparse_moe.e_score_correction_bias",
        bare: "bias",
      },
    },
  },
  qwen3moe: {
    architecture: "Qwen3MoeForCausalLM",
    fields: {
      intermediate_size: "feed_forward_length",
      moe_intermediate_size: "expert_feed_forward_length",
      num_experts: "expert_count",
    },
    constants: { norm_topk_prob: true },
    listsDense: true,
    ties: true,
    tensors: { ...EXPERTS, ...DENSE },
  },
};

function partsOf(block: string, names: readonly string[]): string[] {
  return names.map((name) => `${block}.experts.{expert}.${name}`);
}

/** The name and the row of a file. Throws DataError for an architecture that is not in the table. */
export function architectureOf(
  path: string,
  { keys }: Pick<GgufHeader, "keys">,
): { readonly name: string; readonly row: GgufArchitecture } {
  const name = String(keys["general.architecture"]);
  const rows = Object.entries(ARCHITECTURES)
    .filter(([key, row]) => (row.name ?? key) === name)
    .map(([, row]) => row);
  const row =
    rows.find((row) =>
      Object.entries(row.keys ?? {}).every(([key, value]) =>
        numberOf(keys, `${name}.${key}`) === value
      )
    ) ?? rows.at(-1);
  const dense = name === "llama" &&
    (numberOf(keys, "llama.expert_count") ?? 0) === 0;
  if (row !== undefined && !dense) return { name, row };
  const known = new Set(
    Object.entries(ARCHITECTURES).map(([key, { name = key }]) => name),
  );
  throw new DataError(
    `Cannot open '${path}': its architecture is '${shown(name)}'${
      dense ? " without experts" : ""
    }, which is not read. Known ones are ${[...known].join(", ")}`,
  );
}
