/** Mellum 2: Qwen3-MoE with a window and another rotation in most layers. */

import type { Model } from "switchyard-moe";
import {
  attendHeads,
  booleanField,
  type Config,
  decoderModel,
  type DecoderOptions,
  defineFamily,
  experts,
  fixedWindowField,
  groupedAxes,
  type GroupedDecoder,
  groupedFields,
  ignoreFields,
  integerField,
  layerRotary,
  layerTypes,
  normHeads,
  projectHeads,
  requireField,
  type Rotary,
  rotate,
  routeLayer,
  slidingLayers,
  sparseOrDense,
} from "switchyard-moe/models";
import { expertsField } from "./qwen.ts";

/** The family of `MellumForCausalLM`. */
export const family = defineFamily({
  architectures: ["MellumForCausalLM"],
  config: readConfig,
  build,
});

/** A Mellum configuration. */
interface MellumConfig extends GroupedDecoder {
  /** The rotation of layers with a window. */
  readonly slidingRotary: Rotary;
  /** Hidden size of a layer without experts. */
  readonly denseFfn: number;
  /** Divide the weights of a token's experts by their sum. */
  readonly normalize: boolean;
}

/** Reads a config.json of `MellumForCausalLM`. Missing fields have transformers' defaults. */
function readConfig(config: Config): MellumConfig {
  requireField(config, "attention_bias", false);
  requireField(config, "use_sliding_window", true);
  ignoreFields(config, ["max_window_layers"]);
  const { rope_parameters: _, rope_scaling: __, ...plain } = config;
  const theta = 500000;
  const fields = groupedFields(plain, {
    layers: 28,
    vocabulary: 98304,
    embed: 2304,
    heads: 32,
    kvHeads: 4,
    headDim: 128,
    experts: 64,
    expertsPerToken: 8,
    ffn: 896,
    epsilon: 1e-6,
    theta,
    maxPositions: 131072,
  }, { experts: expertsField(config), ffn: "moe_intermediate_size" });
  const { headDim: dim } = fields;
  const slides = slidingLayers(config, () => false);
  const window = fixedWindowField(config, {
    layers: fields.layers,
    hasWindow: slides,
    default: 1024,
  });
  const feedOf = layerTypes(
    config,
    ["dense", "sparse"],
    () => "sparse",
    "mlp_layer_types",
  );
  return {
    ...fields,
    rotary: layerRotary(config, "full_attention", { dim, theta, part: 1 }),
    slidingRotary: layerRotary(config, "sliding_attention", {
      dim,
      theta: 10000,
      part: 1,
    }),
    denseFfn: integerField(config, "intermediate_size", { default: 7168 }),
    normalize: booleanField(config, "norm_topk_prob", { default: true }),
    kindOf: (layer) => ({
      experts: feedOf(layer) === "sparse",
      window: slides(layer) ? window : undefined,
    }),
  };
}

/** Builds the model of a configuration. */
function build(config: MellumConfig, options: DecoderOptions): Model {
  const { expertsPerToken: topK, normalize, rotary, slidingRotary } = config;
  return decoderModel(config, {
    axes: groupedAxes(config),
    attend: (m, rows, layer) =>
      m.block("self_attn", {}, (m) => {
        const { window } = layer.kind;
        const heads = normHeads(m, projectHeads(m, rows), config);
        const by = window === undefined ? rotary : slidingRotary;
        return attendHeads(m, rotate(heads, by, layer), layer, { window });
      }),
    feed: sparseOrDense(config, (m, rows, layer) => {
      const routing = routeLayer(m, rows, layer, {
        topK,
        preset: "qwen3Moe",
        normalize: normalize ? "chosen" : "none",
      });
      return experts(m, rows, routing);
    }),
  }, options);
}
