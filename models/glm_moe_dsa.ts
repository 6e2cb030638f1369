/** GLM-5: DeepSeek-V3.2 with other sizes, where layers may use the keys that an earlier layer chose. */

import {
  booleanField,
  type Config,
  defineFamily,
  ignoreFields,
  layerTypes,
  predictorTensors,
  requireField,
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
  const frequency = "index_topk_freq", pattern = "index_topk_pattern";
  // 'indexer_types' has the same information per layer.
  if (Array.isArray(config["indexer_types"])) {
    ignoreFields(config, [frequency, pattern, "index_skip_topk_offset"]);
  } else {
    requireField(config, frequency, 1);
    requireField(config, pattern, "");
  }
  const typeOf = layerTypes(
    config,
    ["full", "shared"],
    () => "full",
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
