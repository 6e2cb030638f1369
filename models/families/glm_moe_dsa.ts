/** GLM-5: DeepSeek-V3.2 with other sizes, where layers may use the keys that an earlier layer chose. */

import {
  anyField,
  booleanField,
  type Config,
  defineFamily,
  fieldError,
  integerField,
  layerTypes,
  predictorTensors,
} from "switchyard-moe/models";
import {
  buildSparse,
  type SparseConfig,
  sparseFields,
} from "./deepseek_v32.ts";

/** The family of `GlmMoeDsaForCausalLM`. */
export const family = defineFamily({
  architectures: ["GlmMoeDsaForCausalLM"],
  config: readConfig,
  build: buildSparse,
  unused: predictorTensors,
});

const TYPES = ["full", "shared"] as const;

/**
 * The type of a layer that `indexer_types` does not list: by a letter of `index_topk_pattern`, else every
 * `index_topk_freq`-th layer after the first `index_skip_topk_offset` has an indexer.
 */
function sharedByFrequency(
  config: Config,
): (layer: number) => typeof TYPES[number] {
  const frequency = integerField(config, "index_topk_freq", { default: 1 });
  const offset = integerField(config, "index_skip_topk_offset", {
    default: 2,
    min: 0,
  });
  const pattern: unknown = anyField(config, "index_topk_pattern") ?? "";
  if (typeof pattern !== "string" || !/^[FS]*$/.test(pattern)) {
    throw fieldError("index_topk_pattern", pattern, "a text of F and S");
  }
  return (layer) => {
    const letter = pattern[layer];
    const shared = letter
      ? letter === "S"
      : Math.max(0, layer + 1 - offset) % frequency !== 0;
    return shared ? "shared" : "full";
  };
}

/** Reads a config.json of `GlmMoeDsaForCausalLM`. Missing fields have transformers' defaults. */
function readConfig(config: Config): SparseConfig {
  const fields = sparseFields(config, {
    layers: 78,
    vocabulary: 154880,
    embed: 6144,
    heads: 64,
    nope: 192,
    value: 256,
    queryLatent: 2048,
    denseFfn: 12288,
    ffn: 2048,
    experts: 256,
    sharedExperts: 1,
    expertsPerToken: 8,
    firstSparse: 3,
    routedScale: 2.5,
    normalize: true,
    maxPositions: 202752,
    epsilon: 1e-5,
    interleaved: booleanField(config, "rope_interleave", { default: true }),
    indexHeads: 32,
    indexInterleaved: booleanField(config, "indexer_rope_interleave", {
      default: true,
    }),
  });
  const typeOf = layerTypes(
    config,
    TYPES,
    sharedByFrequency(config),
    "indexer_types",
  );
  const sharesKeys = (layer: number) => layer > 0 && typeOf(layer) === "shared";
  return {
    ...fields,
    sharesKeys,
    kindOf: (layer) => ({
      ...fields.kindOf(layer),
      mixer: sharesKeys(layer) ? "shared" : "indexer",
    }),
  };
}
