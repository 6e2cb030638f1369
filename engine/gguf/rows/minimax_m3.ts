/** The row of MiniMax-M3. Gains of norms are stored plus 1. Layers with experts are those with an indexer. */

import type { GgufArchitecture, TensorName } from "../architecture.ts";
import {
  DENSE,
  NUMBERED_EXPERTS,
  NUMBERED_SHARED,
  SIGMOID,
} from "../common_names.ts";
import { type GgufHeader, layerCount, numberOf } from "../header.ts";
import { unrepresentable } from "../unrepresentable.ts";
import type { GgufValues } from "../write.ts";

type Config = { readonly [field: string]: unknown };

/** Keys of the indexer, their fields in `sparse_attention_config` of published files, and their defaults. */
const INDEXER = {
  index_n_heads: ["head_count", "sparse_num_index_heads", 4],
  index_head_dim: ["key_length", "sparse_index_dim", 128],
  index_topk_blocks: ["top_k", "sparse_topk_blocks", 16],
  index_block_size: ["block_size", "sparse_block_size", 128],
  index_local_blocks: ["local_blocks", "sparse_local_block", 1],
} as const;

const [SPARSE, FULL] = ["minimax_m3_sparse", "full_attention"];

function gain(name: string): TensorName {
  return { name, values: "gain" };
}

/** MiniMax-M3, text. */
export const MINIMAX_M3: GgufArchitecture = {
  architecture: "MiniMaxM3SparseForCausalLM",
  others: [
    "MiniMaxM3SparseForConditionalGeneration",
    "MiniMaxM3VLForConditionalGeneration",
  ],
  fields: {
    dense_intermediate_size: "feed_forward_length",
    intermediate_size: "expert_feed_forward_length",
    num_local_experts: "expert_count",
    n_shared_experts: "expert_shared_count",
    routed_scaling_factor: "expert_weights_scale",
  },
  constants: {
    n_shared_experts: 1,
    swiglu_alpha: 1.702,
    swiglu_limit: 7,
  },
  keys: { expert_gating_func: SIGMOID, expert_weights_norm: true },
  rotatesPart: true,
  tensors: {
    ...DENSE,
    attn_norm: gain("input_layernorm"),
    attn_q_norm: gain("self_attn.q_norm"),
    attn_k_norm: gain("self_attn.k_norm"),
    ffn_norm: gain("post_attention_layernorm"),
    "indexer.q_proj": "self_attn.index_q_proj",
    "indexer.k_proj": "self_attn.index_k_proj",
    "indexer.q_norm": gain("self_attn.index_q_norm"),
    "indexer.k_norm": gain("self_attn.index_k_norm"),
    ...NUMBERED_EXPERTS,
    ...NUMBERED_SHARED,
    exp_probs_b: {
      name: "block_sparse_moe.e_score_correction_bias",
      bare: "bias",
    },
  },
  outer: { "output_norm.weight": gain("model.norm.weight") },
  config: { read, write },
};

function read(name: string, { keys, tensors }: GgufHeader): Config {
  const number = (key: string) => numberOf(keys, `${name}.${key}`);
  const dense = number("leading_dense_block_count") ?? 0;
  const layers = Math.min(layerCount(name, keys), tensors.length);
  const each = (first: string, other: string) =>
    Array.from({ length: layers }, (_, i) => i < dense ? first : other);
  return {
    layer_types: each(FULL!, SPARSE!),
    mlp_layer_types: each("dense", "sparse"),
    shared_intermediate_size: number("expert_feed_forward_length"),
    ...Object.fromEntries(
      Object.entries(INDEXER).map(([field, [key]]) => [
        field,
        number(`attention.indexer.${key}`),
      ]),
    ),
  };
}

function write(name: string, config: ReadonlyMap<string, unknown>): GgufValues {
  const inner = (config.get("sparse_attention_config") ?? {}) as Config;
  /** The layers that a list of types, or of zeros and ones, marks. */
  const marked = (types: unknown, type: string, flags: unknown) =>
    Array.isArray(types)
      ? types.map((each) => each === type)
      : Array.isArray(flags)
      ? flags.map((flag) => flag === 1)
      : [];
  const sparse = marked(
    config.get("layer_types"),
    SPARSE!,
    inner["sparse_attention_freq"],
  );
  const experts = marked(
    config.get("mlp_layer_types"),
    "sparse",
    config.get("moe_layer_freq"),
  );
  const dense = experts.indexOf(true);
  const leads = experts.every((has, layer) => has === layer >= dense);
  const shared = config.get("shared_intermediate_size");
  for (
    const [field, value, holds] of [
      ["mlp_layer_types", experts, dense >= 0 && leads],
      ["layer_types", sparse, String(sparse) === String(experts)],
      [
        "shared_intermediate_size",
        shared,
        shared === config.get("intermediate_size"),
      ],
      [
        "sparse_init_block",
        inner["sparse_init_block"],
        !inner["sparse_init_block"],
      ],
    ] as const
  ) {
    if (!holds) throw unrepresentable(name, field, value ?? null);
  }
  return {
    leading_dense_block_count: { u32: dense },
    expert_shared_count: { u32: 1 },
    ...Object.fromEntries(
      Object.entries(INDEXER).map(([field, [key, published, value]]) => [
        `attention.indexer.${key}`,
        {
          u32: Number(inner[published] ?? config.get(field) ?? value),
        },
      ]),
    ),
  };
}
