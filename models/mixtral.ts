/** Mixtral: grouped-query attention, an optional sliding window, weights of experts that sum to 1. */

import type { Model } from "../compiler/mod.ts";
import {
  booleanField,
  type Bounds,
  type Config,
  integerField,
  positiveField,
  requireField,
  requireMultiple,
  ropeTheta,
} from "./config.ts";
import {
  type Decoder,
  decoderModel,
  linear,
  linearKeyValue,
} from "./decoder.ts";

/** Read a config.json of `MixtralForCausalLM`. What it leaves out has transformers' defaults. */
export function mixtralConfig(config: Config): Decoder {
  requireField(config, "hidden_act", "silu");
  const embed = integerField(config, "hidden_size", { default: 4096 });
  const heads = integerField(config, "num_attention_heads", { default: 32 });
  const kvHeads = integerField(config, "num_key_value_heads", { default: 8 });
  const ownHeadDim = config["head_dim"] ?? undefined;
  if (ownHeadDim === undefined) {
    requireMultiple({ name: "hidden_size", value: embed }, {
      name: "num_attention_heads",
      value: heads,
    });
  }
  requireMultiple({ name: "num_attention_heads", value: heads }, {
    name: "num_key_value_heads",
    value: kvHeads,
  });
  return {
    layers: integerField(config, "num_hidden_layers", { default: 32 }),
    vocabulary: integerField(config, "vocab_size", { default: 32000 }),
    embed,
    heads,
    kvHeads,
    headDim: integerField(config, "head_dim", { default: embed / heads }),
    experts: integerField(config, "num_local_experts", { default: 8 }),
    expertsPerToken: integerField(config, "num_experts_per_tok", {
      default: 2,
    }),
    ffn: integerField(config, "intermediate_size", { default: 14336 }),
    epsilon: positiveField(config, "rms_norm_eps", 1e-5),
    theta: ropeTheta(config, 1e6),
    maxPositions: integerField(config, "max_position_embeddings", {
      default: 131072,
    }),
    window: config["sliding_window"] === undefined ||
        config["sliding_window"] === null
      ? undefined
      : integerField(config, "sliding_window"),
    preset: "mixtral",
    tied: booleanField(config, "tie_word_embeddings", false),
  };
}

/** The model of a configuration. */
export function mixtral(config: Decoder, bounds: Bounds): Model {
  return decoderModel(config, {
    experts: {
      router: "block_sparse_moe.gate.weight",
      gate: "block_sparse_moe.experts.{expert}.w1.weight",
      up: "block_sparse_moe.experts.{expert}.w3.weight",
      down: "block_sparse_moe.experts.{expert}.w2.weight",
    },
    project: (m, rows, layer) => ({
      q: linear(m, rows, `${layer}.self_attn.q_proj.weight`),
      k: linearKeyValue(m, rows, `${layer}.self_attn.k_proj.weight`),
      v: linearKeyValue(m, rows, `${layer}.self_attn.v_proj.weight`),
    }),
  }, bounds);
}
