/** The row of Laguna, whose layers with a window have other heads and another rotation. */

import type { GgufArchitecture } from "../architecture.ts";
import { DENSE, EXPERTS, SIGMOID } from "../common_names.ts";
import { type GgufHeader, numberOf, numbersOf } from "../header.ts";
import { rotationKeys, slidingRotation } from "../layer_rotations.ts";
import { FULL, SLIDING, slidingTypes, windowKeys } from "../layer_types.ts";
import { unrepresentable } from "../unrepresentable.ts";
import type { GgufValues } from "../write.ts";

type Config = { readonly [field: string]: unknown };

/** Laguna. A gate per head or per element has tensors of different sizes. */
export const LAGUNA: GgufArchitecture = {
  architecture: "LagunaForCausalLM",
  fields: {
    intermediate_size: "feed_forward_length",
    moe_intermediate_size: "expert_feed_forward_length",
    shared_expert_intermediate_size: "expert_shared_feed_forward_length",
    num_experts: "expert_count",
    moe_routed_scaling_factor: "expert_weights_scale",
    num_attention_heads: [],
  },
  constants: { attention_bias: false },
  keys: { expert_gating_func: SIGMOID, expert_weights_norm: true },
  rotatesPart: true,
  listsDense: "mlp_layer_types",
  ties: true,
  tensors: {
    ...EXPERTS,
    ...DENSE,
    attn_gate: "self_attn.g_proj",
    ffn_gate_shexp: "mlp.shared_expert.gate_proj",
    ffn_up_shexp: "mlp.shared_expert.up_proj",
    ffn_down_shexp: "mlp.shared_expert.down_proj",
    exp_probs_b: {
      name: "mlp.experts.e_score_correction_bias",
      bare: "bias",
    },
  },
  config: { read, write },
};

function read(name: string, { keys, tensors }: GgufHeader): Config {
  const number = (key: string) => numberOf(keys, `${name}.${key}`);
  const heads = numbersOf(keys, `${name}.attention.head_count`);
  const types = slidingTypes(name, keys);
  const [gates] =
    tensors.find((tensor) => tensor.name === "blk.0.attn_gate.weight")?.shape ??
      [];
  return {
    num_attention_heads: heads[0] ?? number("attention.head_count"),
    num_attention_heads_per_layer: heads.length > 0 ? heads : undefined,
    // llama.cpp's order of layers, if a file does not list it.
    layer_types:
      types.length > 0 || number("attention.sliding_window") === undefined
        ? types
        : heads.map((_, layer) => layer % 4 === 0 ? FULL : SLIDING),
    ...slidingRotation(name, keys),
    gating: gates === (heads[0] ?? number("attention.head_count"))
      ? "per-head"
      : "per-element",
  };
}

function write(name: string, config: ReadonlyMap<string, unknown>): GgufValues {
  const layers = Number(config.get("num_hidden_layers"));
  const each = config.get("num_attention_heads_per_layer") as
    | readonly number[]
    | undefined;
  const listed = config.get("layer_types") as readonly string[] | undefined;
  const types = listed ?? Array<string>(layers).fill(FULL);
  const feeds = (config.get("mlp_layer_types") ?? []) as readonly string[];
  const dense = feeds.lastIndexOf("dense") + 1;
  if (feeds.length === 0 || feeds.slice(0, dense).includes("sparse")) {
    throw unrepresentable(name, "mlp_layer_types", feeds);
  }
  return {
    ...windowKeys(types),
    ...rotationKeys(name, config, {
      row: LAGUNA,
      slides: types.includes(SLIDING),
    }),
    "attention.head_count": {
      i32s: types.map((_, layer) =>
        each?.[layer] ?? Number(config.get("num_attention_heads"))
      ),
    },
    leading_dense_block_count: { u32: dense },
  };
}
