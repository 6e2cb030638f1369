/** What configurations of DeepSeek-V2 and V3 share. */

import {
  booleanField,
  type Config,
  integerField,
  positiveField,
  requireField,
} from "./config.ts";
import type { Decoder } from "./decoder.ts";
import { type LatentFields, latentFields } from "./latent_attention.ts";

/** A DeepSeek configuration. */
export interface DeepseekConfig extends Decoder, LatentFields {
  /** Hidden elements of an expert, of all shared experts together, and of a layer without experts. */
  readonly ffn: number;
  readonly sharedFfn: number;
  readonly denseFfn: number;
  /** Layers before this one have no experts. */
  readonly firstSparse: number;
  readonly expertGroups:
    | { readonly count: number; readonly keep: number }
    | undefined;
  /** Multiplies the weights of experts. */
  readonly routedScale: number;
}

/** Defaults in which the two differ. */
export interface DeepseekDefaults {
  readonly heads: number;
  readonly interleaved: boolean;
  readonly layers: number;
  readonly vocabulary: number;
  readonly embed: number;
  readonly denseFfn: number;
  readonly ffn: number;
  readonly experts: number;
  readonly sharedExperts: number;
  readonly expertsPerToken: number;
  readonly firstSparse: number;
  readonly routedScale: number;
  readonly groups: number;
  readonly keptGroups: number;
  readonly maxPositions: number;
}

/** Read what V2 and V3 share; routing groups and latent attention included. */
export function deepseekFields(
  config: Config,
  defaults: DeepseekDefaults,
): DeepseekConfig {
  requireField(config, "hidden_act", "silu");
  const field = (key: string, value: number) =>
    integerField(config, key, { default: value });
  const ffn = field("moe_intermediate_size", defaults.ffn);
  const count = field("n_group", defaults.groups);
  return {
    ...latentFields(config, defaults),
    layers: field("num_hidden_layers", defaults.layers),
    vocabulary: field("vocab_size", defaults.vocabulary),
    embed: field("hidden_size", defaults.embed),
    experts: field("n_routed_experts", defaults.experts),
    expertsPerToken: field("num_experts_per_tok", defaults.expertsPerToken),
    ffn,
    sharedFfn: ffn * field("n_shared_experts", defaults.sharedExperts),
    denseFfn: field("intermediate_size", defaults.denseFfn),
    firstSparse: integerField(config, "first_k_dense_replace", {
      default: defaults.firstSparse,
      least: 0,
    }),
    expertGroups: count === 1
      ? undefined
      : { count, keep: field("topk_group", defaults.keptGroups) },
    routedScale: positiveField(
      config,
      "routed_scaling_factor",
      defaults.routedScale,
    ),
    epsilon: positiveField(config, "rms_norm_eps", 1e-6),
    maxPositions: field("max_position_embeddings", defaults.maxPositions),
    tied: booleanField(config, "tie_word_embeddings", false),
  };
}
