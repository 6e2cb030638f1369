/** Qwen2-MoE: biases on queries, keys and values, an expert that every token goes to behind a gate, layers without experts. */

import { add, dot, type Model, mul, sigmoid, sum } from "../compiler/mod.ts";
import { attendHeads, groupedAxes, projectHeads, rotate } from "./attention.ts";
import {
  booleanField,
  type Config,
  type DecoderOptions,
  integerField,
} from "./config.ts";
import { decoderModel } from "./decoder.ts";
import { experts, mlp, routeLayer, sparseOrDense } from "./feed_forward.ts";
import { type QwenConfig, qwenFields } from "./qwen.ts";

/** A Qwen2-MoE configuration. */
export interface Qwen2MoeConfig extends QwenConfig {
  /** Hidden elements of the shared expert. */
  readonly sharedFfn: number;
  /** Queries, keys and values have biases. */
  readonly bias: boolean;
}

/** Read a config.json of `Qwen2MoeForCausalLM`. What it leaves out has transformers' defaults. */
export function qwen2MoeConfig(config: Config): Qwen2MoeConfig {
  return {
    ...qwenFields(config, {
      layers: 24,
      vocabulary: 151936,
      embed: 2048,
      heads: 16,
      kvHeads: 16,
      experts: 60,
      expertsPerToken: 4,
      ffn: 1408,
      denseFfn: 5632,
      epsilon: 1e-6,
      theta: 10000,
      maxPositions: 32768,
    }),
    sharedFfn: integerField(config, "shared_expert_intermediate_size", {
      default: 5632,
    }),
    bias: booleanField(config, "qkv_bias", true),
  };
}

/** The model of a configuration. */
export function qwen2Moe(
  config: Qwen2MoeConfig,
  options: DecoderOptions,
): Model {
  const { bias, sharedFfn } = config;
  return decoderModel(config, {
    axes: groupedAxes(config),
    attend: (m, rows, layer) =>
      m.block("self_attn", {}, (m) => {
        const heads = projectHeads(m, rows, { bias });
        return attendHeads(m, rotate(heads, config.rotary, layer), layer);
      }),
    feed: sparseOrDense(config, (m, rows, layer) => {
      const routing = routeLayer(m, rows, layer, {
        topK: config.expertsPerToken,
        preset: "qwen2Moe",
        normalize: config.normalize ? "chosen" : "none",
      });
      const open = m.block("shared_expert_gate", { gate: 1 }, (m) =>
        sigmoid(
          sum(dot(rows, m.param("weight", "gate embed"), "embed"), "gate"),
        ));
      const shared = { name: "shared_expert", ffn: sharedFfn };
      return add(
        experts(m, rows, routing),
        mul(mlp(m, rows, shared), open),
      );
    }),
  }, options);
}
