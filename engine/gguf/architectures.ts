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
  /** The name in a checkpoint is complete: `.weight` and `.bias` do not follow. */
  readonly bare?: true;
}

/** A row of the table. */
export interface GgufArchitecture {
  /** Name of the architecture in config.json. */
  readonly architecture: string;
  /**
   * Fields of config.json besides the common ones, with the keys that they are read from. The first existing key is
   * used.
   */
  readonly fields: ConfigFields;
  /** Fields of config.json with the same value in all models of the architecture. */
  readonly constants?: { readonly [field: string]: unknown };
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
  /** Names of tensors that add to or replace the common ones, without `blk.N.` and `.weight`. */
  readonly tensors: { readonly [name: string]: string | TensorName };
  /** llama.cpp uses the embeddings where the file has no output matrix. */
  readonly ties?: true;
}

/** Keys of fields of config.json, without the name of the architecture. */
export type ConfigFields = {
  readonly [field: string]: string | readonly string[];
};

const ATTENTION = {
  attn_norm: "input_layernorm",
  attn_q: "self_attn.q_proj",
  attn_k: "self_attn.k_proj",
  attn_v: "self_attn.v_proj",
  attn_output: "self_attn.o_proj",
  attn_q_norm: "self_attn.q_norm",
  attn_k_norm: "self_attn.k_norm",
  ffn_norm: "post_attention_layernorm",
} as const;

const EXPERTS = {
  ffn_gate_inp: "mlp.gate",
  ffn_gate_exps: "mlp.experts.{expert}.gate_proj",
  ffn_up_exps: "mlp.experts.{expert}.up_proj",
  ffn_down_exps: "mlp.experts.{expert}.down_proj",
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

/** The number of scores that are sigmoids of logits. */
const SIGMOID = 2;

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
      attn_q: { name: "self_attn.q_proj", interleaved: "head_count" },
      attn_k: { name: "self_attn.k_proj", interleaved: "head_count_kv" },
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
    fields: {
      ...SHARED_FIELDS,
      head_dim: [],
      q_lora_rank: "attention.q_lora_rank",
      kv_lora_rank: "attention.kv_lora_rank",
      qk_rope_head_dim: "rope.dimension_count",
    },
    constants: { scoring_func: "sigmoid", topk_method: "noaux_tc" },
    keys: { expert_gating_func: SIGMOID },
    latent: true,
    tensors: {
      ...EXPERTS,
      ...DENSE,
      ...SHARED,
      attn_q_a: "self_attn.q_a_proj",
      attn_q_a_norm: "self_attn.q_a_layernorm",
      attn_q_b: "self_attn.q_b_proj",
      attn_kv_a_mqa: "self_attn.kv_a_proj_with_mqa",
      attn_kv_a_norm: "self_attn.kv_a_layernorm",
      attn_kv_b: "self_attn.kv_b_proj",
      exp_probs_b: { name: "mlp.gate.e_score_correction_bias", bare: true },
    },
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
      exp_probs_b: { name: "mlp.gate.e_score_correction_bias", bare: true },
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
        bare: true,
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
      exp_probs_b: { name: "mlp.gate.e_score_correction_bias", bare: true },
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
        bare: true,
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

/** Tensors outside of layers. */
const OUTER: { readonly [name: string]: string } = {
  "token_embd.weight": "model.embed_tokens.weight",
  "output_norm.weight": "model.norm.weight",
  "output.weight": "lm_head.weight",
};

/** The name and the row of a file. Throws DataError for an architecture that is not in the table. */
export function architectureOf(
  path: string,
  { keys }: Pick<GgufHeader, "keys">,
): { readonly name: string; readonly row: GgufArchitecture } {
  const name = String(keys["general.architecture"]);
  const row = Object.hasOwn(ARCHITECTURES, name)
    ? ARCHITECTURES[name]
    : undefined;
  const dense = name === "llama" &&
    (numberOf(keys, "llama.expert_count") ?? 0) === 0;
  if (row !== undefined && !dense) return { name, row };
  throw new DataError(
    `Cannot open '${path}': its architecture is '${shown(name)}'${
      dense ? " without experts" : ""
    }, which is not read. Known ones are ${
      Object.keys(ARCHITECTURES).join(", ")
    }`,
  );
}

/**
 * The checkpoint name of a tensor of llama.cpp, with the number of the layer. Undefined for a tensor that no model has.
 */
export function checkpointName(
  row: GgufArchitecture,
  name: string,
): TensorName | undefined {
  const outer = OUTER[name];
  if (outer !== undefined) return { name: outer };
  const [, layer, of = "", ending] =
    /^blk\.(\d+)\.(\w+)\.(weight|bias)$/.exec(name) ?? [];
  const names: GgufArchitecture["tensors"] = { ...ATTENTION, ...row.tensors };
  const found = Object.hasOwn(names, of) ? names[of] : undefined;
  if (found === undefined) return undefined;
  const entry: TensorName = typeof found === "string" ? { name: found } : found;
  const end = entry.bare ? "" : `.${ending}`;
  return { ...entry, name: `model.layers.${layer}.${entry.name}${end}` };
}

/** A tensor of a checkpoint in a file. */
export interface GgufName extends TensorName {
  /** Name with the number of the layer. */
  readonly gguf: string;
  /** The number of the expert in a stacked tensor. */
  readonly expert: number | undefined;
}

/** Returns the GGUF name and part of a checkpoint tensor. Undefined if llama.cpp has no name for it. */
export function ggufName(
  row: GgufArchitecture,
  name: string,
): GgufName | undefined {
  const outer = Object.entries(OUTER).find(([, ours]) => ours === name)?.[0];
  if (outer !== undefined) return { gguf: outer, name, expert: undefined };
  const [, layer, rest = ""] = /^model\.layers\.(\d+)\.(.+)$/.exec(name) ?? [];
  // Names of the architecture precede those of all.
  const names: GgufArchitecture["tensors"] = {
    ...row.tensors,
    ...Object.fromEntries(
      Object.entries(ATTENTION).filter(([name]) => !(name in row.tensors)),
    ),
  };
  for (const [gguf, found] of Object.entries(names)) {
    const entry: TensorName = typeof found === "string"
      ? { name: found }
      : found;
    const [, of = "", ending] = entry.bare
      ? [rest, rest, "bias"]
      : /^(.+)\.(weight|bias)$/.exec(rest) ?? [];
    const [start = "", end] = entry.name.split("{expert}");
    const [, expert] = end === undefined
      ? []
      : /^(\d+)$/.exec(of.slice(start.length, of.length - end.length)) ?? [];
    const same = end === undefined
      ? of === start
      : expert !== undefined && of === `${start}${expert}${end}`;
    if (!same) continue;
    return {
      ...entry,
      gguf: `blk.${layer}.${gguf}.${ending}`,
      expert: expert === undefined ? undefined : Number(expert),
    };
  }
  return undefined;
}
