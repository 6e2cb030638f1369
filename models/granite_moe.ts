/** GraniteMoe: the softmax is over the chosen experts only, fused expert matrices, and four multipliers. */

import {
  combine,
  dispatch,
  dot,
  type Model,
  slice,
  swiglu,
} from "switchyard-moe";
import {
  attendHeads,
  type Config,
  decoderModel,
  type DecoderOptions,
  defineFamily,
  groupedAxes,
  type GroupedDecoder,
  groupedFields,
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
interface GraniteMoeConfig extends GroupedDecoder {
  /** Scores are multiplied by `attention`, logits divided by `logits`. */
  readonly multipliers: {
    readonly embedding: number;
    readonly attention: number;
    readonly residual: number;
    readonly logits: number;
  };
}

/** Read a config.json of `GraniteMoeForCausalLM`. What it leaves out has transformers' defaults. */
function readConfig(config: Config): GraniteMoeConfig {
  requireField(config, "attention_bias", false);
  requireField(config, "position_embedding_type", "rope");
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
  };
}

/** The model of a configuration. */
function build(
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
