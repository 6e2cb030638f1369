/** GraniteMoe: the softmax is over the chosen experts only, fused expert matrices, and four multipliers. */

import { combine, dispatch, dot, type Model, slice } from "../compiler/mod.ts";
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
  positiveField,
  requireField,
} from "./config.ts";
import { type Decoder, decoderModel } from "./decoder.ts";
import { routeLayer, routerLogits, swiglu } from "./feed_forward.ts";
import { readRotary, type Rotary } from "./rotary.ts";

/** A GraniteMoe configuration. */
export interface GraniteMoeConfig extends Decoder, HeadFields {
  readonly ffn: number;
  readonly rotary: Rotary;
  /** Scores are multiplied by `attention`, logits divided by `logits`. */
  readonly multipliers: {
    readonly embedding: number;
    readonly attention: number;
    readonly residual: number;
    readonly logits: number;
  };
}

/** Read a config.json of `GraniteMoeForCausalLM`. What it leaves out has transformers' defaults. */
export function graniteMoeConfig(config: Config): GraniteMoeConfig {
  requireField(config, "hidden_act", "silu");
  requireField(config, "attention_bias", false);
  const { head_dim: _, ...rest } = config;
  const heads = headFields(rest, { embed: 4096, heads: 32 });
  return {
    ...heads,
    layers: integerField(config, "num_hidden_layers", { default: 32 }),
    vocabulary: integerField(config, "vocab_size", { default: 32000 }),
    embed: integerField(config, "hidden_size", { default: 4096 }),
    experts: integerField(config, "num_local_experts", { default: 8 }),
    expertsPerToken: integerField(config, "num_experts_per_tok", {
      default: 2,
    }),
    ffn: integerField(config, "intermediate_size", { default: 11008 }),
    epsilon: positiveField(config, "rms_norm_eps", 1e-6),
    rotary: readRotary(config, { dim: heads.headDim, theta: 10000 }),
    maxPositions: integerField(config, "max_position_embeddings", {
      default: 2048,
    }),
    multipliers: {
      embedding: positiveField(config, "embedding_multiplier", 1),
      attention: positiveField(config, "attention_multiplier", 1),
      residual: positiveField(config, "residual_multiplier", 1),
      logits: positiveField(config, "logits_scaling", 1),
    },
    tied: booleanField(config, "tie_word_embeddings", false),
  };
}

/** The model of a configuration. */
export function graniteMoe(config: GraniteMoeConfig, bounds: Bounds): Model {
  const { ffn, multipliers } = config;
  return decoderModel(config, {
    axes: { ...groupedAxes(config), ffn, gateUp: 2 * ffn },
    multipliers: { ...multipliers, logits: 1 / multipliers.logits },
    attend(m, rows, layer) {
      const heads = splitHeads(project(m, rows, layer));
      const turned = turn(heads, config.rotary, layer);
      return attendHeads(m, turned, layer, { scale: multipliers.attention });
    },
    feed(m, rows, layer) {
      const block = `${layer.name}.block_sparse_moe`;
      const logits = routerLogits(m, rows, `${block}.router.layer.weight`);
      const routing = routeLayer(logits, layer, {
        topK: config.expertsPerToken,
        preset: "graniteMoe",
      });
      const inward = m.param(
        `${block}.input_linear.weight`,
        "expert gateUp embed",
      );
      const both = dot(dispatch(rows, routing), inward, "embed");
      const hidden = swiglu(
        slice(both, "gateUp", 0, "ffn"),
        slice(both, "gateUp", ffn, "ffn"),
      );
      const outward = m.param(
        `${block}.output_linear.weight`,
        "expert embed ffn",
      );
      return combine(dot(hidden, outward, "ffn"), routing);
    },
  }, bounds);
}
