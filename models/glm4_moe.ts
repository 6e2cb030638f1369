/** GLM-4.5 and GLM-4.6: grouped-query attention that rotates half of each head, with the experts of DeepSeek-V3. */

import type { Model } from "switchyard-moe";
import {
  attendHeads,
  booleanField,
  type Config,
  decoderModel,
  type DecoderOptions,
  defineFamily,
  feedShared,
  groupedAxes,
  type GroupedDecoder,
  groupedFields,
  nextLayer,
  normHeads,
  predictorTensors,
  projectHeads,
  rotate,
  type SharedExperts,
  sharedExperts,
} from "switchyard-moe/models";

/** The family of `Glm4MoeForCausalLM`. */
export const family = defineFamily({
  architectures: ["Glm4MoeForCausalLM"],
  config: readConfig,
  build,
  unused: predictorTensors,
});

/** A GLM-4.5 configuration. */
interface Glm4MoeConfig extends GroupedDecoder, SharedExperts {
  readonly kindOf: SharedExperts["kindOf"];
  /** Queries, keys and values have biases. */
  readonly bias: boolean;
  /** Queries and keys are normalized per head. */
  readonly normed: boolean;
}

/** Reads a config.json of `Glm4MoeForCausalLM`. Missing fields have transformers' defaults. */
function readConfig(config: Config): Glm4MoeConfig {
  const fields = groupedFields(config, {
    layers: 46,
    vocabulary: 151552,
    embed: 4096,
    heads: 96,
    kvHeads: 8,
    experts: 128,
    expertsPerToken: 8,
    ffn: 1408,
    epsilon: 1e-5,
    theta: 10000,
    part: 0.5,
    maxPositions: 131072,
  }, { experts: "n_routed_experts", ffn: "moe_intermediate_size" });
  return {
    ...fields,
    ...sharedExperts(config, fields.ffn, {
      denseFfn: 10944,
      sharedExperts: 1,
      firstSparse: 1,
      routedScale: 1,
      normalize: true,
    }),
    bias: booleanField(config, "attention_bias", { default: false }),
    normed: booleanField(config, "use_qk_norm", { default: false }),
  };
}

/** Builds the model of a configuration. */
function build(config: Glm4MoeConfig, options: DecoderOptions): Model {
  const { bias, normed, rotary } = config;
  return decoderModel(config, {
    axes: groupedAxes(config),
    attend: (m, rows, layer) =>
      m.block("self_attn", {}, (m) => {
        const heads = projectHeads(m, rows, { bias });
        const ready = normed ? normHeads(m, heads, config) : heads;
        return attendHeads(m, rotate(ready, rotary, layer), layer);
      }),
    feed: feedShared(config),
    predictor: nextLayer(config),
  }, options);
}
