/** Qwen2-MoE: biases on queries, keys and values, an expert that every token goes to behind a gate, layers without experts. */

import { add, dot, map, type Model, mul, sum } from "../compiler/mod.ts";
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
  integersField,
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
import { readRotary, type Rotary } from "./rotary.ts";

/** A Qwen2-MoE configuration. */
export interface Qwen2MoeConfig extends Decoder, HeadFields {
  /** Hidden elements of an expert, of a layer without experts, and of the shared expert. */
  readonly ffn: number;
  readonly denseFfn: number;
  readonly sharedFfn: number;
  readonly rotary: Rotary;
  readonly normalize: boolean;
  /** Queries, keys and values have biases. */
  readonly bias: boolean;
  readonly hasExperts: (layer: number) => boolean;
}

/** Read a config.json of `Qwen2MoeForCausalLM`. What it leaves out has transformers' defaults. */
export function qwen2MoeConfig(config: Config): Qwen2MoeConfig {
  requireField(config, "hidden_act", "silu");
  requireField(config, "use_sliding_window", false);
  const heads = headFields(config, { embed: 2048, heads: 16, kvHeads: 16 });
  return {
    ...heads,
    layers: integerField(config, "num_hidden_layers", { default: 24 }),
    vocabulary: integerField(config, "vocab_size", { default: 151936 }),
    embed: integerField(config, "hidden_size", { default: 2048 }),
    experts: integerField(config, "num_experts", { default: 60 }),
    expertsPerToken: integerField(config, "num_experts_per_tok", {
      default: 4,
    }),
    ffn: integerField(config, "moe_intermediate_size", { default: 1408 }),
    denseFfn: integerField(config, "intermediate_size", { default: 5632 }),
    sharedFfn: integerField(config, "shared_expert_intermediate_size", {
      default: 5632,
    }),
    epsilon: positiveField(config, "rms_norm_eps", 1e-6),
    rotary: readRotary(config, { dim: heads.headDim, theta: 10000 }),
    maxPositions: integerField(config, "max_position_embeddings", {
      default: 32768,
    }),
    normalize: booleanField(config, "norm_topk_prob", false),
    bias: booleanField(config, "qkv_bias", true),
    hasExperts: readSparseLayers(config),
    tied: booleanField(config, "tie_word_embeddings", false),
  };
}

/** Which layers of a Qwen model have experts: every `decoder_sparse_step`-th, but those of `mlp_only_layers`. */
export function readSparseLayers(config: Config): (layer: number) => boolean {
  const dense = integersField(config, "mlp_only_layers") ?? [];
  const step = integerField(config, "decoder_sparse_step", { default: 1 });
  return (layer) => !dense.includes(layer) && (layer + 1) % step === 0;
}

/** The model of a configuration. */
export function qwen2Moe(config: Qwen2MoeConfig, bounds: Bounds): Model {
  const { bias, ffn, denseFfn, sharedFfn } = config;
  return decoderModel(config, {
    axes: { ...groupedAxes(config), ffn, denseFfn, sharedFfn, sharedGate: 1 },
    attend(m, rows, layer) {
      const heads = splitHeads(project(m, rows, layer, { bias }));
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
        preset: "qwen2Moe",
        normalize: config.normalize ? "chosen" : "none",
      });
      const gate = m.param(
        `${block}.shared_expert_gate.weight`,
        "sharedGate embed",
      );
      const open = map(
        (g) => 1 / (1 + Math.exp(-g)),
        sum(dot(rows, gate, "embed"), "sharedGate"),
      );
      return add(
        experts(m, rows, routing, expertNames(block)),
        mul(mlp(m, rows, `${block}.shared_expert`, "sharedFfn"), open),
      );
    },
  }, bounds);
}
