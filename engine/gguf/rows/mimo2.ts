/** The row of MiMo-V2-Flash, whose layers with a window have other heads of keys and frequencies. */

import type { GgufArchitecture } from "../architecture.ts";
import { DENSE, EXPERTS } from "../common_names.ts";
import { type GgufHeader, numberOf, numbersOf } from "../header.ts";
import { FULL, SLIDING, slidingTypes, windowKeys } from "../layer_types.ts";
import { unrepresentable } from "../unrepresentable.ts";
import type { GgufValues } from "../write.ts";

type Config = { readonly [field: string]: unknown };

/** MiMo-V2-Flash. Layers for drafts are not written. */
export const MIMO2: GgufArchitecture = {
  architecture: "MiMoV2FlashForCausalLM",
  fields: {
    attention_value_scale: "attention.value_scale",
    v_head_dim: "attention.value_length",
    intermediate_size: "feed_forward_length",
    moe_intermediate_size: "expert_feed_forward_length",
    n_routed_experts: "expert_count",
    num_key_value_heads: [],
    rope_theta: [],
  },
  constants: {
    attention_bias: false,
    attention_value_scale: null,
    n_group: 1,
    topk_group: 1,
    norm_topk_prob: true,
    routed_scaling_factor: 1,
  },
  listsDense: "mlp_layer_types",
  tensors: {
    ...EXPERTS,
    ...DENSE,
    attn_sinks: { name: "self_attn.attention_sink_bias", bare: "weight" },
    exp_probs_b: { name: "mlp.gate.e_score_correction_bias", bare: "bias" },
  },
  config: { read, write },
};

function read(name: string, { keys }: GgufHeader): Config {
  const number = (key: string) => numberOf(keys, `${name}.${key}`);
  const types = slidingTypes(name, keys);
  const heads = numbersOf(keys, `${name}.attention.head_count_kv`);
  const full = heads[types.indexOf(FULL)];
  const width = number("attention.key_length") ?? NaN;
  const rotary = (theta: string) => ({
    rope_theta: number(theta),
    partial_rotary_factor: (number("rope.dimension_count") ?? width) / width,
  });
  return {
    layer_types: types,
    num_key_value_heads: full,
    swa_num_key_value_heads: heads[types.indexOf(SLIDING)] ?? full,
    rope_parameters: {
      [FULL]: rotary("rope.freq_base"),
      [SLIDING]: rotary("rope.freq_base_swa"),
    },
  };
}

function write(name: string, config: ReadonlyMap<string, unknown>): GgufValues {
  const number = (field: string) => Number(config.get(field));
  const pattern = config.get("hybrid_layer_pattern") as
    | readonly number[]
    | undefined;
  const types = (config.get("layer_types") ??
    pattern?.map((window) => window ? SLIDING : FULL)) as
      | readonly string[]
      | undefined;
  if (types === undefined) throw unrepresentable(name, "layer_types", null);
  // Published fields precede those of transformers 5, which are an object per type.
  const rotary = (type: typeof SLIDING | typeof FULL, theta: string) => {
    const { rope_type = "default", ...of } = (config.get(type) ?? {}) as Config;
    if (rope_type !== "default") {
      throw unrepresentable(name, "rope_type", rope_type);
    }
    return {
      theta: Number(of["rope_theta"] ?? config.get(theta)),
      part: Number(
        of["partial_rotary_factor"] ?? config.get("partial_rotary_factor"),
      ),
    };
  };
  const [full, sliding] = [
    rotary(FULL, "rope_theta"),
    rotary(SLIDING, "swa_rope_theta"),
  ];
  if (full.part !== sliding.part) {
    throw unrepresentable(name, "partial_rotary_factor", sliding.part);
  }
  return {
    ...windowKeys(types),
    "attention.layer_norm_rms_epsilon": {
      f32: Number(
        config.get("layernorm_epsilon") ?? config.get("rms_norm_eps"),
      ),
    },
    "attention.head_count_kv": {
      i32s: types.map((type) =>
        number(
          type === SLIDING ? "swa_num_key_value_heads" : "num_key_value_heads",
        )
      ),
    },
    "attention.value_length": { u32: number("v_head_dim") },
    "rope.dimension_count": { u32: Math.floor(number("head_dim") * full.part) },
    "rope.freq_base": { f32: full.theta },
    "rope.freq_base_swa": { f32: sliding.theta },
  };
}
