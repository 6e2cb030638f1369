/** GraniteMoe: the softmax is over the chosen experts only, fused expert matrices, and four multipliers. */

import {
  combine,
  dispatch,
  dot,
  type Model,
  slice,
  swiglu,
} from "../compiler/mod.ts";
import { attendHeads, groupedAxes, projectHeads, rotate } from "./attention.ts";
import { type GroupedDecoder, groupedFields } from "./common_config.ts";
import {
  type Config,
  type DecoderOptions,
  positiveField,
  requireField,
} from "./config.ts";
import { decoderModel } from "./decoder.ts";
import { routeLayer } from "./feed_forward.ts";

/** A GraniteMoe configuration. */
export interface GraniteMoeConfig extends GroupedDecoder {
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
  requireField(config, "attention_bias", false);
  const { head_dim: _, ...rest } = config;
  return {
    ...groupedFields(rest, {
      layers: 32,
      vocabulary: 32000,
      embed: 4096,
      heads: 32,
      experts: 8,
      expertsPerToken: 2,
      ffn: 11008,
      epsilon: 1e-6,
      theta: 10000,
      maxPositions: 2048,
    }, { experts: "num_local_experts", ffn: "intermediate_size" }),
    multipliers: {
      embedding: positiveField(config, "embedding_multiplier", 1),
      attention: positiveField(config, "attention_multiplier", 1),
      residual: positiveField(config, "residual_multiplier", 1),
      logits: positiveField(config, "logits_scaling", 1),
    },
  };
}

/** The model of a configuration. */
export function graniteMoe(
  config: GraniteMoeConfig,
  options: DecoderOptions,
): Model {
  const { ffn, multipliers } = config;
  return decoderModel(config, {
    axes: groupedAxes(config),
    multipliers: { ...multipliers, logits: 1 / multipliers.logits },
    attend: (m, rows, layer) =>
      m.block("self_attn", {}, (m) => {
        const rotated = rotate(projectHeads(m, rows), config.rotary, layer);
        return attendHeads(m, rotated, layer, { scale: multipliers.attention });
      }),
    feed: (m, rows, layer) =>
      m.block("block_sparse_moe", { ffn, gateUp: 2 * ffn }, (m) => {
        const routing = routeLayer(m, rows, layer, {
          router: "router.layer",
          topK: config.expertsPerToken,
          preset: "graniteMoe",
        });
        const inward = m.param(
          "input_linear.weight",
          "expert gateUp embed",
        );
        const both = dot(dispatch(rows, routing), inward, "embed");
        const hidden = swiglu(
          slice(both, "gateUp", 0, "ffn"),
          slice(both, "gateUp", ffn, "ffn"),
        );
        const outward = m.param(
          "output_linear.weight",
          "expert embed ffn",
        );
        return combine(dot(hidden, outward, "ffn"), routing);
      }),
  }, options);
}
