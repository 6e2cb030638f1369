/** The published families, by the architecture that their config.json names. */

import { DataError, type Model, shown } from "../compiler/mod.ts";
import type { Config, DecoderOptions } from "./config.ts";
import type { Decoder } from "./decoder.ts";
import { deepseekV2, deepseekV2Config } from "./deepseek_v2.ts";
import {
  deepseekV3,
  deepseekV3Config,
  deepseekV3Unused,
} from "./deepseek_v3.ts";
import { gptOss, gptOssConfig } from "./gpt_oss.ts";
import { graniteMoe, graniteMoeConfig } from "./granite_moe.ts";
import { llama4, llama4Config } from "./llama4.ts";
import { mixtral, mixtralConfig } from "./mixtral.ts";
import { olmoe, olmoeConfig } from "./olmoe.ts";
import { qwen2Moe, qwen2MoeConfig } from "./qwen2_moe.ts";
import { qwen3Moe, qwen3MoeConfig } from "./qwen3_moe.ts";

export type { Balance, Bounds, Config, DecoderOptions } from "./config.ts";
export type { Decoder } from "./decoder.ts";
export type { DeepseekConfig } from "./deepseek.ts";
export { deepseekV2, deepseekV2Config } from "./deepseek_v2.ts";
export {
  deepseekV3,
  type DeepseekV3Config,
  deepseekV3Config,
} from "./deepseek_v3.ts";
export { gptOss, type GptOssConfig, gptOssConfig } from "./gpt_oss.ts";
export {
  graniteMoe,
  type GraniteMoeConfig,
  graniteMoeConfig,
} from "./granite_moe.ts";
export { llama4, type Llama4Config, llama4Config } from "./llama4.ts";
export { mixtral, type MixtralConfig, mixtralConfig } from "./mixtral.ts";
export { olmoe, type OlmoeConfig, olmoeConfig } from "./olmoe.ts";
export { qwen2Moe, type Qwen2MoeConfig, qwen2MoeConfig } from "./qwen2_moe.ts";
export { qwen3Moe, type Qwen3MoeConfig, qwen3MoeConfig } from "./qwen3_moe.ts";
export { type SwitchBlock, switchBlock } from "./switch.ts";

/** A checkpoint's model, waiting for how it is to be built. */
export interface PublishedModel {
  readonly architecture: string;
  readonly decoder: Decoder;
  readonly build: (options: DecoderOptions) => Model;
  /** Starts of the names of tensors that its files may hold besides, for what is not built. */
  readonly unused: readonly string[];
}

interface FamilyEntry<C extends Decoder> {
  readonly read: (config: Config) => C;
  readonly build: (config: C, options: DecoderOptions) => Model;
  readonly unused?: (config: C) => readonly string[];
}

function family<C extends Decoder>(
  entry: FamilyEntry<C>,
): (config: Config) => Omit<PublishedModel, "architecture"> {
  return (config) => {
    const decoder = entry.read(config);
    return {
      decoder,
      build: (options) => entry.build(decoder, options),
      unused: entry.unused?.(decoder) ?? [],
    };
  };
}

const FAMILIES: {
  readonly [architecture: string]: ReturnType<typeof family>;
} = {
  DeepseekV2ForCausalLM: family({ read: deepseekV2Config, build: deepseekV2 }),
  DeepseekV3ForCausalLM: family({
    read: deepseekV3Config,
    build: deepseekV3,
    unused: deepseekV3Unused,
  }),
  GptOssForCausalLM: family({ read: gptOssConfig, build: gptOss }),
  GraniteMoeForCausalLM: family({ read: graniteMoeConfig, build: graniteMoe }),
  Llama4ForCausalLM: family({ read: llama4Config, build: llama4 }),
  MixtralForCausalLM: family({ read: mixtralConfig, build: mixtral }),
  OlmoeForCausalLM: family({ read: olmoeConfig, build: olmoe }),
  Qwen2MoeForCausalLM: family({ read: qwen2MoeConfig, build: qwen2Moe }),
  Qwen3MoeForCausalLM: family({ read: qwen3MoeConfig, build: qwen3Moe }),
};

/** Find the family of a parsed config.json. Throws DataError for an architecture or a field that is not built. */
export function publishedModel(config: Config): PublishedModel {
  const names: unknown = config["architectures"];
  const architecture: unknown = Array.isArray(names) ? names[0] : undefined;
  const known = Object.keys(FAMILIES).map((name) => `'${name}'`).join(", ");
  if (typeof architecture !== "string") {
    throw new DataError(
      `Cannot read config.json: it names no architecture. Set 'architectures' to one of ${known}`,
    );
  }
  const read = Object.hasOwn(FAMILIES, architecture)
    ? FAMILIES[architecture]
    : undefined;
  if (read === undefined) {
    throw new DataError(
      `Cannot build architecture '${
        shown(architecture)
      }': it is unknown. Known ones are ${known}`,
    );
  }
  const made = read(config);
  if (made.decoder.expertsPerToken > made.decoder.experts) {
    throw new DataError(
      `Cannot read config.json: 'num_experts_per_tok' is ${made.decoder.expertsPerToken}, and there are ${made.decoder.experts} experts. Check the file`,
    );
  }
  if (made.decoder.headDim % 2 !== 0) {
    throw new DataError(
      `Cannot read config.json: heads have ${made.decoder.headDim} elements, an odd number. Check the file`,
    );
  }
  return { architecture, ...made };
}
