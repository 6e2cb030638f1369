/** What configurations of families with latent attention and shared experts have in common. */

import {
  type Config,
  type DecoderDefaults,
  type DecoderFields,
  decoderFields,
  ignoreFields,
  type LatentDefaults,
  type LatentFields,
  latentFields,
  type SharedExpertDefaults,
  type SharedExperts,
  sharedExperts,
} from "switchyard-moe/models";

/** A DeepSeek configuration. */
export interface DeepseekConfig
  extends DecoderFields, LatentFields, SharedExperts {
  readonly kindOf: SharedExperts["kindOf"];
}

/** Defaults in which families differ. */
export interface DeepseekDefaults
  extends DecoderDefaults, LatentDefaults, SharedExpertDefaults {}

/** Read what these families share; routing groups and latent attention included. */
export function deepseekFields(
  config: Config,
  defaults: DeepseekDefaults,
): DeepseekConfig {
  const fields = decoderFields(config, defaults, {
    experts: "n_routed_experts",
    ffn: "moe_intermediate_size",
  });
  // Latent attention has the sizes of 'qk_rope_head_dim' and the like.
  ignoreFields(config, ["head_dim", "num_key_value_heads", "qk_head_dim"]);
  return {
    ...latentFields(config, defaults),
    ...fields,
    ...sharedExperts(config, fields.ffn, defaults),
  };
}
