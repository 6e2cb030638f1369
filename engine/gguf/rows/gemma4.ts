/** The row of Gemma 4, whose layers with a window and without one have other heads and frequencies. */

import type { GgufArchitecture } from "../architecture.ts";
import { DENSE } from "../common_names.ts";
import { type GgufHeader, numberOf, numbersOf } from "../header.ts";
import { FULL, SLIDING, slidingTypes, windowKeys } from "../layer_types.ts";
import type { GgufValues } from "../write.ts";

type Config = { readonly [field: string]: unknown };

/** Share of the pairs of a head that layers without a window rotate. Files have it as factors of frequencies. */
const ROTATED = 0.25;

/** The factor of the frequency of a pair that is not rotated. */
const NEVER = 1e30;

/** Keys and values of Gemma 4. Layers without a window may use keys as values. */
export const GEMMA4_MOE: GgufArchitecture = {
  architecture: "Gemma4ForCausalLM",
  others: ["Gemma4ForConditionalGeneration"],
  fields: {
    head_dim: "attention.key_length_swa",
    global_head_dim: "attention.key_length",
    intermediate_size: "feed_forward_length",
    moe_intermediate_size: "expert_feed_forward_length",
    num_experts: "expert_count",
    num_experts_per_tok: [],
    top_k_experts: "expert_used_count",
    num_kv_shared_layers: "attention.shared_kv_layers",
    final_logit_softcapping: "final_logit_softcapping",
    num_key_value_heads: [],
    rope_theta: [],
  },
  constants: {
    attention_bias: false,
    enable_moe_block: true,
    fused_experts: false,
    hidden_activation: "gelu_pytorch_tanh",
    hidden_size_per_layer_input: 0,
    use_double_wide_mlp: false,
  },
  equivalents: { fused_experts: true },
  keys: { embedding_length_per_layer_input: 0 },
  ties: true,
  tensors: {
    ...DENSE,
    post_attention_norm: "post_attention_layernorm",
    ffn_norm: "pre_feedforward_layernorm",
    pre_ffw_norm_2: "pre_feedforward_layernorm_2",
    post_ffw_norm: "post_feedforward_layernorm",
    post_ffw_norm_1: "post_feedforward_layernorm_1",
    post_ffw_norm_2: "post_feedforward_layernorm_2",
    layer_output_scale: { name: "layer_scalar", bare: "weight" },
    ffn_gate_inp: "router.proj",
    "ffn_gate_inp.scale": { name: "router.scale", bare: "" },
    "ffn_down_exps.scale": { name: "router.per_expert_scale", bare: "" },
    ffn_gate_up_exps: {
      name: "experts.{expert}.gate_up_proj",
      bare: "weight",
    },
    ffn_down_exps: { name: "experts.{expert}.down_proj", bare: "weight" },
  },
  fused: {
    "experts.gate_up_proj": { parts: ["experts.{expert}.gate_up_proj"] },
    "experts.down_proj": { parts: ["experts.{expert}.down_proj"] },
  },
  unused: ["rope_freqs.weight"],
  config: { read, write },
  added: (config) => ({ "rope_freqs.weight": frequencies(config) }),
};

function read(name: string, { keys, tensors }: GgufHeader): Config {
  const number = (key: string) => numberOf(keys, `${name}.${key}`);
  const heads = numbersOf(keys, `${name}.attention.head_count_kv`);
  const headsOf = (type: typeof SLIDING | typeof FULL) =>
    heads[types.indexOf(type)] ?? number("attention.head_count_kv");
  const types = slidingTypes(name, keys);
  const names = new Set(tensors.map(({ name }) => name));
  return {
    layer_types: types,
    num_key_value_heads: headsOf(SLIDING),
    num_global_key_value_heads: headsOf(FULL),
    attention_k_eq_v: types.some((type, layer) =>
      type === FULL && names.has(`blk.${layer}.attn_k.weight`) &&
      !names.has(`blk.${layer}.attn_v.weight`)
    ),
    rope_parameters: {
      [SLIDING]: {
        rope_type: "default",
        rope_theta: number("rope.freq_base_swa") ?? 10000,
      },
      [FULL]: {
        rope_type: "proportional",
        rope_theta: number("rope.freq_base"),
        partial_rotary_factor: ROTATED,
      },
    },
  };
}

function write(_: string, config: ReadonlyMap<string, unknown>): GgufValues {
  const number = (field: string) => Number(config.get(field));
  const types = config.get("layer_types") as readonly string[];
  const rotary = (type: string) =>
    Number((config.get(type) as Config)["rope_theta"]);
  const counts = {
    [SLIDING]: number("num_key_value_heads"),
    [FULL]: number("num_global_key_value_heads"),
  };
  return {
    "attention.value_length": { u32: number("global_head_dim") },
    "attention.value_length_swa": { u32: number("head_dim") },
    "attention.key_length": { u32: number("global_head_dim") },
    "attention.key_length_swa": { u32: number("head_dim") },
    ...windowKeys(types),
    "attention.head_count_kv": {
      i32s: types.map((type) => counts[type as typeof SLIDING]),
    },
    "rope.dimension_count": { u32: number("global_head_dim") },
    "rope.dimension_count_swa": { u32: number("head_dim") },
    "rope.freq_base": { f32: rotary(FULL) },
    "rope.freq_base_swa": { f32: rotary(SLIDING) },
  };
}

/** Factors that divide the frequencies of pairs in layers without a window. */
function frequencies(config: ReadonlyMap<string, unknown>): number[] {
  const pairs = Number(config.get("global_head_dim")) / 2;
  return Array.from(
    { length: pairs },
    (_, i) => i < Math.floor(ROTATED * pairs) ? 1 : NEVER,
  );
}
