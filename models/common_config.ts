/** The fields of config.json that all families share. A family provides its defaults and its names of fields. */

import {
  booleanField,
  type Config,
  integerField,
  positiveField,
  requireAbsent,
  requireField,
  requireMultiple,
} from "./config.ts";
import type { Decoder } from "./decoder.ts";
import { readRotary, type Rotary } from "./rotary.ts";

/** The fields of any decoder except its heads. `ffn`: hidden size of an expert. */
export type DecoderFields =
  & Omit<Decoder, "heads" | "headDim">
  & { readonly ffn: number };

/** The defaults of a family. Most families have a separate output matrix by default. */
export type DecoderDefaults = Omit<DecoderFields, "tied" | "kindOf"> & {
  readonly tied?: boolean;
  /** The only value of `hidden_act`. Default: "silu". */
  readonly activation?: string;
};

/** Field names that differ between families. */
export interface FieldNames {
  readonly experts: string;
  readonly ffn: string;
  /** Field with the number of experts per token. Default: "num_experts_per_tok". */
  readonly expertsPerToken?: string;
  /** Field with the epsilon of norms. Default: "rms_norm_eps". */
  readonly epsilon?: string;
  /** Field with the maximum number of positions. Default: "max_position_embeddings". */
  readonly maxPositions?: string;
}

/** Reads the fields of any decoder except its heads. By default all layers are equal and have experts. */
export function decoderFields(
  config: Config,
  defaults: DecoderDefaults,
  names: FieldNames,
): DecoderFields {
  requireField(config, "hidden_act", defaults.activation ?? "silu");
  requireField(config, "quantization_config", null);
  const size = (key: string, value: number) =>
    integerField(config, key, { default: value });
  const {
    ffn,
    expertsPerToken = "num_experts_per_tok",
    epsilon = "rms_norm_eps",
    maxPositions = "max_position_embeddings",
  } = names;
  // Families with layers without experts have both fields. The others have one of them.
  const foreign = "moe_intermediate_size";
  if (ffn !== foreign && config[ffn] === undefined) {
    requireAbsent(config, foreign, ffn);
  }
  return {
    layers: size("num_hidden_layers", defaults.layers),
    vocabulary: size("vocab_size", defaults.vocabulary),
    embed: size("hidden_size", defaults.embed),
    experts: size(names.experts, defaults.experts),
    expertsPerToken: size(expertsPerToken, defaults.expertsPerToken),
    ffn: size(ffn, defaults.ffn),
    epsilon: positiveField(config, epsilon, { default: defaults.epsilon }),
    maxPositions: size(maxPositions, defaults.maxPositions),
    tied: booleanField(config, "tie_word_embeddings", {
      default: defaults.tied ?? false,
    }),
    kindOf: () => ({ experts: true }),
  };
}

/** A decoder with grouped-query attention. */
export interface GroupedDecoder extends DecoderFields, Decoder {
  /** Heads of keys and values. */
  readonly kvHeads: number;
  readonly rotary: Rotary;
}

/** The defaults of a family. `kvHeads` defaults to the number of heads, and `headDim` to hidden size / heads. */
export interface GroupedDefaults extends DecoderDefaults {
  readonly heads: number;
  readonly kvHeads?: number;
  readonly headDim?: number;
  /** Base of the rotary frequencies. */
  readonly theta: number;
  readonly interleaved?: boolean;
  /** Fraction of a head that is rotated. Default: the whole head. */
  readonly part?: number;
}

/** Reads the fields of any decoder with grouped-query attention. */
export function groupedFields(
  config: Config,
  defaults: GroupedDefaults,
  names: FieldNames,
): GroupedDecoder {
  const fields = decoderFields(config, defaults, names);
  const heads = integerField(config, "num_attention_heads", {
    default: defaults.heads,
  });
  const kvHeads = integerField(config, "num_key_value_heads", {
    default: defaults.kvHeads ?? heads,
  });
  const query = { name: "num_attention_heads", value: heads };
  if ((config["head_dim"] ?? defaults.headDim) === undefined) {
    requireMultiple({ name: "hidden_size", value: fields.embed }, query);
  }
  requireMultiple(query, { name: "num_key_value_heads", value: kvHeads });
  const headDim = integerField(config, "head_dim", {
    default: defaults.headDim ?? fields.embed / heads,
  });
  const rotary = readRotary(config, { ...defaults, dim: headDim });
  return { ...fields, heads, kvHeads, headDim, rotary };
}
