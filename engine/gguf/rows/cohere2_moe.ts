/** The row of Cohere2-MoE. Layers for drafts are not read. */

import type { GgufArchitecture } from "../architecture.ts";
import { DENSE, EXPERTS, SHARED, SIGMOID } from "../common_names.ts";
import { FULL, SLIDING, slidingTypes, windowKeys } from "../layer_types.ts";

/** Cohere2-MoE. Norms subtract the mean in files without `attention.layer_norm_rms_epsilon`. */
export const COHERE2_MOE: GgufArchitecture = {
  architecture: "Cohere2MoeForCausalLM",
  others: ["Cohere2VisionForConditionalGeneration"],
  fields: {
    intermediate_size: "expert_feed_forward_length",
    prefix_dense_intermediate_size: "feed_forward_length",
    num_experts: "expert_count",
    num_shared_experts: "expert_shared_count",
    norm_topk_prob: "expert_weights_norm",
    first_k_dense_replace: "leading_dense_block_count",
    layer_norm_eps: "attention.layer_norm_epsilon",
    logit_scale: "logit_scale",
  },
  constants: {
    expert_selection_fn: "sigmoid",
    norm_topk_prob: false,
    prefix_dense_sliding_window_pattern: 1,
    shared_expert_combination_strategy: "average",
  },
  keys: { expert_gating_func: SIGMOID },
  products: {
    expert_shared_feed_forward_length: [
      "num_shared_experts",
      "intermediate_size",
    ],
  },
  ties: true,
  tensors: { ...EXPERTS, ...DENSE, ...SHARED },
  config: {
    read: (name, { keys }) => ({ layer_types: slidingTypes(name, keys) }),
    write(_, config) {
      const layers = Number(config.get("num_hidden_layers"));
      const first = Number(config.get("first_k_dense_replace") ?? 0);
      const every = Number(config.get("sliding_window_pattern") ?? 4);
      const types = config.get("layer_types") ??
        Array.from(
          { length: layers },
          (_, layer) =>
            layer < first || (layer - first + 1) % every === 0 ? FULL : SLIDING,
        );
      return windowKeys(types as readonly string[]);
    },
  },
};
