/** Mixtral: grouped-query attention, an optional sliding window, weights of experts that sum to 1. */

import type { Model } from "../compiler/mod.ts";
import {
  attendHeads,
  groupedAxes,
  project,
  splitHeads,
  turn,
} from "./attention.ts";
import {
  booleanField,
  type Bounds,
  type Config,
  type HeadFields,
  headFields,
  integerField,
  optionalIntegerField,
  positiveField,
  requireField,
} from "./config.ts";
import { type Decoder, decoderModel } from "./decoder.ts";
import { experts, routeLayer, routerLogits } from "./feed_forward.ts";
import { readRotary, type Rotary } from "./rotary.ts";

/** A Mixtral configuration. */
export interface MixtralConfig extends Decoder, HeadFields {
  readonly ffn: number;
  readonly rotary: Rotary;
  /** Tokens see this many positions; undefined: all. */
  readonly window: number | undefined;
}

/** Read a config.json of `MixtralForCausalLM`. What it leaves out has transformers' defaults. */
export function mixtralConfig(config: Config): MixtralConfig {
  requireField(config, "hidden_act", "silu");
  const heads = headFields(config, { embed: 4096, heads: 32, kvHeads: 8 });
  return {
    ...heads,
    layers: integerField(config, "num_hidden_layers", { default: 32 }),
    vocabulary: integerField(config, "vocab_size", { default: 32000 }),
    embed: integerField(config, "hidden_size", { default: 4096 }),
    experts: integerField(config, "num_local_experts", { default: 8 }),
    expertsPerToken: integerField(config, "num_experts_per_tok", {
      default: 2,
    }),
    ffn: integerField(config, "intermediate_size", { default: 14336 }),
    epsilon: positiveField(config, "rms_norm_eps", 1e-5),
    rotary: readRotary(config, { dim: heads.headDim, theta: 1e6 }),
    maxPositions: integerField(config, "max_position_embeddings", {
      default: 131072,
    }),
    window: optionalIntegerField(config, "sliding_window"),
    tied: booleanField(config, "tie_word_embeddings", false),
  };
}

/** The model of a configuration. */
export function mixtral(config: MixtralConfig, bounds: Bounds): Model {
  return decoderModel(config, {
    axes: { ...groupedAxes(config), ffn: config.ffn },
    attend(m, rows, layer) {
      const heads = splitHeads(project(m, rows, layer));
      const turned = turn(heads, config.rotary, layer);
      return attendHeads(m, turned, layer, { window: config.window });
    },
    feed(m, rows, layer) {
      const block = `${layer.name}.block_sparse_moe`;
      const logits = routerLogits(m, rows, `${block}.gate.weight`);
      const routing = routeLayer(logits, layer, {
        topK: config.expertsPerToken,
        preset: "mixtral",
      });
      return experts(m, rows, routing, {
        gate: `${block}.experts.{expert}.w1.weight`,
        up: `${block}.experts.{expert}.w3.weight`,
        down: `${block}.experts.{expert}.w2.weight`,
      });
    },
  }, bounds);
}
