/**
 * Step-3.5-Flash, also as the text model of Step-3.7-Flash: a gate per head on the result of attention. Most layers
 * have a window, more heads and another rotation. The experts are those of DeepSeek-V3; activations of the last layers
 * are limited. Gains of norms are stored minus 1.
 */

import { add, dot, type Model } from "switchyard-moe";
import {
  anyField,
  attendHeads,
  booleanField,
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
  ignoreFields,
  integerField,
  type Layer,
  layersWhere,
  layerTypes,
  limitedGlu,
  mlp,
  normHeads,
  numbersField,
  objectField,
  positiveField,
  predictorTensors,
  projectHeads,
  readRotary,
  requireField,
  requireMultiple,
  type Rotary,
  rotate,
  routeLayer,
  type Rows,
  textConfig,
} from "switchyard-moe/models";

/** The family of `Step3p5ForCausalLM`, and of `Step3p7ForConditionalGeneration`, text part. */
export const family = defineFamily({
  architectures: ["Step3p5ForCausalLM", "Step3p7ForConditionalGeneration"],
  config: readConfig,
  build,
  unused: (config) => [
    "vision_model.",
    "vit_large_projector.",
    ...predictorTensors(config),
  ],
});

/** The attention of a layer. */
interface Attention {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly rotary: Rotary;
}

/** A Step-3.5-Flash configuration. */
interface StepConfig extends DecoderFields {
  /** The heads of layers without a window. */
  readonly heads: number;
  readonly headDim: number;
  /** Attention of layers with a window, and of the other layers. */
  readonly sliding: Attention;
  readonly full: Attention;
  /** Hidden size of the shared expert, and of a layer without experts. */
  readonly sharedFfn: number;
  readonly denseFfn: number;
  /** Factor of expert weights. */
  readonly routedScale: number;
  /** One tensor has a matrix of all experts. Otherwise each matrix of an expert is a tensor. */
  readonly fused: boolean;
  /** Layers after the last one that predict further tokens. */
  readonly predictors: number;
}

const TYPES = ["sliding_attention", "full_attention"] as const;

/** Reads a config.json as published; transformers 5 writes other fields. Missing sizes are those of Step-3.5-Flash. */
function readConfig(document: Config): StepConfig {
  const { config } = textConfig(document);
  requireField(config, "attention_bias", false);
  requireField(config, "use_qk_norm", true);
  requireField(config, "use_head_wise_attn_gate", true);
  requireField(config, "zero_centered", true);
  requireField(config, "use_mfa", false);
  requireField(config, "sink", false);
  requireField(config, "moe_router_activation", "sigmoid");
  requireField(config, "use_moe_router_bias", true);
  requireField(config, "norm_expert_weight", true);
  requireField(config, "rope_parameters", null);
  ignoreFields(config, ["need_fp32_gate", "use_moe", "max_seq_len"]);
  const fields = decoderFields(config, {
    layers: 45,
    vocabulary: 128896,
    embed: 4096,
    experts: 288,
    expertsPerToken: 8,
    ffn: 1280,
    epsilon: 1e-5,
    maxPositions: 262144,
  }, {
    experts: "moe_num_experts",
    expertsPerToken: "moe_top_k",
    ffn: "moe_intermediate_size",
  });
  const field = (key: string, value: number, min = 1) =>
    integerField(config, key, { default: value, min });
  const headDim = field("head_dim", 128);
  const typeOf = layerTypes(config, TYPES, () => "full_attention");
  const attention = (type: typeof TYPES[number], sizes: Config): Attention => {
    const size = (key: string, value: number) =>
      integerField(sizes, key, { default: value });
    const heads = size("num_attention_heads", 64);
    const kvHeads = size("num_attention_groups", 8);
    requireMultiple(
      { name: "num_attention_heads", value: heads },
      { name: "num_attention_groups", value: kvHeads },
    );
    requireField(sizes, "head_dim", headDim);
    const [first = 0] = layersWhere(
      fields.layers,
      (layer) => typeOf(layer) === type,
    );
    const rotary = readRotations(config, type, first, headDim);
    return { heads, kvHeads, headDim, rotary };
  };
  const full = attention("full_attention", config);
  const sparse = sparseLayers(config);
  const window = fixedWindowField(config, {
    layers: fields.layers,
    hasWindow: (layer) => typeOf(layer) === "sliding_attention",
    default: 512,
  });
  const limits = numbersField(config, "swiglu_limits");
  const sharedLimits = numbersField(config, "swiglu_limits_shared");
  return {
    ...fields,
    heads: full.heads,
    headDim,
    full,
    sliding: attention(
      "sliding_attention",
      objectField(config, "attention_other_setting") ?? config,
    ),
    sharedFfn: field("share_expert_dim", 1280),
    denseFfn: field("intermediate_size", 11264),
    routedScale: positiveField(config, "moe_router_scaling_factor", {
      default: 1,
    }),
    fused: booleanField(config, "fused_experts", { default: true }),
    predictors: field("num_nextn_predict_layers", 0, 0),
    kindOf: (layer) => ({
      experts: sparse.has(layer),
      window: typeOf(layer) === "sliding_attention" ? window : undefined,
      limits: [limits[layer] ?? 0, sharedLimits[layer] ?? 0],
    }),
  };
}

/** Reads the numbers of the layers with experts. */
function sparseLayers(config: Config): ReadonlySet<number> {
  const value = anyField(config, "moe_layers_enum");
  if (typeof value === "string" && /^\d+(,\d+)*$/.test(value)) {
    return new Set(value.split(",").map(Number));
  }
  throw fieldError("moe_layers_enum", value, "numbers of layers, '3,4,5'");
}

/** Reads the rotation of all layers of the type of `layer`. */
function readRotations(
  config: Config,
  type: string,
  layer: number,
  dim: number,
): Rotary {
  const theta = Array.isArray(anyField(config, "rope_theta"))
    ? numbersField(config, "rope_theta")[layer] ?? 10000
    : positiveField(config, "rope_theta", { default: 10000 });
  const part = numbersField(config, "partial_rotary_factors")[layer] ?? 1;
  const scaled = anyField(config, "yarn_only_types") ?? TYPES;
  const scaling = objectField(config, "rope_scaling");
  const ofType = Array.isArray(scaled) && scaled.includes(type) ? scaling : {};
  return readRotary({
    rope_parameters: {
      ...ofType,
      rope_theta: theta,
      partial_rotary_factor: part,
    },
  }, { dim, theta, part });
}

/** Matrices of all experts. */
const FUSED = {
  gate: "gate_proj.weight",
  up: "up_proj.weight",
  down: "down_proj.weight",
} as const;

/** Builds the model of a configuration. */
function build(config: StepConfig, options: DecoderOptions): Model {
  const { ffn, sharedFfn, denseFfn, expertsPerToken, routedScale, fused } =
    config;
  return decoderModel(config, {
    axes: {},
    centred: true,
    attend: (m, rows, layer) => attend(m, rows, layer, config),
    feed(m, rows, layer) {
      const [limit, sharedLimit] = layer.kind.limits ?? [0, 0];
      const shared = {
        name: layer.kind.experts ? "share_expert" : "mlp",
        ffn: layer.kind.experts ? sharedFfn : denseFfn,
        glu: limitedGlu(sharedLimit),
      };
      const dense = mlp(m, rows, shared);
      if (!layer.kind.experts) return dense;
      const routed = m.block("moe", { ffn }, (m) => {
        const routing = routeLayer(m, rows, layer, {
          topK: expertsPerToken,
          preset: "deepseekV3",
          bias: m.param("router_bias", "expert"),
          normalize: "chosen",
          scale: routedScale,
        });
        return experts(m, rows, routing, {
          ...fused ? { names: FUSED } : {},
          glu: limitedGlu(limit),
        });
      });
      return add(routed, dense);
    },
  }, options);
}

/** The block `self_attn`. */
function attend(
  m: DecoderScope,
  rows: Rows,
  layer: Layer,
  { full, sliding, epsilon }: StepConfig,
): Rows {
  const { window } = layer.kind;
  const c = window === undefined ? full : sliding;
  return m.block("self_attn", { head: c.heads, ...groupedAxes(c) }, (m) => {
    const heads = normHeads(m, projectHeads(m, rows), {
      epsilon,
      centred: true,
    });
    const gate = dot(rows, m.param("g_proj.weight", "head embed"), "embed");
    return attendHeads(m, rotate(heads, c.rotary, layer), layer, {
      window,
      gate,
    });
  });
}
