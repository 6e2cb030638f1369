/** FlexOlmo: each block normalizes its result instead of its input; queries and keys are normalized over all heads. */

import type { Model } from "switchyard-moe";
import {
  attendHeads,
  booleanField,
  type Config,
  decoderModel,
  type DecoderOptions,
  type DecoderScope,
  defineFamily,
  experts,
  groupedAxes,
  type GroupedDecoder,
  groupedFields,
  normAllHeads,
  project,
  requireField,
  rotate,
  routeLayer,
  splitHeads,
} from "switchyard-moe/models";

/** The family of `FlexOlmoForCausalLM`. */
export const family = defineFamily({
  architectures: ["FlexOlmoForCausalLM"],
  config: readConfig,
  build,
});

/** A FlexOlmo configuration. */
interface FlexOlmoConfig extends GroupedDecoder {
  /** Divide the weights of a token's experts by their sum. */
  readonly normalize: boolean;
}

/** Reads a config.json of `FlexOlmoForCausalLM`. Missing fields have transformers' defaults. */
function readConfig(config: Config): FlexOlmoConfig {
  requireField(config, "attention_bias", false);
  return {
    ...groupedFields(config, {
      layers: 32,
      vocabulary: 100352,
      embed: 4096,
      heads: 32,
      experts: 7,
      expertsPerToken: 5,
      ffn: 11008,
      epsilon: 1e-6,
      theta: 500000,
      maxPositions: 4096,
    }, { experts: "num_experts", ffn: "intermediate_size" }),
    normalize: booleanField(config, "norm_topk_prob", { default: false }),
  };
}

/** Builds the model of a configuration. */
function build(
  config: FlexOlmoConfig,
  options: DecoderOptions,
): Model {
  return decoderModel(config, {
    axes: groupedAxes(config),
    layer(scope, x, layer) {
      const m: DecoderScope = scope;
      const attended = layer.residual(x, (rows) => {
        const done = scope.block("self_attn", {}, (m) => {
          const heads = splitHeads(normAllHeads(m, project(m, rows), config));
          return attendHeads(m, rotate(heads, config.rotary, layer), layer);
        });
        return layer.norm(m, done, "post_attention_layernorm.weight");
      });
      return layer.residual(layer.pick(m, attended), (rows) => {
        const done = m.block("mlp", { ffn: config.ffn }, (m) => {
          const routing = routeLayer(m, rows, layer, {
            topK: config.expertsPerToken,
            preset: "olmoe",
            normalize: config.normalize ? "chosen" : "none",
          });
          return experts(m, rows, routing);
        });
        return layer.norm(m, done, "post_feedforward_layernorm.weight");
      });
    },
  }, options);
}
