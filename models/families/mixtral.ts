/** Mixtral: grouped-query attention, an optional sliding window, and expert weights that sum to 1. */

import type { Model } from "switchyard-moe";
import {
  attendHeads,
  type Config,
  decoderModel,
  type DecoderOptions,
  defineFamily,
  experts,
  groupedAxes,
  type GroupedDecoder,
  groupedFields,
  NUMBERED,
  optionalIntegerField,
  projectHeads,
  rotate,
  routeLayer,
} from "switchyard-moe/models";

/** The family of `MixtralForCausalLM`. */
export const family = defineFamily({
  architectures: ["MixtralForCausalLM"],
  config: readConfig,
  build,
});

/** A Mixtral configuration. */
interface MixtralConfig extends GroupedDecoder {
  /** Positions that tokens see. Undefined: all positions. */
  readonly window: number | undefined;
}

/** Reads a config.json of `MixtralForCausalLM`. Missing fields have transformers' defaults. */
function readConfig(config: Config): MixtralConfig {
  return {
    ...groupedFields(config, {
      layers: 32,
      vocabulary: 32000,
      embed: 4096,
      heads: 32,
      kvHeads: 8,
      experts: 8,
      expertsPerToken: 2,
      ffn: 14336,
      epsilon: 1e-5,
      theta: 1e6,
      maxPositions: 131072,
    }, { experts: "num_local_experts", ffn: "intermediate_size" }),
    window: optionalIntegerField(config, "sliding_window"),
  };
}

/** Builds the model of a configuration. */
function build(config: MixtralConfig, options: DecoderOptions): Model {
  return decoderModel(config, {
    axes: groupedAxes(config),
    attend: (m, rows, layer) =>
      m.block("self_attn", {}, (m) => {
        const rotated = rotate(projectHeads(m, rows), config.rotary, layer);
        return attendHeads(m, rotated, layer, { window: config.window });
      }),
    feed: (m, rows, layer) =>
      m.block("block_sparse_moe", { ffn: config.ffn }, (m) => {
        const routing = routeLayer(m, rows, layer, {
          topK: config.expertsPerToken,
          preset: "mixtral",
        });
        return experts(m, rows, routing, { names: NUMBERED });
      }),
  }, options);
}
