/** GraniteMoe: a softmax over the chosen experts only, fused expert matrices, and four multipliers. */

import type { Model } from "switchyard-moe";
import {
  attendHeads,
  booleanField,
  type Config,
  decoderModel,
  type DecoderOptions,
  defineFamily,
  experts,
  fusedExperts,
  groupedAxes,
  type GroupedDecoder,
  groupedFields,
  type Part,
  positiveField,
  projectHeads,
  requireField,
  rotate,
  routeLayer,
} from "switchyard-moe/models";

/** The family of `GraniteMoeForCausalLM`. */
export const family = defineFamily({
  architectures: ["GraniteMoeForCausalLM"],
  config: readConfig,
  build,
});

/** A GraniteMoe configuration. */
export interface GraniteMoeConfig extends GroupedDecoder {
  /** Scores are multiplied by `attention`; logits are divided by `logits`. */
  readonly multipliers: {
    readonly embedding: number;
    readonly attention: number;
    readonly residual: number;
    readonly logits: number;
  };
  /** One tensor has the gates and factors of all experts. Otherwise each matrix of an expert is a tensor. */
  readonly fused: boolean;
}

/** Reads a config.json of `GraniteMoeForCausalLM`. Missing fields have transformers' defaults. */
function readConfig(config: Config): GraniteMoeConfig {
  requireField(config, "position_embedding_type", "rope");
  return graniteFields(config);
}

/** Reads the fields that Granite 4 shares. */
export function graniteFields(config: Config): GraniteMoeConfig {
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
      embedding: positiveField(config, "embedding_multiplier", { default: 1 }),
      attention: positiveField(config, "attention_multiplier", { default: 1 }),
      residual: positiveField(config, "residual_multiplier", { default: 1 }),
      logits: positiveField(config, "logits_scaling", { default: 1 }),
    },
    fused: booleanField(config, "fused_experts", { default: true }),
  };
}

/** Builds the model of a configuration. */
function build(
  config: GraniteMoeConfig,
  options: DecoderOptions,
): Model {
  const { multipliers } = config;
  return decoderModel(config, {
    axes: groupedAxes(config),
    multipliers: { ...multipliers, logits: 1 / multipliers.logits },
    attend: (m, rows, layer) =>
      m.block("self_attn", {}, (m) => {
        const rotated = rotate(projectHeads(m, rows), config.rotary, layer);
        return attendHeads(m, rotated, layer, { scale: multipliers.attention });
      }),
    feed: feedGranite(config),
  }, options);
}

/** The block `block_sparse_moe`. */
export function feedGranite(
  { ffn, expertsPerToken: topK, fused }: GraniteMoeConfig,
): Part {
  return (m, rows, layer) =>
    m.block("block_sparse_moe", { ffn, gateUp: 2 * ffn }, (m) => {
      const routing = routeLayer(m, rows, layer, {
        router: "router.layer",
        topK,
        preset: "graniteMoe",
      });
      if (!fused) return experts(m, rows, routing);
      return fusedExperts(m, rows, routing, {
        ffn,
        inward: "input_linear.weight",
        outward: "output_linear.weight",
      });
    });
}
