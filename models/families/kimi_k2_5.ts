/** Kimi-K2.5, K2.6 and K2.7: Kimi-K2, which is a DeepSeek-V3, as the text model of a model of text and images. */

import {
  type Config,
  defineFamily,
  ignoreFields,
  predictorTensors,
  textConfig,
  WRAPPED_CAUSAL,
} from "switchyard-moe/models";
import type { DeepseekConfig } from "./deepseek.ts";
import { buildDeepseek, readDeepseekV3 } from "./deepseek_v3.ts";

/** The family of `KimiK25ForConditionalGeneration`, text part. */
export const family = defineFamily({
  architectures: ["KimiK25ForConditionalGeneration"],
  config: readConfig,
  build: (config, options) => buildDeepseek(config, options, WRAPPED_CAUSAL),
  unused: (config) => [
    "vision_tower.",
    "mm_projector.",
    ...predictorTensors(config, WRAPPED_CAUSAL.layer),
  ],
});

/** Reads a config.json. Missing fields have transformers' defaults. */
function readConfig(document: Config): DeepseekConfig {
  ignoreFields(document, ["ignore_index", "use_unified_vision_chunk"]);
  return readDeepseekV3(textConfig(document).config);
}
