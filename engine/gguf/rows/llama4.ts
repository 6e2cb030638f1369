/** The row of Llama 4. Chunks, the scale of queries and the layers without positions are constants of llama.cpp. */

import type { GgufArchitecture } from "../architecture.ts";
import { partsOf } from "../common_names.ts";
import { type GgufHeader, numberOf } from "../header.ts";
import { unrepresentable } from "../unrepresentable.ts";
import type { GgufValues } from "../write.ts";

type Config = { readonly [field: string]: unknown };

/** Every fourth layer has no positions. */
const INTERVAL = 4;

/** Experts of the model without norms of queries and keys (Maverick). */
const WITHOUT_NORMS = 128;

/** Scaling of positions (Scout). */
const SCALING = {
  rope_type: "llama3",
  factor: 16,
  low_freq_factor: 1,
  high_freq_factor: 1,
  original_max_position_embeddings: 8192,
} as const;

/** Llama 4, text. */
export const LLAMA4: GgufArchitecture = {
  architecture: "Llama4ForCausalLM",
  fields: {
    intermediate_size: "expert_feed_forward_length",
    intermediate_size_mlp: "feed_forward_length",
    num_local_experts: "expert_count",
    interleave_moe_layer_step: "interleave_moe_layer_step",
  },
  constants: {
    attention_bias: false,
    attention_chunk_size: 8192,
    attn_scale: 0.1,
    attn_temperature_tuning: true,
    floor_scale: 8192,
    fused_experts: false,
    no_rope_layer_interval: INTERVAL,
  },
  equivalents: { fused_experts: true },
  pattern: [
    "chunked_attention",
    "chunked_attention",
    "chunked_attention",
    "full_attention",
  ],
  scaling: SCALING,
  ties: true,
  tensors: {
    ffn_gate: "feed_forward.gate_proj",
    ffn_up: "feed_forward.up_proj",
    ffn_down: "feed_forward.down_proj",
    ffn_gate_inp: "feed_forward.router",
    ffn_gate_exps: "feed_forward.experts.{expert}.gate_proj",
    ffn_up_exps: "feed_forward.experts.{expert}.up_proj",
    ffn_down_exps: "feed_forward.experts.{expert}.down_proj",
    ffn_gate_shexp: "feed_forward.shared_expert.gate_proj",
    ffn_up_shexp: "feed_forward.shared_expert.up_proj",
    ffn_down_shexp: "feed_forward.shared_expert.down_proj",
  },
  fused: {
    "feed_forward.experts.gate_up_proj": {
      parts: partsOf("feed_forward", ["gate_proj.weight", "up_proj.weight"]),
      transposed: true,
    },
    "feed_forward.experts.down_proj": {
      parts: partsOf("feed_forward", ["down_proj.weight"]),
      transposed: true,
    },
  },
  unused: ["rope_freqs.weight"],
  config: { read, write },
  added: (config) => ({ "rope_freqs.weight": frequencies(config) }),
};

function read(name: string, { keys }: GgufHeader): Config {
  return {
    use_qk_norm: numberOf(keys, `${name}.expert_count`) !== WITHOUT_NORMS,
  };
}

function write(name: string, config: ReadonlyMap<string, unknown>): GgufValues {
  const layers = Number(config.get("num_hidden_layers"));
  const step = Number(config.get("interleave_moe_layer_step") ?? 1);
  const numbers = Array.from({ length: layers }, (_, i) => i);
  const wanted = {
    use_qk_norm: config.get("num_local_experts") !== WITHOUT_NORMS,
    no_rope_layers: numbers.map((i) => Number((i + 1) % INTERVAL !== 0)),
    moe_layers: numbers.filter((i) => (i + 1) % step === 0),
  };
  for (const [field, value] of Object.entries(wanted)) {
    const found = config.get(field) ?? value;
    const isDefault = Array.isArray(found) && found.length === 0;
    if (isDefault || String(found) === String(value)) continue;
    throw unrepresentable(name, field, found);
  }
  return {};
}

/** Factors that divide the frequencies of scaled positions: long waves are stretched. */
function frequencies(
  config: ReadonlyMap<string, unknown>,
): number[] | undefined {
  if (!config.get("rope_scaling")) return undefined;
  const dims = Number(config.get("head_dim"));
  const base = Number(config.get("rope_theta"));
  return Array.from({ length: dims / 2 }, (_, i) => {
    const wave = 2 * Math.PI * base ** (2 * i / dims);
    return wave < SCALING.original_max_position_embeddings ? 1 : SCALING.factor;
  });
}
