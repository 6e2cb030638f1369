/**
 * The row of the text models of Qwen3-VL-MoE and Qwen3-Omni-MoE. They are read as Qwen3-MoE, whose files have other
 * keys.
 */

import type { GgufArchitecture } from "../architecture.ts";
import { DENSE, EXPERTS, partsOf } from "../common_names.ts";

/** Qwen3-VL-MoE and Qwen3-Omni-MoE, text. */
export const QWEN3_VL_MOE: GgufArchitecture = {
  architecture: "Qwen3MoeForCausalLM",
  others: [
    "Qwen3VLMoeForConditionalGeneration",
    "Qwen3OmniMoeForConditionalGeneration",
  ],
  fields: {
    intermediate_size: "feed_forward_length",
    moe_intermediate_size: "expert_feed_forward_length",
    num_experts: "expert_count",
  },
  constants: { norm_topk_prob: true },
  sections: [24, 20, 20],
  listsDense: "mlp_only_layers",
  ties: true,
  tensors: { ...EXPERTS, ...DENSE },
  fused: {
    "mlp.experts.gate_up_proj": {
      parts: partsOf("mlp", ["gate_proj.weight", "up_proj.weight"]),
      transposed: true,
    },
    "mlp.experts.down_proj": {
      parts: partsOf("mlp", ["down_proj.weight"]),
      transposed: true,
    },
  },
  config: {
    read: () => ({}),
    // Layers that add features of images. The vision part is in another file.
    write: (_, config) => {
      const { deepstack_visual_indexes: layers = [] } =
        (config.get("vision_config") ?? {}) as {
          readonly deepstack_visual_indexes?: readonly number[];
        };
      return { n_deepstack_layers: { u32: layers.length } };
    },
  },
};
