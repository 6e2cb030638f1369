/**
 * Qwen3-Next and Qwen3.5-MoE: layers of gated delta nets, some layers of gated attention between them, and a gated
 * shared expert. Gains of norms are stored minus 1.
 */

import { dot, type Model, slice, split } from "switchyard-moe";
import {
  attendHeads,
  booleanField,
  type Config,
  decoderModel,
  type DecoderOptions,
  type DecoderScope,
  defineFamily,
  type DeltaNet,
  deltaNet,
  deltaNetFields,
  experts,
  fusedExperts,
  type GroupedAxes,
  groupedAxes,
  integerField,
  type Layer,
  layerTypes,
  normHeads,
  predictorModule,
  projectFlat,
  projectGrouped,
  projectSplit,
  requireField,
  rotate,
  type Rows,
  sparseOrDense,
  textConfig,
  WRAPPED,
} from "switchyard-moe/models";
import { feedGated, type QwenConfig, qwenFields } from "./qwen.ts";

/** The family of Qwen3-Next and Qwen3.5-MoE, text part. */
export const family = defineFamily({
  architectures: [
    "Qwen3NextForCausalLM",
    "Qwen3_5MoeForCausalLM",
    "Qwen3_5MoeForConditionalGeneration",
  ],
  config: readConfig,
  build,
  unused: () => ["mtp.", "model.visual."],
});

/** A Qwen3-Next configuration. */
interface Qwen3NextConfig extends QwenConfig, DeltaNet {
  readonly sharedFfn: number;
  /** How delta nets project rows: `grouped` by head of keys, `flat`, or flat except for rates and decays, `split`. */
  readonly projections: "grouped" | "flat" | "split";
  /** Tensors have the names of a model of text and images. */
  readonly wrapped: boolean;
}

/** Reads a config.json. Missing fields have transformers' defaults. */
function readConfig(document: Config): Qwen3NextConfig {
  const { config, wrapped } = textConfig(document);
  requireField(config, "attention_bias", false);
  const [architecture] = document["architectures"] as readonly string[];
  const grouped = architecture === "Qwen3NextForCausalLM";
  if (!grouped) requireField(config, "norm_topk_prob", true);
  const fields = qwenFields(config, {
    layers: grouped ? 48 : 40,
    vocabulary: grouped ? 151936 : 248320,
    embed: 2048,
    heads: 16,
    kvHeads: 2,
    headDim: 256,
    experts: grouped ? 512 : 256,
    expertsPerToken: grouped ? 10 : 8,
    ffn: 512,
    denseFfn: 5632,
    normalize: true,
    epsilon: 1e-6,
    theta: 10000,
    part: 0.25,
    maxPositions: 32768,
  });
  const every = integerField(config, "full_attention_interval", { default: 4 });
  const typeOf = layerTypes(
    config,
    ["linear_attention", "full_attention"],
    (layer) =>
      (layer + 1) % every === 0 ? "full_attention" : "linear_attention",
  );
  return {
    ...fields,
    ...deltaNetFields(config),
    kindOf: (layer) => ({ ...fields.kindOf(layer), mixer: typeOf(layer) }),
    sharedFfn: integerField(config, "shared_expert_intermediate_size", {
      default: 512,
    }),
    projections: !grouped
      ? "flat"
      : booleanField(config, "fused_projections", { default: true })
      ? "grouped"
      : "split",
    wrapped,
  };
}

const PROJECTIONS = {
  flat: projectFlat,
  grouped: projectGrouped,
  split: projectSplit,
};

/** Builds the model of a configuration. */
function build(config: Qwen3NextConfig, options: DecoderOptions): Model {
  const { epsilon, ffn, sharedFfn, wrapped } = config;
  const project = PROJECTIONS[config.projections];
  return decoderModel(config, {
    axes: groupedAxes(config),
    centred: true,
    names: wrapped ? WRAPPED : {},
    predictor: predictorModule({ experts: true, mixer: "full_attention" }),
    attend: (m, rows, layer) =>
      layer.kind.mixer === "full_attention"
        ? attend(m, rows, layer, config)
        : deltaNet(m, rows, { layer, c: config, epsilon, project }),
    feed: sparseOrDense(config, (m, rows, layer) =>
      feedGated(m, rows, layer, {
        topK: config.expertsPerToken,
        normalize: config.normalize,
        sharedFfn,
        experts: (routing) =>
          wrapped
            ? fusedExperts(m, rows, routing, {
              ffn,
              inward: "experts.gate_up_proj",
              outward: "experts.down_proj",
            })
            : experts(m, rows, routing),
      })),
  }, options);
}

/** Attention whose query projection includes a gate per head. */
function attend(
  m: DecoderScope<keyof GroupedAxes>,
  rows: Rows,
  layer: Layer,
  config: Qwen3NextConfig,
): Rows {
  const { heads, headDim, epsilon } = config;
  const axes = { allGated: 2 * heads * headDim, gated: 2 * headDim };
  return m.block("self_attn", axes, (m) => {
    const keyValue = (name: string) =>
      split(
        dot(rows, m.param(`${name}.weight`, "keyValue embed"), "embed"),
        "keyValue",
        "kvHead headDim",
      );
    const both = split(
      dot(rows, m.param("q_proj.weight", "allGated embed"), "embed"),
      "allGated",
      "head gated",
    );
    const projected = {
      q: slice(both, "gated", 0, "headDim"),
      k: keyValue("k_proj"),
      v: keyValue("v_proj"),
    };
    const normed = normHeads(m, projected, { epsilon, centred: true });
    return attendHeads(m, rotate(normed, config.rotary, layer), layer, {
      gate: slice(both, "gated", headDim, "headDim"),
    });
  });
}
