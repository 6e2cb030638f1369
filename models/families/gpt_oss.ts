/**
 * gpt-oss: biases in all projections, attention sinks, a sliding window in every other layer, and experts with clamped
 * gates.
 */

import {
  add,
  combine,
  dispatch,
  dot,
  type Model,
  slice,
  swigluOai,
  type Tensor,
} from "switchyard-moe";
import {
  attendHeads,
  booleanField,
  type Config,
  decoderModel,
  type DecoderOptions,
  type DecoderScope,
  defineFamily,
  groupedAxes,
  type GroupedDecoder,
  groupedFields,
  ignoreFields,
  objectField,
  positiveField,
  projectHeads,
  requireField,
  ropeScaling,
  rotate,
  routeLayer,
  type Rows,
  slidingLayers,
  type TokenRouting,
  windowField,
} from "switchyard-moe/models";

/** The family of `GptOssForCausalLM`. */
export const family = defineFamily({
  architectures: ["GptOssForCausalLM"],
  config: readConfig,
  build,
});

/** A gpt-oss configuration. */
interface GptOssConfig extends GroupedDecoder {
  /** Upper limit of gates, and limit of the absolute value of their factors. */
  readonly limit: number;
  /** One tensor has the gates and factors of all experts. Otherwise each matrix of an expert is a tensor. */
  readonly fused: boolean;
}

/** The rotary scaling of the published checkpoints, for a config.json without one. */
const YARN = {
  rope_type: "yarn",
  factor: 32,
  beta_fast: 32,
  beta_slow: 1,
  truncate: false,
  original_max_position_embeddings: 4096,
};

/** Reads a config.json of `GptOssForCausalLM`. Missing fields have transformers' defaults. */
function readConfig(config: Config): GptOssConfig {
  requireField(config, "attention_bias", true);
  requireField(config, "swiglu_alpha", 1.702);
  ignoreFields(config, ["experts_per_token", "initial_context_length"]);
  const { quantization_config: _, ...plain } = config;
  const quantization = objectField(config, "quantization_config");
  if (quantization) requireField(quantization, "quant_method", "mxfp4");
  const scaled = { ...plain, rope_scaling: ropeScaling(config, YARN) };
  return {
    ...groupedFields(scaled, {
      layers: 36,
      vocabulary: 201088,
      embed: 2880,
      heads: 64,
      kvHeads: 8,
      headDim: 64,
      experts: 128,
      expertsPerToken: 4,
      ffn: 2880,
      epsilon: 1e-5,
      theta: 150000,
      maxPositions: 131072,
    }, { experts: "num_local_experts", ffn: "intermediate_size" }),
    kindOf: readKinds(config),
    limit: positiveField(config, "swiglu_limit", { default: 7 }),
    fused: booleanField(config, "fused_experts", { default: true }),
  };
}

/** Reads the kinds of layers. By default every other layer has a sliding window, starting with the first. */
function readKinds(config: Config): GptOssConfig["kindOf"] {
  const window = windowField(config, { default: 128 });
  const slides = slidingLayers(config, (layer) => layer % 2 === 0);
  return (layer) => ({
    experts: true,
    window: slides(layer) ? window : undefined,
  });
}

/** Builds the model of a configuration. */
function build(config: GptOssConfig, options: DecoderOptions): Model {
  const { ffn, limit, fused } = config;
  return decoderModel(config, {
    axes: groupedAxes(config),
    attend: (m, rows, layer) =>
      m.block("self_attn", {}, (m) => {
        const heads = projectHeads(m, rows, { bias: true });
        return attendHeads(m, rotate(heads, config.rotary, layer), layer, {
          bias: true,
          sinks: m.param("sinks", "head"),
          window: layer.kind.window,
        });
      }),
    feed: (m, rows, layer) =>
      m.block("mlp", { ffn, gateUp: 2 * ffn }, (m) => {
        const routing = routeLayer(m, rows, layer, {
          router: "router",
          biased: true,
          topK: config.expertsPerToken,
          preset: "gptOss",
        });
        const sent = dispatch(rows, routing);
        if (!fused) return separateExperts(m, sent, routing, limit);
        const inward = m.param("experts.gate_up_proj", "expert embed gateUp");
        const both = add(
          dot(sent, inward, "embed"),
          m.param("experts.gate_up_proj_bias", "expert gateUp"),
        );
        // Gates and their factors are interleaved.
        const hidden = swigluOai(
          slice(both, "gateUp", 0, "ffn", 2),
          slice(both, "gateUp", 1, "ffn", 2),
          { limit },
        );
        const outward = m.param("experts.down_proj", "expert ffn embed");
        const done = add(
          dot(hidden, outward, "ffn"),
          m.param("experts.down_proj_bias", "expert embed"),
        );
        return combine(done, routing);
      }),
  }, options);
}

/** Experts whose matrices are separate tensors, as in GGUF files. */
function separateExperts(
  m: DecoderScope<"ffn">,
  sent: Tensor<"expert slot embed", "f32">,
  routing: TokenRouting,
  limit: number,
): Rows {
  const inward = (name: string) =>
    add(
      dot(
        sent,
        m.param(`experts.{expert}.${name}.weight`, "expert ffn embed"),
        "embed",
      ),
      m.param(`experts.{expert}.${name}.bias`, "expert ffn"),
    );
  const hidden = swigluOai(inward("gate_proj"), inward("up_proj"), { limit });
  const down = "experts.{expert}.down_proj";
  const done = dot(
    hidden,
    m.param(`${down}.weight`, "expert embed ffn"),
    "ffn",
  );
  return combine(add(done, m.param(`${down}.bias`, "expert embed")), routing);
}
