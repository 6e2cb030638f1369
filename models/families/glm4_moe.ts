/**
 * GLM-4.5 and GLM-4.6, also as the text model of GLM-4.5V and GLM-4.6V: grouped-query attention that rotates half of
 * each head, with the experts of DeepSeek-V3.
 */

import type { Model } from "switchyard-moe";
import {
  attendHeads,
  booleanField,
  type Config,
  decoderModel,
  type DecoderNames,
  type DecoderOptions,
  defineFamily,
  feedShared,
  groupedAxes,
  type GroupedDecoder,
  type GroupedDefaults,
  groupedFields,
  nextLayer,
  normHeads,
  predictorTensors,
  projectHeads,
  rotate,
  type SharedExperts,
  sharedExperts,
  textConfig,
  WRAPPED,
} from "switchyard-moe/models";

/** The family of `Glm4MoeForCausalLM`, and of `Glm4vMoeForConditionalGeneration`, text part. */
export const family = defineFamily({
  architectures: ["Glm4MoeForCausalLM", "Glm4vMoeForConditionalGeneration"],
  config: readConfig,
  build: buildGlm4,
  unused: (config) => [
    ...predictorTensors(config, namesOf(config).layer),
    "model.visual.",
  ],
});

/** A GLM-4.5 configuration. */
export interface Glm4MoeConfig extends GroupedDecoder, SharedExperts {
  /** Queries, keys and values have biases. */
  readonly bias: boolean;
  /** Queries and keys are normalized per head. */
  readonly normed: boolean;
  /** Tensors have the names of a model of text and images. */
  readonly wrapped: boolean;
}

/** Reads a config.json of GLM-4.5 or GLM-4.5V. Missing fields have transformers' defaults. */
function readConfig(document: Config): Glm4MoeConfig {
  const { config, wrapped } = textConfig(document);
  const fields = glm4Fields(config, {
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
    denseFfn: 10944,
    firstSparse: 1,
  });
  return { ...fields, wrapped };
}

/** Reads the fields of GLM-4.5 and related families. */
export function glm4Fields(
  config: Config,
  defaults: GroupedDefaults & {
    readonly denseFfn: number;
    readonly firstSparse: number;
  },
): Glm4MoeConfig {
  const fields = groupedFields(config, defaults, {
    experts: "n_routed_experts",
    ffn: "moe_intermediate_size",
  });
  return {
    ...fields,
    ...sharedExperts(config, fields.ffn, {
      denseFfn: defaults.denseFfn,
      firstSparse: defaults.firstSparse,
      sharedExperts: 1,
      routedScale: 1,
      normalize: true,
    }),
    bias: booleanField(config, "attention_bias", { default: false }),
    normed: booleanField(config, "use_qk_norm", { default: false }),
    wrapped: false,
  };
}

function namesOf({ wrapped }: Glm4MoeConfig): Partial<DecoderNames> {
  return wrapped ? WRAPPED : {};
}

/** Builds the model of a configuration. */
export function buildGlm4(
  config: Glm4MoeConfig,
  options: DecoderOptions,
): Model {
  const { bias, normed, rotary } = config;
  const names = namesOf(config);
  return decoderModel(config, {
    axes: groupedAxes(config),
    names,
    attend: (m, rows, layer) =>
      m.block("self_attn", {}, (m) => {
        const heads = projectHeads(m, rows, { bias });
        const ready = normed ? normHeads(m, heads, config) : heads;
        return attendHeads(m, rotate(ready, rotary, layer), layer);
      }),
    feed: feedShared(config),
    predictor: nextLayer(config, names.layer),
  }, options);
}
