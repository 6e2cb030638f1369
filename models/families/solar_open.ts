/** Solar-Open: GLM-4.5 with experts in every layer, without norms of queries and keys, rotating whole heads. */

import {
  type Config,
  defineFamily,
  predictorTensors,
  requireField,
} from "switchyard-moe/models";
import { buildGlm4, glm4Fields, type Glm4MoeConfig } from "./glm4_moe.ts";

/** The family of `SolarOpenForCausalLM`. */
export const family = defineFamily({
  architectures: ["SolarOpenForCausalLM"],
  config: readConfig,
  build: buildGlm4,
  unused: predictorTensors,
});

/** Reads a config.json of `SolarOpenForCausalLM`. Missing fields have transformers' defaults. */
function readConfig(config: Config): Glm4MoeConfig {
  requireField(config, "use_qk_norm", false);
  return glm4Fields(config, {
    layers: 48,
    vocabulary: 196608,
    embed: 4096,
    heads: 64,
    kvHeads: 8,
    headDim: 128,
    experts: 128,
    expertsPerToken: 8,
    ffn: 1280,
    epsilon: 1e-5,
    theta: 1e6,
    part: 1,
    maxPositions: 131072,
    denseFfn: 10240,
    firstSparse: 0,
  });
}
