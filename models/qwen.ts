/** What configurations of Qwen2-MoE and Qwen3-MoE share. */

import {
  booleanField,
  type Config,
  type GroupedDecoder,
  type GroupedDefaults,
  groupedFields,
  ignoreFields,
  integerField,
  integersField,
  requireField,
  requireLayerTypes,
} from "switchyard-moe/models";

/** A Qwen configuration. */
export interface QwenConfig extends GroupedDecoder {
  /** Hidden elements of a layer without experts. */
  readonly denseFfn: number;
  /** Weights of a token's experts are divided by their sum. */
  readonly normalize: boolean;
}

/** Read what both have. Every `decoder_sparse_step`-th layer has experts, but those of `mlp_only_layers`. */
export function qwenFields(
  config: Config,
  defaults: GroupedDefaults & { readonly denseFfn: number },
): QwenConfig {
  requireField(config, "use_sliding_window", false);
  ignoreFields(config, ["sliding_window", "max_window_layers"]);
  requireLayerTypes(config, () => "full_attention");
  const dense = integersField(config, "mlp_only_layers") ?? [];
  const step = integerField(config, "decoder_sparse_step", { default: 1 });
  return {
    ...groupedFields(config, defaults, {
      // Transformers 5 writes the other name.
      experts: config["num_experts"] === undefined &&
          config["num_local_experts"] !== undefined
        ? "num_local_experts"
        : "num_experts",
      ffn: "moe_intermediate_size",
    }),
    denseFfn: integerField(config, "intermediate_size", {
      default: defaults.denseFfn,
    }),
    normalize: booleanField(config, "norm_topk_prob", { default: false }),
    kindOf: (layer) => ({
      experts: !dense.includes(layer) && (layer + 1) % step === 0,
    }),
  };
}
