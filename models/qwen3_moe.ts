/** Qwen3-MoE: queries and keys normed head by head, optional layers without experts. */

import { type Model, rmsNorm } from "../compiler/mod.ts";
import {
  attendHeads,
  groupedAxes,
  project,
  splitHeads,
  turn,
} from "./attention.ts";
import {
  booleanField,
  type Bounds,
  type Config,
  type HeadFields,
  headFields,
  integerField,
  positiveField,
  requireField,
} from "./config.ts";
import { type Decoder, decoderModel } from "./decoder.ts";
import {
  expertNames,
  experts,
  mlp,
  routeLayer,
  routerLogits,
} from "./feed_forward.ts";
import { readSparseLayers } from "./qwen2_moe.ts";
import { readRotary, type Rotary } from "./rotary.ts";

/** A Qwen3-MoE configuration. */
export interface Qwen3MoeConfig extends Decoder, HeadFields {
  /** Hidden elements of an expert, and of a layer without experts. */
  readonly ffn: number;
  readonly denseFfn: number;
  readonly rotary: Rotary;
  readonly normalize: boolean;
  readonly hasExperts: (layer: number) => boolean;
}

/** Read a config.json of `Qwen3MoeForCausalLM`. What it leaves out has transformers' defaults. */
export function qwen3MoeConfig(config: Config): Qwen3MoeConfig {
  requireField(config, "hidden_act", "silu");
  requireField(config, "attention_bias", false);
  requireField(config, "use_sliding_window", false);
  const heads = headFields(config, { embed: 2048, heads: 32, kvHeads: 4 });
  return {
    ...heads,
    layers: integerField(config, "num_hidden_layers", { default: 24 }),
    vocabulary: integerField(config, "vocab_size", { default: 151936 }),
    embed: integerField(config, "hidden_size", { default: 2048 }),
    experts: integerField(config, "num_experts", { default: 128 }),
    expertsPerToken: integerField(config, "num_experts_per_tok", {
      default: 8,
    }),
    ffn: integerField(config, "moe_intermediate_size", { default: 768 }),
    denseFfn: integerField(config, "intermediate_size", { default: 6144 }),
    epsilon: positiveField(config, "rms_norm_eps", 1e-6),
    rotary: readRotary(config, { dim: heads.headDim, theta: 10000 }),
    maxPositions: integerField(config, "max_position_embeddings", {
      default: 32768,
    }),
    normalize: booleanField(config, "norm_topk_prob", false),
    hasExperts: readSparseLayers(config),
    tied: booleanField(config, "tie_word_embeddings", false),
  };
}

/** The model of a configuration. */
export function qwen3Moe(config: Qwen3MoeConfig, bounds: Bounds): Model {
  const { epsilon, ffn, denseFfn } = config;
  return decoderModel(config, {
    axes: { ...groupedAxes(config), ffn, denseFfn },
    attend(m, rows, layer) {
      const at = `${layer.name}.self_attn`;
      const { q, k, v } = splitHeads(project(m, rows, layer));
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
  }, bounds);
}
