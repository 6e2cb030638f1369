/** The row of Ling 3.0: layers of Kimi Delta Attention, and latent attention with a gate per head. */

import { groupEnds } from "../../../models/mod.ts";
import type { GgufArchitecture } from "../architecture.ts";
import {
  DENSE,
  EXPERTS,
  LATENT,
  LATENT_FIELDS,
  SHARED,
  SIGMOID,
  SPARSE_FIELDS,
} from "../common_names.ts";
import { type GgufHeader, layerCount, numbersOf, valueOf } from "../header.ts";
import { KEY_HEADS, LIMIT } from "./kimi.ts";
import type { GgufValues } from "../write.ts";

type Config = { readonly [field: string]: unknown };

/** A tensor that layers of Kimi Delta Attention have. */
const DELTA = "attention.A_log";

/** Limits of activations by layer: their keys by field. 0: no limit. */
const LIMITS = {
  expert_swiglu_limit_list: "swiglu_clamp_exp",
  share_expert_swiglu_limit_list: "swiglu_clamp_shexp",
} as const;

function inBlock(
  names: { readonly [name: string]: string },
): { readonly [name: string]: string } {
  return Object.fromEntries(
    Object.entries(names).map(([name, of]) => [
      name,
      of.replace("self_attn.", "attention."),
    ]),
  );
}

/** Ling 3.0. Layers for drafts are not written. */
export const BAILING_MOE3: GgufArchitecture = {
  architecture: "BailingMoeV3ForCausalLM",
  fields: {
    ...SPARSE_FIELDS,
    ...LATENT_FIELDS,
    head_dim: "kda.head_dim",
    short_conv_kernel_size: "ssm.conv_kernel",
    num_experts: "expert_count",
    num_shared_experts: "expert_shared_count",
    moe_shared_expert_intermediate_size: "expert_shared_feed_forward_length",
    num_key_value_heads: [],
  },
  constants: {
    q_lora_rank: null,
    gated_attention_proj_granularity_type: "head_wise",
    kda_safe_gate: true,
    no_kda_lora: true,
    rope_interleave: true,
    use_bias: false,
    use_qkv_bias: false,
  },
  keys: { expert_gating_func: SIGMOID, "kda.safe_gate": true },
  latent: "split",
  tensors: {
    ...EXPERTS,
    ...DENSE,
    ...SHARED,
    ...inBlock(LATENT),
    attn_q: "attention.q_proj",
    attn_k: "attention.k_proj",
    attn_v: "attention.v_proj",
    attn_output: {
      name: "attention.o_proj",
      beside: DELTA,
      otherwise: "attention.dense",
    },
    ssm_conv1d_q: "attention.q_conv1d",
    ssm_conv1d_k: "attention.k_conv1d",
    ssm_conv1d_v: "attention.v_conv1d",
    ssm_f_a: "attention.f_proj",
    ssm_beta: "attention.b_proj",
    ssm_dt: { name: "attention.dt_bias", bare: "bias" },
    ssm_norm: "attention.o_norm",
    ssm_a: { name: DELTA, bare: "", values: "rate", filed: "column" },
    // In layers of latent attention, the same name is the gate of heads.
    ssm_g_a: { name: "attention.g_proj", beside: DELTA },
    attn_gate: "attention.g_proj",
    exp_probs_b: { name: "mlp.gate.expert_bias", bare: "bias" },
  },
  outer: { "token_embd.weight": "model.word_embeddings.weight" },
  config: { read, write },
};

function read(name: string, { keys }: GgufHeader): Config {
  const layers = layerCount(name, keys);
  const heads = numbersOf(keys, `${name}.${KEY_HEADS}`).slice(0, layers);
  return {
    layer_group_size: heads.findIndex((count) => count > 0) + 1,
    kda_lower_bound: valueOf(keys, `${name}.${LIMIT}`) ?? null,
    ...Object.fromEntries(
      Object.entries(LIMITS).map(([field, key]) => [
        field,
        numbersOf(keys, `${name}.${key}`).slice(0, layers),
      ]),
    ),
  };
}

function write(_: string, config: ReadonlyMap<string, unknown>): GgufValues {
  const layers = Number(config.get("num_hidden_layers"));
  const endsGroup = groupEnds({
    layers,
    every: Number(config.get("layer_group_size")),
  });
  const perLayer = <T>(of: (layer: number) => T): T[] =>
    Array.from({ length: layers }, (_, layer) => of(layer));
  const limit = config.get("kda_lower_bound");
  return {
    [KEY_HEADS]: { i32s: perLayer((layer) => Number(endsGroup(layer))) },
    ...typeof limit === "number" ? { [LIMIT]: { f32: limit } } : {},
    ...Object.fromEntries(
      Object.entries(LIMITS).map(([field, key]) => {
        const limits = config.get(field) as
          | readonly (number | null)[]
          | null
          | undefined;
        return [key, { f32s: perLayer((layer) => limits?.[layer] ?? 0) }];
      }),
    ),
  };
}
