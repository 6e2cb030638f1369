/** What configurations of DeepSeek-V2 and V3 share. */

import {
  type Config,
  type DecoderDefaults,
  type DecoderFields,
  decoderFields,
  ignoreFields,
  integerField,
  type LatentFields,
  latentFields,
  positiveField,
} from "switchyard-moe/models";

/** A DeepSeek configuration. */
export interface DeepseekConfig extends DecoderFields, LatentFields {
  /** Hidden elements of all shared experts together, and of a layer without experts. */
  readonly sharedFfn: number;
  readonly denseFfn: number;
  readonly expertGroups:
    | { readonly count: number; readonly keep: number }
    | undefined;
  /** Multiplies the weights of experts. */
  readonly routedScale: number;
}

/** Defaults in which the two differ. */
export interface DeepseekDefaults extends DecoderDefaults {
  readonly heads: number;
  readonly interleaved: boolean;
  readonly denseFfn: number;
  readonly sharedExperts: number;
  readonly firstSparse: number;
  readonly routedScale: number;
  readonly groups: number;
  readonly topGroups: number;
}

/** Read what V2 and V3 share; routing groups and latent attention included. */
export function deepseekFields(
  config: Config,
  defaults: DeepseekDefaults,
): DeepseekConfig {
  const field = (key: string, value: number) =>
    integerField(config, key, { default: value });
  const fields = decoderFields(config, defaults, {
    experts: "n_routed_experts",
    ffn: "moe_intermediate_size",
  });
  // Latent attention has the sizes of 'qk_rope_head_dim' and the like.
  ignoreFields(config, [
    "head_dim",
    "num_key_value_heads",
    "qk_head_dim",
    "topk_group",
  ]);
  const count = field("n_group", defaults.groups);
  const firstSparse = integerField(config, "first_k_dense_replace", {
    default: defaults.firstSparse,
    min: 0,
  });
  return {
    ...latentFields(config, defaults),
    ...fields,
    sharedFfn: fields.ffn * field("n_shared_experts", defaults.sharedExperts),
    denseFfn: field("intermediate_size", defaults.denseFfn),
    kindOf: (layer) => ({ experts: layer >= firstSparse }),
    expertGroups: count === 1
      ? undefined
      : { count, keep: field("topk_group", defaults.topGroups) },
    routedScale: positiveField(config, "routed_scaling_factor", {
      default: defaults.routedScale,
    }),
  };
}
