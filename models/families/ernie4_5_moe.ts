/** ERNIE-4.5-MoE: rotation of neighbouring pairs, routing by a softmax and a bias, and shared experts. */

import { add, type Model, slice, sum } from "switchyard-moe";
import {
  attendHeads,
  type Config,
  decoderModel,
  type DecoderOptions,
  defineFamily,
  experts,
  fieldError,
  groupedAxes,
  type GroupedDecoder,
  groupedFields,
  integerField,
  mlp,
  positiveField,
  projectHeads,
  requireField,
  rotate,
  routeLayer,
  sparseOrDense,
} from "switchyard-moe/models";

/** The family of `Ernie4_5_MoeForCausalLM`. */
export const family = defineFamily({
  architectures: ["Ernie4_5_MoeForCausalLM"],
  config: readErnie,
  build: buildErnie,
});

/** An ERNIE-4.5 configuration. */
export interface Ernie45MoeConfig extends GroupedDecoder {
  /** Hidden size of all shared experts together, 0 without them, and hidden size of a layer without experts. */
  readonly sharedFfn: number;
  readonly denseFfn: number;
  /** Lower limit of the sum of a token's scores. */
  readonly minSum: number;
}

/** Reads a config.json of `Ernie4_5_MoeForCausalLM`. Missing fields have transformers' defaults. */
export function readErnie(config: Config): Ernie45MoeConfig {
  requireField(config, "use_bias", false);
  const field = (key: string, value: number, min = 1) =>
    integerField(config, key, { default: value, min });
  const fields = groupedFields(config, {
    layers: 28,
    vocabulary: 103424,
    embed: 2560,
    heads: 20,
    kvHeads: 4,
    experts: 64,
    expertsPerToken: 6,
    ffn: 1536,
    epsilon: 1e-5,
    theta: 500000,
    maxPositions: 131072,
    interleaved: true,
    tied: true,
  }, {
    experts: "moe_num_experts",
    expertsPerToken: "moe_k",
    ffn: "moe_intermediate_size",
  });
  const every = field("moe_layer_interval", 1);
  const first = field("moe_layer_start_index", 1, 0);
  const last = field("moe_layer_end_index", -1, -1);
  const end = last < 0 ? fields.layers : last + 1;
  if (first >= end) {
    throw fieldError("moe_layer_start_index", first, `less than ${end}`);
  }
  return {
    ...fields,
    sharedFfn: fields.ffn * field("moe_num_shared_experts", 2, 0),
    denseFfn: field("intermediate_size", 12288),
    minSum: positiveField(config, "moe_norm_min", { default: 1e-12 }),
    kindOf: (layer) => ({
      experts: (layer + 1) % every === 0 && layer >= first && layer < end,
    }),
  };
}

/** Builds the model of a configuration. `modalities`: their number, if routers are stored transposed and for each. */
export function buildErnie(
  config: Ernie45MoeConfig,
  options: DecoderOptions,
  { modalities }: { readonly modalities?: number } = {},
): Model {
  const { sharedFfn, minSum, rotary } = config;
  return decoderModel(config, {
    axes: groupedAxes(config),
    attend: (m, rows, layer) =>
      m.block("self_attn", {}, (m) => {
        const rotated = rotate(projectHeads(m, rows), rotary, layer);
        return attendHeads(m, rotated, layer);
      }),
    feed: sparseOrDense(config, (m, rows, layer) => {
      const axes = { one: 1, modality: modalities ?? 1 };
      const bias = m.block("moe_statics", axes, (m) => {
        const stored = m.param("e_score_correction_bias", "modality expert");
        return sum(slice(stored, "modality", 0, "one"), "one");
      });
      const routing = routeLayer(m, rows, layer, {
        transposed: modalities !== undefined,
        topK: config.expertsPerToken,
        score: "softmax",
        bias,
        normalize: "chosen",
        minSum,
      });
      const routed = experts(m, rows, routing);
      if (sharedFfn === 0) return routed;
      const shared = { name: "shared_experts", ffn: sharedFfn };
      return add(routed, mlp(m, rows, shared));
    }),
  }, options);
}
