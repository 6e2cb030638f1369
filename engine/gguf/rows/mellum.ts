/** The row of Mellum 2, whose layers with a window have another rotation. */

import type { GgufArchitecture } from "../architecture.ts";
import { EXPERTS } from "../common_names.ts";
import { rotationKeys, slidingRotation } from "../layer_rotations.ts";
import { FULL, SLIDING, slidingTypes, windowKeys } from "../layer_types.ts";
import { unrepresentable } from "../unrepresentable.ts";

/** Mellum 2. All layers of files have experts. */
export const MELLUM: GgufArchitecture = {
  architecture: "MellumForCausalLM",
  fields: {
    intermediate_size: "feed_forward_length",
    moe_intermediate_size: "expert_feed_forward_length",
    num_experts: "expert_count",
  },
  constants: { attention_bias: false, norm_topk_prob: true },
  tensors: EXPERTS,
  config: {
    read: (name, { keys }) => ({
      layer_types: slidingTypes(name, keys),
      ...slidingRotation(name, keys),
    }),
    write(name, config) {
      const feeds = (config.get("mlp_layer_types") ?? []) as readonly string[];
      if (feeds.includes("dense")) {
        throw unrepresentable(name, "mlp_layer_types", feeds);
      }
      const types = (config.get("layer_types") ??
        Array(Number(config.get("num_hidden_layers"))).fill(
          FULL,
        )) as readonly string[];
      const slides = types.includes(SLIDING);
      return {
        ...windowKeys(types),
        ...rotationKeys(name, config, { row: MELLUM, slides }),
      };
    },
  },
};
