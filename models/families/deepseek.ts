/** Shared configuration fields of families with latent attention and shared experts. */

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
  extends DecoderFields, LatentFields, SharedExperts {}

/** Defaults that differ between families. */
export interface DeepseekDefaults
  extends DecoderDefaults, LatentDefaults, SharedExpertDefaults {}

/** Defaults of DeepSeek-V3, which later versions keep. */
export const DEEPSEEK_V3 = {
  layers: 61,
  vocabulary: 129280,
  embed: 7168,
  heads: 128,
  denseFfn: 18432,
  ffn: 2048,
  experts: 256,
  sharedExperts: 1,
  expertsPerToken: 8,
  firstSparse: 3,
  routedScale: 2.5,
  normalize: true,
  groups: 8,
  topGroups: 4,
  maxPositions: 4096,
  epsilon: 1e-6,
};

/** Reads the fields that these families share, including routing groups and latent attention. */
export function deepseekFields(
  config: Config,
  defaults: DeepseekDefaults,
): DeepseekConfig {
  const fields = decoderFields(config, defaults, {
    experts: "n_routed_experts",
    ffn: "moe_intermediate_size",
  });
  // Latent attention takes its sizes from 'qk_rope_head_dim' and similar fields.
  ignoreFields(config, ["head_dim", "num_key_value_heads", "qk_head_dim"]);
  return {
    ...latentFields(config, defaults),
    ...fields,
    ...sharedExperts(config, fields.ffn, defaults),
  };
}
