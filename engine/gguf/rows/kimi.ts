/** Rows of Kimi-Linear and Kimi-K3: layers of Kimi Delta Attention, and latent attention without positions. */

import type { GgufArchitecture } from "../architecture.ts";
import {
  DENSE,
  LATENT,
  LATENT_FIELDS,
  NUMBERED_EXPERTS,
  NUMBERED_SHARED,
  SIGMOID,
} from "../common_names.ts";
import { type GgufHeader, numberOf, numbersOf, valueOf } from "../header.ts";
import { unrepresentable } from "../unrepresentable.ts";
import type { GgufValues } from "../write.ts";

type Config = { readonly [field: string]: unknown };

/** Key heads by layer: 1 for latent attention, 0 for Kimi Delta Attention. */
export const KEY_HEADS = "attention.head_count_kv";

/** The lower limit of the logarithm of decays. */
export const LIMIT = "kda.gate_lower_bound";

/** Fields of both. */
const FIELDS = {
  ...LATENT_FIELDS,
  intermediate_size: "feed_forward_length",
  moe_intermediate_size: "expert_feed_forward_length",
  first_k_dense_replace: "leading_dense_block_count",
  num_experts: "expert_count",
  num_experts_per_tok: [],
  num_experts_per_token: "expert_used_count",
  num_shared_experts: "expert_shared_count",
  routed_scaling_factor: "expert_weights_scale",
  num_key_value_heads: [],
} as const;

const CONSTANTS = {
  mla_use_nope: true,
  moe_layer_freq: 1,
  moe_router_activation_func: "sigmoid",
  num_expert_group: 1,
  topk_group: 1,
} as const;

const TENSORS = {
  ...DENSE,
  ...LATENT,
  ssm_conv1d_q: "self_attn.q_conv1d",
  ssm_conv1d_k: "self_attn.k_conv1d",
  ssm_conv1d_v: "self_attn.v_conv1d",
  ssm_f_a: "self_attn.f_a_proj",
  ssm_f_b: "self_attn.f_b_proj",
  ssm_beta: "self_attn.b_proj",
  ssm_dt: { name: "self_attn.dt_bias", bare: "bias" },
  ssm_norm: "self_attn.o_norm",
  ...NUMBERED_EXPERTS,
  ...NUMBERED_SHARED,
  exp_probs_b: {
    name: "block_sparse_moe.gate.e_score_correction_bias",
    bare: "bias",
  },
} as const;

/** Kimi-Linear. */
export const KIMI_LINEAR: GgufArchitecture = {
  architecture: "KimiLinearForCausalLM",
  fields: {
    ...FIELDS,
    max_position_embeddings: [],
    model_max_length: "context_length",
  },
  constants: { ...CONSTANTS, q_lora_rank: null, moe_renormalize: true },
  keys: { expert_gating_func: SIGMOID },
  latent: "split",
  tensors: {
    ...TENSORS,
    ssm_g_a: "self_attn.g_a_proj",
    ssm_g_b: "self_attn.g_b_proj",
    ssm_a: {
      name: "self_attn.A_log",
      bare: "",
      values: "decay",
      filed: "column",
      axes: [1, 1, -1, 1],
    },
  },
  config: {
    read: (name, header) => ({ linear_attn_config: readDelta(name, header) }),
    write: (name, config) => writeDelta(name, config, false),
  },
};

/** Kimi-K3, text. */
export const KIMI_K3: GgufArchitecture = {
  architecture: "KimiK3ForConditionalGeneration",
  fields: {
    ...FIELDS,
    moe_renormalize: "expert_weights_norm",
    routed_expert_hidden_size: "expert_latent_length",
    activation_situ_beta: "activation.situ_beta",
    activation_situ_linear_beta: "activation.situ_linear_beta",
    attn_res_block_size: "attn_res.block_size",
  },
  constants: {
    ...CONSTANTS,
    q_lora_rank: null,
    hidden_act: "situ",
    latent_moe_use_norm: true,
    mla_use_output_gate: true,
    topk_method: "noaux_tc",
  },
  keys: { expert_gating_func: SIGMOID },
  latent: "split",
  tensors: {
    ...TENSORS,
    // In layers of latent attention, the same name is the gate of its values.
    ssm_g: { name: "self_attn.g_proj", beside: "self_attn.A_log" },
    attn_gate: "self_attn.g_proj",
    ssm_a: {
      name: "self_attn.A_log",
      bare: "",
      values: "decay",
      padded: "head_count",
    },
    ffn_routed_down: "block_sparse_moe.routed_expert_down_proj",
    ffn_routed_up: "block_sparse_moe.routed_expert_up_proj",
    ffn_routed_norm: "block_sparse_moe.routed_expert_norm",
    attn_res_score: { name: "self_attention_res", product: true },
    ffn_res_score: { name: "mlp_res", product: true },
  },
  outer: {
    "output_res_score.weight": {
      name: "model.output_attn_res.weight",
      product: true,
    },
  },
  config: {
    read: (name, header) => ({
      linear_attn_config: {
        ...readDelta(name, header),
        use_full_rank_gate: true,
        gate_lower_bound: valueOf(header.keys, `${name}.${LIMIT}`) ?? null,
      },
    }),
    write: (name, config) => writeDelta(name, config, true),
  },
  // llama.cpp requires the scores of the first layer, which has no earlier block to score.
  added: (config) => ({
    "blk.0.attn_res_score.weight": new Array<number>(
      Number(config.get("hidden_size")),
    ).fill(0),
  }),
};

/** `linear_attn_config`, which numbers layers from 1. */
function readDelta(name: string, { keys }: GgufHeader): Config {
  const number = (key: string) => numberOf(keys, `${name}.${key}`);
  const layers = numbersOf(keys, `${name}.${KEY_HEADS}`)
    .map((heads, layer) => ({ layer: layer + 1, full: heads > 0 }));
  const numbers = (isFull: boolean) =>
    layers.filter(({ full }) => full === isFull).map(({ layer }) => layer);
  return {
    num_heads: number("attention.head_count"),
    head_dim: number("kda.head_dim"),
    short_conv_kernel_size: number("ssm.conv_kernel"),
    full_attn_layers: numbers(true),
    kda_layers: numbers(false),
  };
}

function writeDelta(
  name: string,
  config: ReadonlyMap<string, unknown>,
  wholeGate: boolean,
): GgufValues {
  const delta = (config.get("linear_attn_config") ?? {}) as Config;
  const layers = Number(config.get("num_hidden_layers"));
  const limit = delta["gate_lower_bound"] ?? null;
  for (
    const [field, wanted] of [
      // llama.cpp has one number of heads for both kinds of attention.
      ["num_heads", config.get("num_attention_heads")],
      ["use_full_rank_gate", wholeGate],
      ...wholeGate ? [] : [["gate_lower_bound", null] as const],
    ] as const
  ) {
    const found = delta[field] ?? (wanted === false ? false : null);
    if (found === wanted) continue;
    throw unrepresentable(name, `linear_attn_config.${field}`, found);
  }
  const full = delta["full_attn_layers"];
  if (!Array.isArray(full)) {
    throw unrepresentable(name, "linear_attn_config.full_attn_layers", full);
  }
  return {
    [KEY_HEADS]: {
      i32s: Array.from(
        { length: layers },
        (_, layer) => Number(full.includes(layer + 1)),
      ),
    },
    "kda.head_dim": { u32: Number(delta["head_dim"]) },
    "ssm.conv_kernel": { u32: Number(delta["short_conv_kernel_size"]) },
    ...typeof limit === "number" ? { [LIMIT]: { f32: limit } } : {},
  };
}
