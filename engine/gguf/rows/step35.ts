/**
 * The row of Step-3.5-Flash and Step-3.7-Flash, whose layers with a window have other heads and frequencies. Gains of
 * norms are stored plus 1. In layers without a window, llama.cpp rotates half of a head.
 */

import type { GgufArchitecture, TensorName } from "../architecture.ts";
import { DENSE, partsOf, SIGMOID } from "../common_names.ts";
import {
  type GgufHeader,
  layerCount,
  numberOf,
  numbersOf,
  valueOf,
} from "../header.ts";
import { FULL, SLIDING, slidingTypes, windowKeys } from "../layer_types.ts";
import { unrepresentable } from "../unrepresentable.ts";
import type { GgufValues } from "../write.ts";

type Config = { readonly [field: string]: unknown };

/** Scaling of positions in layers without a window. Files have it as factors of frequencies. */
const SCALING = {
  rope_type: "llama3",
  factor: 2,
  original_max_position_embeddings: 131072,
  low_freq_factor: 1,
  high_freq_factor: 32,
} as const;

/** Rotated share of a head. */
const PARTS: { readonly [type: string]: number } = {
  [FULL]: 0.5,
  [SLIDING]: 1,
};

/** Limits of activations by layer: their keys by field. 0: no limit. */
const LIMITS = {
  swiglu_limits: "swiglu_clamp_exp",
  swiglu_limits_shared: "swiglu_clamp_shexp",
} as const;

function gain(name: string): TensorName {
  return { name, values: "gain" };
}

const PROJECTIONS = ["gate_proj", "up_proj", "down_proj"] as const;

/** Step-3.5-Flash, and the text model of Step-3.7-Flash. */
export const STEP35: GgufArchitecture = {
  architecture: "Step3p5ForCausalLM",
  others: ["Step3p7ForConditionalGeneration"],
  fields: {
    intermediate_size: "feed_forward_length",
    moe_intermediate_size: "expert_feed_forward_length",
    share_expert_dim: "expert_shared_feed_forward_length",
    moe_num_experts: "expert_count",
    moe_top_k: "expert_used_count",
    moe_router_scaling_factor: "expert_weights_scale",
    num_attention_heads: [],
    num_key_value_heads: [],
    num_experts_per_tok: [],
    rope_theta: [],
  },
  constants: { attention_bias: false, fused_experts: false },
  equivalents: { fused_experts: true },
  keys: { expert_gating_func: SIGMOID, expert_weights_norm: true },
  scaling: SCALING,
  tensors: {
    ...DENSE,
    attn_norm: gain("input_layernorm"),
    attn_q_norm: gain("self_attn.q_norm"),
    attn_k_norm: gain("self_attn.k_norm"),
    attn_gate: "self_attn.g_proj",
    ffn_norm: gain("post_attention_layernorm"),
    ffn_gate_inp: "moe.gate",
    ffn_gate_exps: "moe.experts.{expert}.gate_proj",
    ffn_up_exps: "moe.experts.{expert}.up_proj",
    ffn_down_exps: "moe.experts.{expert}.down_proj",
    ffn_gate_shexp: "share_expert.gate_proj",
    ffn_up_shexp: "share_expert.up_proj",
    ffn_down_shexp: "share_expert.down_proj",
    exp_probs_b: { name: "moe.router_bias", bare: "bias" },
  },
  outer: { "output_norm.weight": gain("model.norm.weight") },
  fused: Object.fromEntries(
    PROJECTIONS.map((name) => [
      `moe.${name}.weight`,
      { parts: partsOf("moe", [`${name}.weight`]) },
    ]),
  ),
  unused: ["rope_freqs.weight"],
  config: { read, write },
  added: (config) => ({ "rope_freqs.weight": frequencies(config) }),
};

function read(name: string, { keys, tensors }: GgufHeader): Config {
  const types = slidingTypes(name, keys);
  const layers = layerCount(name, keys);
  const routers = tensors.flatMap((tensor) => {
    const [, layer] = /^blk\.(\d+)\.ffn_gate_inp\.weight$/.exec(tensor.name) ??
      [];
    return layer === undefined || Number(layer) >= layers
      ? []
      : [Number(layer)];
  });
  /** The value of a key, or its value for the first layer of a type. */
  const of = (type: string, key: string) =>
    numbersOf(keys, `${name}.${key}`)[types.indexOf(type as typeof FULL)] ??
      valueOf(keys, `${name}.${key}`);
  const heads = (type: string) => ({
    num_attention_heads: of(type, "attention.head_count"),
    num_attention_groups: of(type, "attention.head_count_kv"),
  });
  const bases: { readonly [type: string]: number | undefined } = {
    [FULL]: numberOf(keys, `${name}.rope.freq_base`),
    [SLIDING]: numberOf(keys, `${name}.rope.freq_base_swa`),
  };
  return {
    ...heads(types.includes(FULL) ? FULL : SLIDING),
    ...types.includes(SLIDING)
      ? { attention_other_setting: heads(SLIDING) }
      : {},
    layer_types: types,
    yarn_only_types: [FULL],
    moe_layers_enum: routers.sort((a, b) => a - b).join(","),
    rope_theta: types.map((type) => bases[type]),
    partial_rotary_factors: types.map((type) => PARTS[type]),
    ...Object.fromEntries(
      Object.entries(LIMITS).map(([field, key]) => [
        field,
        numbersOf(keys, `${name}.${key}`).slice(0, layers),
      ]),
    ),
  };
}

function write(name: string, config: ReadonlyMap<string, unknown>): GgufValues {
  const layers = Number(config.get("num_hidden_layers"));
  /** A list with an element per layer, and perhaps others of layers that predict further tokens. */
  const list = <T>(field: string): T[] => {
    const found = config.get(field);
    return Array.isArray(found) ? found.slice(0, layers) : [];
  };
  const types = list<string>("layer_types");
  const bases = list<number>("rope_theta");
  const base = (type: string) => bases[types.indexOf(type)] ?? bases[0]!;
  const scaled = config.get("rope_scaling") ? [FULL] : undefined;
  for (
    const [field, value, wanted] of [
      ["layer_types", types.length, layers],
      ["rope_theta", bases, types.map(base)],
      [
        "partial_rotary_factors",
        list("partial_rotary_factors"),
        types.map((type) => PARTS[type]),
      ],
      ["yarn_only_types", scaled && config.get("yarn_only_types"), scaled],
    ] as const
  ) {
    if (String(value) === String(wanted)) continue;
    throw unrepresentable(name, field, config.get(field) ?? null);
  }
  const others = (config.get("attention_other_setting") ?? {}) as Config;
  const heads = (field: string) => ({
    i32s: types.map((type) =>
      Number(
        (type === SLIDING ? others[field] : undefined) ?? config.get(field),
      )
    ),
  });
  const sparse = String(config.get("moe_layers_enum")).split(",").map(Number);
  return {
    ...windowKeys(types),
    "attention.head_count": heads("num_attention_heads"),
    "attention.head_count_kv": heads("num_attention_groups"),
    "rope.freq_base": { f32: base(FULL) },
    "rope.freq_base_swa": { f32: base(SLIDING) },
    leading_dense_block_count: { u32: Math.min(...sparse) },
    moe_every_n_layers: { u32: 1 },
    ...Object.fromEntries(
      Object.entries(LIMITS).map(([field, key]) => {
        const limits = list<number | null>(field);
        return [key, { f32s: types.map((_, layer) => limits[layer] ?? 0) }];
      }),
    ),
  };
}

/**
 * Factors that divide the frequencies of pairs in layers without a window, as in Llama 3, and ones for further pairs.
 */
function frequencies(
  config: ReadonlyMap<string, unknown>,
): number[] | undefined {
  if (!config.get("rope_scaling")) return undefined;
  const dims = Number(config.get("head_dim"));
  const [base = NaN] = config.get("rope_theta") as readonly number[];
  const rotated = dims * PARTS[FULL]!;
  const { factor, original_max_position_embeddings: original } = SCALING;
  const { low_freq_factor: low, high_freq_factor: high } = SCALING;
  return Array.from({ length: dims / 2 }, (_, i) => {
    if (i >= rotated / 2) return 1;
    const turns = original / (2 * Math.PI * base ** (2 * i / rotated));
    const mix = Math.min(1, Math.max(0, (turns - low) / (high - low)));
    return 1 / ((1 - mix) / factor + mix);
  });
}
