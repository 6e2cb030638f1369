/**
 * Laguna: the attention of Qwen3-MoE with a softplus gate on its result. Most layers may have a window, more heads and
 * another rotation. The experts are those of DeepSeek-V3.
 */

import { add, dot, type Model, softplus, split } from "switchyard-moe";
import {
  anyField,
  attendHeads,
  type Config,
  type DecoderFields,
  decoderFields,
  decoderModel,
  type DecoderOptions,
  type DecoderScope,
  defineFamily,
  experts,
  fieldError,
  fixedWindowField,
  groupedAxes,
  integerField,
  integersField,
  type Layer,
  layerRotary,
  layerTypes,
  mlp,
  normHeads,
  positiveField,
  projectHeads,
  requireField,
  requireMultiple,
  type Rotary,
  rotate,
  routeLayer,
  type Rows,
  sparseOrDense,
} from "switchyard-moe/models";

/** The family of `LagunaForCausalLM`. */
export const family = defineFamily({
  architectures: ["LagunaForCausalLM"],
  config: readConfig,
  build,
});

/** The attention of a layer. */
interface Attention {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly rotary: Rotary;
}

/** A Laguna configuration. */
interface LagunaConfig extends DecoderFields {
  /** The heads of layers without a window. */
  readonly heads: number;
  readonly headDim: number;
  /** Attention of layers without a window and with one. */
  readonly full: Attention;
  readonly sliding: Attention;
  /** A gate per head, or per element of a head. */
  readonly gate: "head" | "element";
  /** Hidden size of the shared expert, and of a layer without experts. */
  readonly sharedFfn: number;
  readonly denseFfn: number;
  /** Factor of expert weights. */
  readonly routedScale: number;
}

const TYPES = ["full_attention", "sliding_attention"] as const;

/** Defaults of the rotation of a type of layers: the base, and the rotated share of a head. */
const ROTATIONS = {
  full_attention: { theta: 500000, part: 0.5 },
  sliding_attention: { theta: 10000, part: 1 },
} as const;

/** Reads a config.json of `LagunaForCausalLM`. Missing fields have transformers' defaults. */
function readConfig(config: Config): LagunaConfig {
  requireField(config, "attention_bias", false);
  requireField(config, "moe_apply_router_weight_on_input", false);
  requireField(config, "moe_router_logit_softcapping", 0);
  requireField(config, "norm_topk_prob", true);
  requireField(config, "decoder_sparse_step", 1);
  const fields = decoderFields(config, {
    layers: 40,
    vocabulary: 100352,
    embed: 2048,
    experts: 256,
    expertsPerToken: 8,
    ffn: 512,
    epsilon: 1e-6,
    maxPositions: 131072,
  }, { experts: "num_experts", ffn: "moe_intermediate_size" });
  const field = (key: string, value: number) =>
    integerField(config, key, { default: value });
  const headDim = field("head_dim", 128);
  const typeOf = layerTypes(config, TYPES, () => "full_attention");
  const window = fixedWindowField(config, {
    layers: fields.layers,
    hasWindow: (layer) => typeOf(layer) === "sliding_attention",
    default: 512,
    min: 0,
  });
  const attention = attentions(config, {
    headDim,
    layers: Array.from({ length: fields.layers }, (_, layer) => typeOf(layer)),
  });
  const dense = integersField(config, "mlp_only_layers") ?? [0];
  const feedOf = layerTypes(
    config,
    ["dense", "sparse"],
    (layer) => dense.includes(layer) ? "dense" : "sparse",
    "mlp_layer_types",
  );
  const full = attention("full_attention");
  return {
    ...fields,
    heads: full.heads,
    headDim,
    full,
    sliding: attention("sliding_attention"),
    gate: gateOf(config),
    sharedFfn: field("shared_expert_intermediate_size", 512),
    denseFfn: field("intermediate_size", 8192),
    routedScale: positiveField(config, "moe_routed_scaling_factor", {
      default: 1,
    }),
    kindOf: (layer) => ({
      experts: feedOf(layer) === "sparse",
      window: typeOf(layer) === "sliding_attention" ? window : undefined,
    }),
  };
}

/** Reads the attention of each type of layers. Layers of a type have equal numbers of heads. */
function attentions(
  config: Config,
  { headDim, layers }: {
    readonly headDim: number;
    readonly layers: readonly (typeof TYPES[number])[];
  },
): (type: typeof TYPES[number]) => Attention {
  const common = integerField(config, "num_attention_heads", { default: 48 });
  const kvHeads = integerField(config, "num_key_value_heads", { default: 8 });
  const each = integersField(config, "num_attention_heads_per_layer") ?? [];
  return (type) => {
    const heads = each[layers.indexOf(type)] ?? common;
    if (layers.some((of, i) => of === type && (each[i] ?? common) !== heads)) {
      throw fieldError(
        "num_attention_heads_per_layer",
        each,
        "equal in layers of a type",
      );
    }
    requireMultiple(
      { name: "num_attention_heads_per_layer", value: heads },
      { name: "num_key_value_heads", value: kvHeads },
    );
    const rotary = layerRotary(config, type, {
      dim: headDim,
      ...ROTATIONS[type],
    });
    return { heads, kvHeads, headDim, rotary };
  };
}

/** Reads which gates the result of attention has. */
function gateOf(config: Config): LagunaConfig["gate"] {
  const gating = anyField(config, "gating") ?? true;
  const names = anyField(config, "gating_types") ?? [gating];
  const kinds = new Set(
    Array.isArray(names)
      ? names.map((name) => name === true ? "per-head" : name)
      : [names],
  );
  const [kind] = [...kinds].map((name) => String(name).replace("_", "-"));
  if (kinds.size === 1 && kind === "per-head") return "head";
  if (kinds.size === 1 && kind === "per-element") return "element";
  throw fieldError("gating", names, "'per-head' or 'per-element'");
}

/** Builds the model of a configuration. */
function build(config: LagunaConfig, options: DecoderOptions): Model {
  const { sharedFfn, expertsPerToken, routedScale } = config;
  return decoderModel(config, {
    axes: {},
    attend: (m, rows, layer) => attend(m, rows, layer, config),
    feed: sparseOrDense(config, (m, rows, layer) => {
      const routing = routeLayer(m, rows, layer, {
        topK: expertsPerToken,
        preset: "deepseekV3",
        bias: m.param("experts.e_score_correction_bias", "expert"),
        normalize: "chosen",
        scale: routedScale,
      });
      return add(
        experts(m, rows, routing),
        mlp(m, rows, { name: "shared_expert", ffn: sharedFfn }),
      );
    }),
  }, options);
}

/** The block `self_attn`. */
function attend(
  m: DecoderScope,
  rows: Rows,
  layer: Layer,
  { full, sliding, epsilon, gate: kind }: LagunaConfig,
): Rows {
  const { window } = layer.kind;
  const c = window === undefined ? full : sliding;
  return m.block("self_attn", { head: c.heads, ...groupedAxes(c) }, (m) => {
    const heads = normHeads(m, projectHeads(m, rows), { epsilon });
    const gate = kind === "head"
      ? dot(rows, m.param("g_proj.weight", "head embed"), "embed")
      : split(
        dot(rows, m.param("g_proj.weight", "query embed"), "embed"),
        "query",
        "head headDim",
      );
    return attendHeads(m, rotate(heads, c.rotary, layer), layer, {
      window,
      gate,
      activation: softplus,
    });
  });
}
