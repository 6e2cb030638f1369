/** Qwen3-MoE: queries and keys normed head by head, optional layers without experts. */

import { type Model, rmsNorm } from "../compiler/mod.ts";
import { attendHeads, groupedAxes, projectHeads, turn } from "./attention.ts";
import { type Config, type DecoderOptions, requireField } from "./config.ts";
import { decoderModel } from "./decoder.ts";
import {
  expertNames,
  experts,
  mlp,
  routeLayer,
  routerLogits,
} from "./feed_forward.ts";
import { type QwenConfig, qwenFields } from "./qwen.ts";

/** A Qwen3-MoE configuration. */
export type Qwen3MoeConfig = QwenConfig;

/** Read a config.json of `Qwen3MoeForCausalLM`. What it leaves out has transformers' defaults. */
export function qwen3MoeConfig(config: Config): Qwen3MoeConfig {
  requireField(config, "attention_bias", false);
  return qwenFields(config, {
    ...{ layers: 24, vocabulary: 151936, embed: 2048, heads: 32, kvHeads: 4 },
    ...{ experts: 128, expertsPerToken: 8, ffn: 768, denseFfn: 6144 },
    ...{ epsilon: 1e-6, theta: 10000, maxPositions: 32768 },
  });
}

/** The model of a configuration. */
export function qwen3Moe(
  config: Qwen3MoeConfig,
  options: DecoderOptions,
): Model {
  const { epsilon, ffn, denseFfn } = config;
  return decoderModel(config, {
    axes: { ...groupedAxes(config), ffn, denseFfn },
    attend(m, rows, layer) {
      const at = `${layer.name}.self_attn`;
      const { q, k, v } = projectHeads(m, rows, layer);
      const qGain = m.param(`${at}.q_norm.weight`, "headDim");
      const kGain = m.param(`${at}.k_norm.weight`, "headDim");
      const heads = {
        q: rmsNorm(q, qGain, "headDim", { epsilon }),
        k: rmsNorm(k, kGain, "headDim", { epsilon }),
        v,
      };
      return attendHeads(m, turn(heads, config.rotary, layer), layer);
    },
    feed(m, rows, layer) {
      const block = `${layer.name}.mlp`;
      if (!config.hasExperts(layer.index)) {
        return mlp(m, rows, block, "denseFfn");
      }
      const logits = routerLogits(m, rows, `${block}.gate.weight`);
      const routing = routeLayer(logits, layer, {
        topK: config.expertsPerToken,
        preset: "qwen3Moe",
        normalize: config.normalize ? "chosen" : "none",
      });
      return experts(m, rows, routing, expertNames(block));
    },
  }, options);
}
