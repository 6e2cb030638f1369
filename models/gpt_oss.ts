/** gpt-oss: biases everywhere, sinks, a sliding window in every other layer, and experts with clamped gates. */

import {
  add,
  combine,
  dispatch,
  dot,
  map,
  maximum,
  minimum,
  type Model,
  slice,
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
  fieldError,
  type HeadFields,
  headFields,
  integerField,
  objectField,
  positiveField,
  requireField,
} from "./config.ts";
import { type Decoder, decoderModel } from "./decoder.ts";
import { routeLayer, routerLogits } from "./feed_forward.ts";
import { readRotary, type Rotary } from "./rotary.ts";

/** A gpt-oss configuration. */
export interface GptOssConfig extends Decoder, HeadFields {
  readonly ffn: number;
  readonly rotary: Rotary;
  /** How many positions a token of a layer sees; undefined: all. */
  readonly windowOf: (layer: number) => number | undefined;
  /** Gates are at most this, and what they multiply is within ± this. */
  readonly limit: number;
}

/** The rotary scaling of the published checkpoints, where a config.json has none. */
const YARN = {
  ...{ rope_type: "yarn", factor: 32, beta_fast: 32, beta_slow: 1 },
  ...{ truncate: false, original_max_position_embeddings: 4096 },
};

/** Read a config.json of `GptOssForCausalLM`. What it leaves out has transformers' defaults. */
export function gptOssConfig(config: Config): GptOssConfig {
  requireField(config, "hidden_act", "silu");
  requireField(config, "attention_bias", true);
  const quantization = objectField(config, "quantization_config");
  if (quantization) requireField(quantization, "quant_method", "mxfp4");
  const heads = headFields(config, {
    ...{ embed: 2880, heads: 64, kvHeads: 8, headDim: 64 },
  });
  const scaled = config["rope_scaling"] === undefined &&
      config["rope_parameters"] === undefined
    ? { ...config, rope_scaling: YARN }
    : config;
  return {
    ...heads,
    layers: integerField(config, "num_hidden_layers", { default: 36 }),
    vocabulary: integerField(config, "vocab_size", { default: 201088 }),
    embed: integerField(config, "hidden_size", { default: 2880 }),
    experts: integerField(config, "num_local_experts", { default: 128 }),
    expertsPerToken: integerField(config, "num_experts_per_tok", {
      default: 4,
    }),
    ffn: integerField(config, "intermediate_size", { default: 2880 }),
    epsilon: positiveField(config, "rms_norm_eps", 1e-5),
    rotary: readRotary(scaled, { dim: heads.headDim, theta: 150000 }),
    maxPositions: integerField(config, "max_position_embeddings", {
      default: 131072,
    }),
    windowOf: readWindows(config),
    limit: positiveField(config, "swiglu_limit", 7),
    tied: booleanField(config, "tie_word_embeddings", false),
  };
}

/** Layers say which kind they are; by default the first slides, and every other one. */
function readWindows(config: Config): GptOssConfig["windowOf"] {
  const window = integerField(config, "sliding_window", { default: 128 });
  const kinds: unknown = config["layer_types"] ?? [];
  const known = ["sliding_attention", "full_attention"];
  if (!Array.isArray(kinds) || kinds.some((kind) => !known.includes(kind))) {
    throw fieldError(
      "layer_types",
      kinds,
      "a list of 'sliding_attention' and 'full_attention'",
    );
  }
  return (layer) =>
    (kinds[layer] ?? known[layer % 2]) === known[0] ? window : undefined;
}

/** The model of a configuration. */
export function gptOss(config: GptOssConfig, bounds: Bounds): Model {
  const { ffn, limit } = config;
  return decoderModel(config, {
    axes: { ...groupedAxes(config), ffn, gateUp: 2 * ffn },
    attend(m, rows, layer) {
      const heads = splitHeads(project(m, rows, layer, { bias: true }));
      return attendHeads(m, turn(heads, config.rotary, layer), layer, {
        bias: true,
        sinks: m.param(`${layer.name}.self_attn.sinks`, "head"),
        window: config.windowOf(layer.index),
      });
    },
    feed(m, rows, layer) {
      const block = `${layer.name}.mlp`;
      const logits = add(
        routerLogits(m, rows, `${block}.router.weight`),
        m.param(`${block}.router.bias`, "expert"),
      );
      const routing = routeLayer(logits, layer, {
        topK: config.expertsPerToken,
        preset: "gptOss",
      });
      const at = `${block}.experts`;
      const inward = m.param(`${at}.gate_up_proj`, "expert embed gateUp");
      const both = add(
        dot(dispatch(rows, routing), inward, "embed"),
        m.param(`${at}.gate_up_proj_bias`, "expert gateUp"),
      );
      // Gates and what they multiply lie side by side.
      const hidden = clampedGlu(
        slice(both, "gateUp", 0, "ffn", 2),
        slice(both, "gateUp", 1, "ffn", 2),
        limit,
      );
      const outward = m.param(`${at}.down_proj`, "expert ffn embed");
      const done = add(
        dot(hidden, outward, "ffn"),
        m.param(`${at}.down_proj_bias`, "expert embed"),
      );
      return combine(done, routing);
    },
  }, bounds);
}

/** (up + 1) · gate · sigmoid(1.702 gate), gates clamped above only. */
function clampedGlu(
  gate: Tensor<"expert slot ffn", "f32">,
  up: Tensor<"expert slot ffn", "f32">,
  limit: number,
): Tensor<"expert slot ffn", "f32"> {
  return map(
    (g, u) => (u + 1) * (g / (1 + Math.exp(-1.702 * g))),
    minimum(gate, limit),
    minimum(maximum(up, -limit), limit),
  );
}
