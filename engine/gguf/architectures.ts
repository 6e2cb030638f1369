/** Architectures of GGUF files, one row each: fields of config.json and tensor names. */

import { DataError } from "../../spec/errors.ts";
import { shown } from "../../spec/shown.ts";
import type { GgufArchitecture } from "./architecture.ts";
import {
  DENSE,
  EXPERT_WIDTH,
  EXPERTS,
  GRANITE_FIELDS,
  GRANITE_FUSED,
  GRANITE_TENSORS,
  INTERLEAVED,
  LATENT,
  LATENT_FIELDS,
  NEXT,
  NUMBERED_EXPERTS,
  partsOf,
  SHARED,
  SHARED_FIELDS,
  SIGMOID,
  SOFTMAX,
} from "./common_names.ts";
import { BAILING_MOE3 } from "./rows/bailing_moe3.ts";
import { COHERE2_MOE } from "./rows/cohere2_moe.ts";
import { DEEPSEEK4 } from "./rows/deepseek4.ts";
import { QWEN35_MOE, QWEN3_NEXT } from "./rows/delta_net.ts";
import { GEMMA4_MOE } from "./rows/gemma4.ts";
import { INDEXER_TYPES } from "./indexer_types.ts";
import { KIMI_K3, KIMI_LINEAR } from "./rows/kimi.ts";
import { LAGUNA } from "./rows/laguna.ts";
import { LLAMA4 } from "./rows/llama4.ts";
import { GRANITE_HYBRID, NEMOTRON_H } from "./rows/mamba.ts";
import { MELLUM } from "./rows/mellum.ts";
import { MIMO2 } from "./rows/mimo2.ts";
import { MINIMAX_M3 } from "./rows/minimax_m3.ts";
import { QWEN3_VL_MOE } from "./rows/qwen3_vl.ts";
import { TEMPERATURE } from "./rope_scaling.ts";
import {
  AFMOE,
  BAILING_MOE2,
  EXAONE_MOE,
  HY_V3,
} from "./rows/shared_expert.ts";
import { STEP35 } from "./rows/step35.ts";
import { type GgufHeader, numberOf, valueOf } from "./header.ts";

/** DeepSeek-V3, without the name of its architecture. */
const DEEPSEEK_V3 = {
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
    ...NEXT,
    exp_probs_b: { name: "mlp.gate.e_score_correction_bias", bare: "bias" },
  },
} as const satisfies Omit<GgufArchitecture, "architecture">;

/** DeepSeek-V3 with an indexer. llama.cpp reads keys and values of latent attention from two tensors. */
const INDEXED = {
  ...DEEPSEEK_V3,
  latent: "split",
  fields: {
    ...DEEPSEEK_V3.fields,
    index_n_heads: "attention.indexer.head_count",
    index_head_dim: "attention.indexer.key_length",
    index_topk: "attention.indexer.top_k",
  },
  tensors: {
    ...DEEPSEEK_V3.tensors,
    "indexer.attn_q_b": "self_attn.indexer.wq_b",
    "indexer.attn_k": "self_attn.indexer.wk",
    "indexer.k_norm": "self_attn.indexer.k_norm",
    "indexer.proj": "self_attn.indexer.weights_proj",
  },
} as const satisfies Omit<GgufArchitecture, "architecture">;

/** Mistral Small 4. */
const MISTRAL4: GgufArchitecture = {
  architecture: "Mistral4ForCausalLM",
  others: ["Mistral3ForConditionalGeneration"],
  fields: { ...SHARED_FIELDS, ...LATENT_FIELDS },
  constants: {
    model_type: "mistral4",
    fused_experts: false,
    q_lora_rank: null,
    rope_interleave: true,
  },
  equivalents: { fused_experts: true },
  keys: { expert_gating_func: SOFTMAX },
  latent: "split",
  hasTemperature: true,
  tensors: { ...EXPERTS, ...DENSE, ...SHARED, ...LATENT },
  fused: {
    "mlp.experts.gate_up_proj": {
      parts: partsOf("mlp", ["gate_proj.weight", "up_proj.weight"]),
    },
    "mlp.experts.down_proj": { parts: partsOf("mlp", ["down_proj.weight"]) },
  },
};

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
      ...NUMBERED_EXPERTS,
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
    listsDense: "mlp_only_layers",
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
  mistral4: MISTRAL4,
  // Mistral Large 3, whose files have the name of DeepSeek-V2 and V3.
  deepseek2_temperature: {
    ...MISTRAL4,
    name: "deepseek2",
    mark: TEMPERATURE.scale,
  },
  deepseek2: {
    architecture: "DeepseekV3ForCausalLM",
    others: ["KimiK25ForConditionalGeneration", "Glm4MoeLiteForCausalLM"],
    ...DEEPSEEK_V3,
  },
  deepseek4: DEEPSEEK4,
  deepseek32: { architecture: "DeepseekV32ForCausalLM", ...INDEXED },
  "glm-dsa": {
    ...INDEXED,
    architecture: "GlmMoeDsaForCausalLM",
    constants: {
      ...INDEXED.constants,
      index_topk_freq: 1,
      index_topk_pattern: null,
      indexer_rope_interleave: true,
    },
    config: INDEXER_TYPES,
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
    others: ["Glm4vMoeForConditionalGeneration", "SolarOpenForCausalLM"],
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
      ...NEXT,
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
  granitehybrid: GRANITE_HYBRID,
  granitemoe: {
    architecture: "GraniteMoeForCausalLM",
    fields: GRANITE_FIELDS,
    constants: { attention_bias: false, fused_experts: false },
    equivalents: { fused_experts: true },
    ties: true,
    tensors: GRANITE_TENSORS,
    fused: GRANITE_FUSED,
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
  llama4: LLAMA4,
  nemotron_h_moe: NEMOTRON_H,
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
  "minimax-m3": MINIMAX_M3,
  "minimax-m2": {
    architecture: "MiniMaxM2ForCausalLM",
    fields: {
      intermediate_size: EXPERT_WIDTH,
      num_local_experts: "expert_count",
    },
    keys: { expert_gating_func: SIGMOID },
    rotatesPart: true,
    tensors: {
      ...NUMBERED_EXPERTS,
      exp_probs_b: {
        name: "block_sparse_moe.e_score_correction_bias",
        bare: "bias",
      },
    },
  },
  gemma4: GEMMA4_MOE,
  qwen3next: QWEN3_NEXT,
  qwen35moe: QWEN35_MOE,
  qwen3moe: {
    architecture: "Qwen3MoeForCausalLM",
    fields: {
      intermediate_size: "feed_forward_length",
      moe_intermediate_size: "expert_feed_forward_length",
      num_experts: "expert_count",
    },
    constants: { norm_topk_prob: true },
    listsDense: "mlp_only_layers",
    ties: true,
    tensors: { ...EXPERTS, ...DENSE },
  },
  qwen3vlmoe: QWEN3_VL_MOE,
  afmoe: AFMOE,
  bailingmoe2: BAILING_MOE2,
  bailingmoe3: BAILING_MOE3,
  cohere2moe: COHERE2_MOE,
  "exaone-moe": EXAONE_MOE,
  hy_v3: HY_V3,
  "kimi-k3": KIMI_K3,
  "kimi-linear": KIMI_LINEAR,
  laguna: LAGUNA,
  mellum: MELLUM,
  mimo2: MIMO2,
  step35: STEP35,
};

/** Whether the keys of a file are those of a row: its mark, or the values that all files of the row have. */
function isOf(
  { mark, keys: wanted = {} }: GgufArchitecture,
  name: string,
  keys: GgufHeader["keys"],
): boolean {
  if (mark !== undefined) return Object.hasOwn(keys, `${name}.${mark}`);
  return Object.entries(wanted).every(([key, value]) =>
    valueOf(keys, `${name}.${key}`) === value
  );
}

/** The name and the row of a file. Throws DataError for an architecture that is not in the table. */
export function architectureOf(
  path: string,
  { keys }: Pick<GgufHeader, "keys">,
): { readonly name: string; readonly row: GgufArchitecture } {
  const name = String(keys["general.architecture"]);
  const named = Object.entries(ARCHITECTURES)
    .filter(([key, row]) => (row.name ?? key) === name)
    .map(([, row]) => row);
  const row = named.find((row) => isOf(row, name, keys)) ?? named.at(-1);
  const dense = name === "llama" &&
    (numberOf(keys, "llama.expert_count") ?? 0) === 0;
  if (row !== undefined && !dense) return { name, row };
  const part = numberOf(keys, "split.no") ?? 0;
  if (part > 0) {
    throw new DataError(
      `Cannot open '${path}': it is part ${part + 1} of ${
        numberOf(keys, "split.count")
      } of a model. Give the first part`,
    );
  }
  const known = new Set(
    Object.entries(ARCHITECTURES).map(([key, { name = key }]) => name),
  );
  throw new DataError(
    `Cannot open '${path}': its architecture is '${shown(name)}'${
      dense ? " without experts" : ""
    }, which is not read. Known ones are ${[...known].join(", ")}`,
  );
}
