/** The row of DeepSeek-V4, whose layers attend to a window of keys and to entries that compress 4 or 128 tokens. */

import type { GgufArchitecture } from "../architecture.ts";
import { type GgufHeader, numberOf, numbersOf } from "../header.ts";
import { ropeScalingKeys } from "../rope_scaling.ts";
import { unrepresentable } from "../unrepresentable.ts";
import type { GgufValues } from "../write.ts";

type Config = { readonly [field: string]: unknown };

/** `expert_gating_func`: scores are square roots of softplus. */
const SQRT_SOFTPLUS = 4;

/** The number of tokens of an entry, by layer. 0: only the window. */
const RATIOS = "attention.compress_ratios";

/** Tokens of an entry in files, by the type of the layer. */
const TOKENS: { readonly [type: string]: number } = {
  sliding_attention: 0,
  compressed_sparse_attention: 4,
  heavily_compressed_attention: 128,
};

/** The limit of gates and their factors, by layer. */
const LIMITS = "swiglu_clamp_exp";

/** Tensors of a compressor. */
function compressor(file: string, checkpoint: string) {
  return {
    [`${file}_kv`]: `${checkpoint}.wkv`,
    [`${file}_gate`]: `${checkpoint}.wgate`,
    [`${file}_norm`]: `${checkpoint}.norm`,
    [`${file}_ape`]: { name: `${checkpoint}.ape`, bare: "weight" },
  } as const;
}

/** Tensors of the hyper-connection of a block, or of the output. */
function connection(name: string) {
  return Object.fromEntries(
    ["fn", "base", "scale"].map((part) =>
      [`${name}_${part}`, { name: `${name}_${part}`, bare: "weight" }] as const
    ),
  );
}

/** Keys and tensors of DeepSeek-V4. */
export const DEEPSEEK4: GgufArchitecture = {
  architecture: "DeepseekV4ForCausalLM",
  layers: "layers",
  fields: {
    moe_intermediate_size: "expert_feed_forward_length",
    n_routed_experts: "expert_count",
    n_shared_experts: "expert_shared_count",
    routed_scaling_factor: "expert_weights_scale",
    norm_topk_prob: "expert_weights_norm",
    num_nextn_predict_layers: "nextn_predict_layers",
    q_lora_rank: "attention.q_lora_rank",
    qk_rope_head_dim: "rope.dimension_count",
    o_groups: "attention.output_group_count",
    o_lora_rank: "attention.output_lora_rank",
    index_n_heads: "attention.indexer.head_count",
    index_head_dim: "attention.indexer.key_length",
    index_topk: "attention.indexer.top_k",
    compress_rope_theta: "attention.compress_rope_freq_base",
    hc_mult: "hyper_connection.count",
    hc_sinkhorn_iters: "hyper_connection.sinkhorn_iterations",
    hc_eps: "hyper_connection.epsilon",
    num_hash_layers: "hash_layer_count",
  },
  constants: {
    attention_bias: false,
    mlp_bias: false,
    scoring_func: "sqrtsoftplus",
  },
  keys: { expert_gating_func: SQRT_SOFTPLUS },
  tensors: {
    attn_norm: "attn_norm",
    ffn_norm: "ffn_norm",
    attn_sinks: { name: "attn.attn_sink", bare: "weight" },
    attn_q_a: "attn.wq_a",
    attn_q_a_norm: "attn.q_norm",
    attn_q_b: "attn.wq_b",
    attn_kv: "attn.wkv",
    attn_kv_a_norm: "attn.kv_norm",
    attn_output_a: "attn.wo_a",
    attn_output_b: "attn.wo_b",
    ...compressor("attn_compressor", "attn.compressor"),
    "indexer.attn_q_b": "attn.indexer.wq_b",
    "indexer.proj": "attn.indexer.weights_proj",
    ...compressor("indexer_compressor", "attn.indexer.compressor"),
    ...connection("hc_attn"),
    ...connection("hc_ffn"),
    // Before the router, whose bias it would be.
    exp_probs_b: { name: "ffn.gate.bias", bare: "bias" },
    ffn_gate_inp: "ffn.gate",
    ffn_gate_tid2eid: { name: "ffn.gate.tid2eid", bare: "weight" },
    ffn_gate_exps: "ffn.experts.{expert}.w1",
    ffn_up_exps: "ffn.experts.{expert}.w3",
    ffn_down_exps: "ffn.experts.{expert}.w2",
    ffn_gate_shexp: "ffn.shared_experts.w1",
    ffn_up_shexp: "ffn.shared_experts.w3",
    ffn_down_shexp: "ffn.shared_experts.w2",
  },
  outer: {
    "token_embd.weight": "embed.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "head.weight",
    "output_hc_fn.weight": "hc_head_fn",
    "output_hc_base.weight": "hc_head_base",
    "output_hc_scale.weight": "hc_head_scale",
  },
  config: { read, write },
};

function read(name: string, { keys }: GgufHeader): Config {
  const limits = numbersOf(keys, `${name}.${LIMITS}`);
  return {
    compress_ratios: numbersOf(keys, `${name}.${RATIOS}`),
    swiglu_limit: limits[0] ?? numberOf(keys, `${name}.${LIMITS}`),
  };
}

function write(name: string, config: ReadonlyMap<string, unknown>): GgufValues {
  const number = (field: string) => Number(config.get(field));
  const layers = number("num_hidden_layers");
  const rotated = config.get("qk_rope_head_dim") ??
    Math.round(number("head_dim") * number("partial_rotary_factor"));
  return {
    "rope.dimension_count": { u32: Number(rotated) },
    feed_forward_length: { u32: number("moe_intermediate_size") },
    hash_layer_count: { u32: hashLayers(name, config) },
    [RATIOS]: { i32s: ratiosOf(name, config).slice(0, layers) },
    [LIMITS]: { f32s: Array<number>(layers).fill(number("swiglu_limit")) },
    ...scalingKeys(name, config),
  };
}

/** Returns the tokens of an entry for each layer. Throws DataError for others than 0, 4 and 128. */
function ratiosOf(
  name: string,
  config: ReadonlyMap<string, unknown>,
): readonly number[] {
  const types = config.get("layer_types") as readonly string[] | undefined;
  if (!types) return config.get("compress_ratios") as readonly number[];
  const rates = config.get("compress_rates") as Config | undefined;
  return types.map((type) => {
    const rate = rates?.[type] ?? TOKENS[type];
    if (rate === TOKENS[type]) return TOKENS[type]!;
    throw unrepresentable(name, `compress_rates.${type}`, rate);
  });
}

/** Returns the number of first layers that route by token id. Throws DataError if another layer does. */
function hashLayers(
  name: string,
  config: ReadonlyMap<string, unknown>,
): number {
  const types = config.get("mlp_layer_types") as readonly string[] | undefined;
  if (!types) return Number(config.get("num_hash_layers"));
  const hashed = types.filter((type) => type === "hash_moe").length;
  if (types.lastIndexOf("hash_moe") < hashed) return hashed;
  throw unrepresentable(name, "mlp_layer_types", types);
}

/** Returns the keys of the scaling of compressed layers, if config.json has parameters for each kind of layer. */
function scalingKeys(
  name: string,
  config: ReadonlyMap<string, unknown>,
): GgufValues {
  const compress = config.get("compress") as Config | undefined;
  if (!compress) return {};
  // Cosines are never scaled.
  const { attention_factor: _, partial_rotary_factor: _part, ...scaling } =
    compress;
  const keys = ropeScalingKeys(scaling, {
    row: DEEPSEEK4,
    base: Number(config.get("compress_rope_theta")),
    dim: Number(config.get("qk_rope_head_dim")),
  });
  if (keys) return keys;
  throw unrepresentable(name, "rope_parameters.compress", compress);
}
