/** What configurations of DeepSeek-V2 and V3 share. */

import {
  type DecoderDefaults,
  type DecoderFields,
  decoderFields,
} from "./common_config.ts";
import { type Config, integerField, positiveField } from "./config.ts";
import { type LatentFields, latentFields } from "./latent_attention.ts";

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
    routedScale: positiveField(
      config,
      "routed_scaling_factor",
      defaults.routedScale,
    ),
  };
}
