/** OLMoE: norms over whole queries and keys, optional clipping, weights of experts as the softmax gives them. */

import {
  maximum,
  minimum,
  type Model,
  rmsNorm,
  type Tensor,
} from "../compiler/mod.ts";
import {
  booleanField,
  type Bounds,
  type Config,
  integerField,
  optionalField,
  positiveField,
  requireField,
  requireMultiple,
  ropeTheta,
} from "./config.ts";
import {
  type Decoder,
  decoderModel,
  linear,
  linearKeyValue,
} from "./decoder.ts";

/** An OLMoE configuration. */
export interface OlmoeConfig extends Decoder {
  /** Queries, keys and values are held within ± this; undefined: not. */
  readonly clip: number | undefined;
}

/** Read a config.json of `OlmoeForCausalLM`. What it leaves out has transformers' defaults. */
export function olmoeConfig(config: Config): OlmoeConfig {
  requireField(config, "hidden_act", "silu");
  requireField(config, "attention_bias", false);
  const embed = integerField(config, "hidden_size", { default: 2048 });
  const heads = integerField(config, "num_attention_heads", { default: 16 });
  const kvHeads = integerField(config, "num_key_value_heads", {
    default: heads,
  });
  requireMultiple({ name: "hidden_size", value: embed }, {
    name: "num_attention_heads",
    value: heads,
  });
  requireMultiple({ name: "num_attention_heads", value: heads }, {
    name: "num_key_value_heads",
    value: kvHeads,
  });
  return {
    layers: integerField(config, "num_hidden_layers", { default: 16 }),
    vocabulary: integerField(config, "vocab_size", { default: 50304 }),
    embed,
    heads,
    kvHeads,
    headDim: embed / heads,
    experts: integerField(config, "num_experts", { default: 64 }),
    expertsPerToken: integerField(config, "num_experts_per_tok", {
      default: 8,
    }),
    ffn: integerField(config, "intermediate_size", { default: 2048 }),
    epsilon: positiveField(config, "rms_norm_eps", 1e-5),
    theta: ropeTheta(config, 10000),
    maxPositions: integerField(config, "max_position_embeddings", {
      default: 4096,
    }),
    window: undefined,
    preset: booleanField(config, "norm_topk_prob", false) ? "mixtral" : "olmoe",
    tied: booleanField(config, "tie_word_embeddings", false),
    clip: optionalField(config, "clip_qkv"),
  };
}

/** The model of a configuration. */
export function olmoe(config: OlmoeConfig, bounds: Bounds): Model {
  return decoderModel(config, {
    experts: {
      router: "mlp.gate.weight",
      gate: "mlp.experts.{expert}.gate_proj.weight",
      up: "mlp.experts.{expert}.up_proj.weight",
      down: "mlp.experts.{expert}.down_proj.weight",
    },
    project: (m, rows, layer) => {
      const at = `${layer}.self_attn`;
      const options = { epsilon: config.epsilon };
      const q = rmsNorm(
        linear(m, rows, `${at}.q_proj.weight`),
        m.param(`${at}.q_norm.weight`, "query"),
        "query",
        options,
      );
      const k = rmsNorm(
        linearKeyValue(m, rows, `${at}.k_proj.weight`),
        m.param(`${at}.k_norm.weight`, "keyValue"),
        "keyValue",
        options,
      );
      const v = linearKeyValue(m, rows, `${at}.v_proj.weight`);
      return {
        q: clamp(q, config.clip),
        k: clamp(k, config.clip),
        v: clamp(v, config.clip),
      };
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
