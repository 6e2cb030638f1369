/** OLMoE: norms over whole queries and keys, optional clipping, weights of experts as the softmax gives them. */

import {
  maximum,
  minimum,
  type Model,
  rmsNorm,
  type Tensor,
} from "../compiler/mod.ts";
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
  optionalField,
  positiveField,
  requireField,
} from "./config.ts";
import { type Decoder, decoderModel } from "./decoder.ts";
import {
  expertNames,
  experts,
  routeLayer,
  routerLogits,
} from "./feed_forward.ts";
import { readRotary, type Rotary } from "./rotary.ts";

/** An OLMoE configuration. */
export interface OlmoeConfig extends Decoder, HeadFields {
  readonly ffn: number;
  readonly rotary: Rotary;
  /** Weights of a token's experts are divided by their sum. */
  readonly normalize: boolean;
  /** Queries, keys and values are held within ± this; undefined: not. */
  readonly clip: number | undefined;
}

/** Read a config.json of `OlmoeForCausalLM`. What it leaves out has transformers' defaults. */
export function olmoeConfig(config: Config): OlmoeConfig {
  requireField(config, "hidden_act", "silu");
  requireField(config, "attention_bias", false);
  const { head_dim: _, ...rest } = config;
  const heads = headFields(rest, { embed: 2048, heads: 16 });
  return {
    ...heads,
    layers: integerField(config, "num_hidden_layers", { default: 16 }),
    vocabulary: integerField(config, "vocab_size", { default: 50304 }),
    embed: integerField(config, "hidden_size", { default: 2048 }),
    experts: integerField(config, "num_experts", { default: 64 }),
    expertsPerToken: integerField(config, "num_experts_per_tok", {
      default: 8,
    }),
    ffn: integerField(config, "intermediate_size", { default: 2048 }),
    epsilon: positiveField(config, "rms_norm_eps", 1e-5),
    rotary: readRotary(config, { dim: heads.headDim, theta: 10000 }),
    maxPositions: integerField(config, "max_position_embeddings", {
      default: 4096,
    }),
    normalize: booleanField(config, "norm_topk_prob", false),
    tied: booleanField(config, "tie_word_embeddings", false),
    clip: optionalField(config, "clip_qkv"),
  };
}

/** The model of a configuration. */
export function olmoe(config: OlmoeConfig, bounds: Bounds): Model {
  const { clip, epsilon } = config;
  return decoderModel(config, {
    axes: { ...groupedAxes(config), ffn: config.ffn },
    attend(m, rows, layer) {
      const at = `${layer.name}.self_attn`;
      const { q, k, v } = project(m, rows, layer);
      const qGain = m.param(`${at}.q_norm.weight`, "query");
      const kGain = m.param(`${at}.k_norm.weight`, "keyValue");
      const heads = splitHeads({
        q: clamp(rmsNorm(q, qGain, "query", { epsilon }), clip),
        k: clamp(rmsNorm(k, kGain, "keyValue", { epsilon }), clip),
        v: clamp(v, clip),
      });
      return attendHeads(m, turn(heads, config.rotary, layer), layer);
    },
    feed(m, rows, layer) {
      const block = `${layer.name}.mlp`;
      const logits = routerLogits(m, rows, `${block}.gate.weight`);
      const routing = routeLayer(logits, layer, {
        topK: config.expertsPerToken,
        preset: "olmoe",
        normalize: config.normalize ? "chosen" : "none",
      });
      return experts(m, rows, routing, expertNames(block));
    },
  }, bounds);
}

function clamp<A extends string>(
  x: Tensor<A, "f32">,
  limit: number | undefined,
): Tensor<A, "f32"> {
  if (limit === undefined) return x;
  return minimum(maximum(x, -limit), limit) as Tensor<A, "f32">;
}
