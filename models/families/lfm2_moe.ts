/**
 * LFM2-MoE: layers of short convolutions between two gates, some attention layers, and routing by sigmoids and a bias.
 */

import { dot, type Model, mul, slice } from "switchyard-moe";
import {
  attendHeads,
  booleanField,
  type Config,
  convolutionAxes,
  convolve,
  decoderModel,
  type DecoderOptions,
  type DecoderScope,
  defineFamily,
  experts,
  groupedAxes,
  type GroupedDecoder,
  groupedFields,
  integerField,
  type Layer,
  layerTypes,
  mlp,
  normHeads,
  NUMBERED,
  positiveField,
  projectHeads,
  requireField,
  rotate,
  routeLayer,
  type Rows,
} from "switchyard-moe/models";

/** The family of `Lfm2MoeForCausalLM`. */
export const family = defineFamily({
  architectures: ["Lfm2MoeForCausalLM"],
  config: readConfig,
  build,
});

/** An LFM2-MoE configuration. */
interface Lfm2MoeConfig extends GroupedDecoder {
  /** Hidden size of a layer without experts. */
  readonly denseFfn: number;
  /** Number of taps of the convolution. */
  readonly taps: number;
  /** Divide the weights of a token's experts by their sum. */
  readonly normalize: boolean;
  /** Factor of expert weights. */
  readonly routedScale: number;
}

/** Reads a config.json of `Lfm2MoeForCausalLM`. Missing fields have transformers' defaults. */
function readConfig(config: Config): Lfm2MoeConfig {
  requireField(config, "conv_bias", false);
  requireField(config, "use_expert_bias", true);
  const field = (key: string, value: number, min = 1) =>
    integerField(config, key, { default: value, min });
  const dense = field("num_dense_layers", 2, 0);
  const typeOf = layerTypes(config, ["conv", "full_attention"], () => "conv");
  return {
    ...groupedFields(config, {
      layers: 32,
      vocabulary: 65536,
      embed: 2048,
      heads: 32,
      kvHeads: 8,
      experts: 32,
      expertsPerToken: 4,
      ffn: 1792,
      epsilon: 1e-5,
      theta: 1e6,
      maxPositions: 128000,
      tied: true,
    }, {
      experts: "num_experts",
      ffn: "moe_intermediate_size",
      epsilon: "norm_eps",
    }),
    denseFfn: field("intermediate_size", 7168),
    taps: field("conv_L_cache", 3, 2),
    normalize: booleanField(config, "norm_topk_prob", { default: true }),
    routedScale: positiveField(config, "routed_scaling_factor", { default: 1 }),
    kindOf: (layer) => ({ experts: layer >= dense, mixer: typeOf(layer) }),
  };
}

/** Builds the model of a configuration. */
function build(config: Lfm2MoeConfig, options: DecoderOptions): Model {
  const { ffn, denseFfn, epsilon } = config;
  const names = ["q_layernorm", "k_layernorm"] as const;
  return decoderModel(config, {
    axes: groupedAxes(config),
    names: {
      attentionNorm: "operator_norm.weight",
      feedNorm: "ffn_norm.weight",
      norm: "model.embedding_norm.weight",
    },
    attend: (m, rows, layer) =>
      layer.kind.mixer === "conv"
        ? convolveGated(m, rows, layer, config)
        : m.block("self_attn", {}, (m) => {
          const heads = normHeads(m, projectHeads(m, rows), { epsilon, names });
          return attendHeads(m, rotate(heads, config.rotary, layer), layer, {
            output: "out_proj",
          });
        }),
    feed(m, rows, layer) {
      const name = "feed_forward";
      if (!layer.kind.experts) {
        return mlp(m, rows, { name, ffn: denseFfn, names: ["w1", "w3", "w2"] });
      }
      return m.block(name, { ffn }, (m) => {
        const routing = routeLayer(m, rows, layer, {
          topK: config.expertsPerToken,
          score: "sigmoid",
          bias: m.param("expert_bias", "expert"),
          normalize: config.normalize ? "chosen" : "none",
          epsilon: 1e-6,
          scale: config.routedScale,
        });
        return experts(m, rows, routing, { names: NUMBERED });
      });
    },
  }, options);
}

/** out_proj(C · convolution of B · x), where B, C and x are projections of a row. */
function convolveGated(
  m: DecoderScope,
  rows: Rows,
  layer: Layer,
  { embed, taps }: Lfm2MoeConfig,
): Rows {
  const block = "conv";
  const axes = { all: 3 * embed, channels: embed, ...convolutionAxes(taps) };
  return m.block(block, axes, (m) => {
    const all = dot(rows, m.param("in_proj.weight", "all embed"), "embed");
    const part = (i: number) => slice(all, "all", i * embed, "channels");
    const y = convolve(m, mul(part(0), part(2)), {
      layer,
      block,
      weight: "conv.weight",
    });
    const output = m.param("out_proj.weight", "embed channels");
    return dot(mul(part(1), y), output, "channels");
  });
}
