/** The built-in families, by the architectures in config.json. */

import { DataError, shown } from "../compiler/mod.ts";
import type { Config } from "./config.ts";
import { family as afmoe } from "./families/afmoe.ts";
import { family as axk1 } from "./families/axk1.ts";
import { family as bailingMoe } from "./families/bailing_moe.ts";
import { family as bailingMoeV3 } from "./families/bailing_moe_v3.ts";
import { family as cohere2Moe } from "./families/cohere2_moe.ts";
import { family as deepseekV2 } from "./families/deepseek_v2.ts";
import { family as deepseekV3 } from "./families/deepseek_v3.ts";
import { family as deepseekV32 } from "./families/deepseek_v32.ts";
import { family as deepseekV4 } from "./families/deepseek_v4.ts";
import { family as dots1 } from "./families/dots1.ts";
import { family as ernie45Moe } from "./families/ernie4_5_moe.ts";
import { family as ernie45VlMoe } from "./families/ernie4_5_vl_moe.ts";
import { family as exaoneMoe } from "./families/exaone_moe.ts";
import { type Family, type PublishedModel, readFamily } from "./family.ts";
import { nearestFamily } from "./nearest.ts";
import { family as flexOlmo } from "./families/flex_olmo.ts";
import { family as gemma4Moe } from "./families/gemma4_moe.ts";
import { family as glm4Moe } from "./families/glm4_moe.ts";
import { family as glm4MoeLite } from "./families/glm4_moe_lite.ts";
import { family as glmMoeDsa } from "./families/glm_moe_dsa.ts";
import { family as gptOss } from "./families/gpt_oss.ts";
import { family as graniteMoe } from "./families/granite_moe.ts";
import { family as graniteMoeHybrid } from "./families/granite_moe_hybrid.ts";
import { family as hunyuanMoe } from "./families/hunyuan_moe.ts";
import { family as hyV3 } from "./families/hy_v3.ts";
import { family as kimiK25 } from "./families/kimi_k2_5.ts";
import { family as kimiK3 } from "./families/kimi_k3.ts";
import { family as kimiLinear } from "./families/kimi_linear.ts";
import { family as laguna } from "./families/laguna.ts";
import { family as lfm2Moe } from "./families/lfm2_moe.ts";
import { family as llama4 } from "./families/llama4.ts";
import { family as longcatFlash } from "./families/longcat_flash.ts";
import { family as mellum } from "./families/mellum.ts";
import { family as miMoV2 } from "./families/mimo_v2.ts";
import { family as miniMaxM2 } from "./families/minimax_m2.ts";
import { family as miniMaxM3 } from "./families/minimax_m3.ts";
import { family as mistral4 } from "./families/mistral4.ts";
import { family as mixtral } from "./families/mixtral.ts";
import { family as nemotronH } from "./families/nemotron_h.ts";
import { family as olmoe } from "./families/olmoe.ts";
import { family as qwen2Moe } from "./families/qwen2_moe.ts";
import { family as qwen3Moe } from "./families/qwen3_moe.ts";
import { family as qwen3Next } from "./families/qwen3_next.ts";
import { family as solarOpen } from "./families/solar_open.ts";
import { family as step3p5 } from "./families/step3p5.ts";

const BUILT_IN: readonly Family[] = [
  afmoe,
  axk1,
  bailingMoe,
  bailingMoeV3,
  cohere2Moe,
  deepseekV2,
  deepseekV3,
  deepseekV32,
  deepseekV4,
  dots1,
  ernie45Moe,
  ernie45VlMoe,
  exaoneMoe,
  flexOlmo,
  gemma4Moe,
  glm4Moe,
  glm4MoeLite,
  glmMoeDsa,
  gptOss,
  graniteMoe,
  graniteMoeHybrid,
  hunyuanMoe,
  hyV3,
  kimiK25,
  kimiK3,
  kimiLinear,
  laguna,
  lfm2Moe,
  llama4,
  longcatFlash,
  mellum,
  miMoV2,
  miniMaxM2,
  miniMaxM3,
  mistral4,
  mixtral,
  nemotronH,
  olmoe,
  qwen2Moe,
  qwen3Moe,
  qwen3Next,
  solarOpen,
  step3p5,
];

/** The built-in architectures. */
export const ARCHITECTURES: readonly string[] = BUILT_IN.flatMap(
  ({ architectures }) => architectures,
);

/**
 * Reads a config.json with its family: a built-in one, or only `family` if given. Throws DataError for an unknown
 * architecture and for a field that the family does not accept.
 */
export function publishedModel(
  config: Config,
  family?: Family,
): PublishedModel {
  const families = family ? [family] : BUILT_IN;
  const names: unknown = config["architectures"];
  const architecture: unknown = Array.isArray(names) ? names[0] : undefined;
  const known = families.flatMap(({ architectures }) => architectures)
    .map((name) => `'${name}'`).join(", ");
  if (typeof architecture !== "string") {
    throw new DataError(
      `Cannot read config.json: it names no architecture. Set 'architectures' to one of ${known}`,
    );
  }
  const found = families.find(({ architectures }) =>
    architectures.includes(architecture)
  );
  if (found) return readFamily(found, architecture, config);
  if (!family) throw unknownError(config);
  throw new DataError(
    `Cannot build architecture '${
      shown(architecture)
    }': the family of --family builds ${known}. Change 'architectures' of config.json or of the family`,
  );
}

/** Whether config.json names an architecture that is not built in. */
export function isUnknown({ architectures: names }: Config): boolean {
  const architecture: unknown = Array.isArray(names) ? names[0] : undefined;
  return typeof architecture === "string" &&
    !ARCHITECTURES.includes(architecture);
}

/** The error for an architecture that is not built in, with the nearest family; `contents`: a sentence on its files. */
export function unknownError(config: Config, contents?: string): DataError {
  const [architecture] = config["architectures"] as [string];
  const known = ARCHITECTURES.map((name) => `'${name}'`).join(", ");
  const sentences = [
    `Cannot build architecture '${shown(architecture)}': it is not built in`,
    ...contents === undefined ? [] : [contents],
    nearestFamily(BUILT_IN, config) ?? [],
    `Give the file that defines its family with --family FILE.ts, or use one of ${known}`,
  ].flat();
  return new DataError(sentences.join(". "));
}
