/** Dots1: the attention of Qwen3-MoE, with an optional window in later layers, and the experts of DeepSeek-V3. */

import type { Model } from "switchyard-moe";
import {
  attendHeads,
  type Config,
  decoderModel,
  type DecoderOptions,
  defineFamily,
  feedShared,
  groupedAxes,
  type GroupedDecoder,
  groupedFields,
  integerField,
  normHeads,
  predictorTensors,
  projectHeads,
  requireField,
  rotate,
  type SharedExperts,
  sharedExperts,
  slidingLayers,
  windowField,
} from "switchyard-moe/models";

/** The family of `Dots1ForCausalLM`. */
export const family = defineFamily({
  architectures: ["Dots1ForCausalLM"],
  config: readConfig,
  build,
  unused: predictorTensors,
});

/** A Dots1 configuration. */
interface Dots1Config extends GroupedDecoder, SharedExperts {}

/**
 * Reads a config.json of `Dots1ForCausalLM`. Missing fields have transformers' defaults; numbers of experts default to
 * those of dots.llm1.
 */
function readConfig(config: Config): Dots1Config {
  requireField(config, "attention_bias", false);
  const fields = groupedFields(config, {
    layers: 62,
    vocabulary: 152064,
    embed: 4608,
    heads: 32,
    kvHeads: 32,
    experts: 128,
    expertsPerToken: 6,
    ffn: 1408,
    epsilon: 1e-6,
    theta: 10000,
    maxPositions: 2048,
  }, { experts: "n_routed_experts", ffn: "moe_intermediate_size" });
  const shared = sharedExperts(config, fields.ffn, {
    denseFfn: 10944,
    sharedExperts: 2,
    firstSparse: 0,
    routedScale: 1,
    normalize: false,
  });
  const window = windowField(config, { default: 4096 });
  const first = integerField(config, "max_window_layers", {
    default: 62,
    min: 0,
  });
  const slides = slidingLayers(config, (layer) => layer >= first);
  return {
    ...fields,
    ...shared,
    kindOf: (layer) => ({
      ...shared.kindOf(layer),
      window: slides(layer) ? window : undefined,
    }),
  };
}

/** Builds the model of a configuration. */
function build(config: Dots1Config, options: DecoderOptions): Model {
  return decoderModel(config, {
    axes: groupedAxes(config),
    attend: (m, rows, layer) =>
      m.block("self_attn", {}, (m) => {
        const heads = normHeads(m, projectHeads(m, rows), config);
        const { window } = layer.kind;
        return attendHeads(m, rotate(heads, config.rotary, layer), layer, {
          window,
        });
      }),
    feed: feedShared(config),
  }, options);
}
