/**
 * MiMo-V2-Flash: values are shorter than keys. Most layers have a window, attention sinks and more heads of keys. The
 * experts are those of DeepSeek-V3, without a shared one.
 */

import { attention, dot, merge, type Model, rope, split } from "switchyard-moe";
import {
  anyField,
  type Config,
  decoderModel,
  type DecoderOptions,
  type DecoderScope,
  defineFamily,
  experts,
  fixedWindowField,
  type GroupedDecoder,
  groupedFields,
  integerField,
  integersField,
  type Layer,
  layerTypes,
  objectField,
  optionalField,
  positiveField,
  readRotary,
  requireField,
  requireMultiple,
  type Rotary,
  routeLayer,
  type Rows,
  sparseOrDense,
  times,
} from "switchyard-moe/models";

/** The family of `MiMoV2FlashForCausalLM`. */
export const family = defineFamily({
  architectures: ["MiMoV2FlashForCausalLM"],
  config: readConfig,
  build,
  unused: () => ["model.mtp."],
});

/** A MiMo-V2-Flash configuration. Heads of keys and rotation are those of layers without a window. */
interface MiMoConfig extends GroupedDecoder {
  /** Elements of a value of a head. */
  readonly valueDim: number;
  /** Heads of keys and rotation of layers with a window. */
  readonly sliding: { readonly kvHeads: number; readonly rotary: Rotary };
  /** Factor of values. */
  readonly valueScale: number;
  /** Hidden size of a layer without experts. */
  readonly denseFfn: number;
  /** Factor of expert weights. */
  readonly routedScale: number;
}

/** Reads a config.json of `MiMoV2FlashForCausalLM`. Missing fields have transformers' defaults. */
function readConfig(config: Config): MiMoConfig {
  requireField(config, "attention_bias", false);
  requireField(config, "scoring_func", "sigmoid");
  requireField(config, "topk_method", "noaux_tc");
  requireField(config, "n_group", 1);
  requireField(config, "topk_group", 1);
  requireField(config, "n_shared_experts", null);
  requireField(config, "norm_topk_prob", true);
  requireField(config, "add_swa_attention_sink_bias", true);
  requireField(config, "add_full_attention_sink_bias", false);
  const published = config["layernorm_epsilon"] !== undefined;
  const fields = groupedFields(config, {
    layers: 48,
    vocabulary: 152576,
    embed: 4096,
    heads: 64,
    kvHeads: 4,
    headDim: 192,
    experts: 256,
    expertsPerToken: 8,
    ffn: 2048,
    epsilon: 1e-5,
    theta: 5e6,
    part: 0.334,
    maxPositions: 131072,
  }, {
    experts: "n_routed_experts",
    ffn: "moe_intermediate_size",
    epsilon: published ? "layernorm_epsilon" : "rms_norm_eps",
  });
  const { heads, headDim } = fields;
  const field = (key: string, value: number) =>
    integerField(config, key, { default: value });
  const valueDim = field("v_head_dim", 128);
  const kvHeads = field("swa_num_key_value_heads", 2 * fields.kvHeads);
  requireMultiple(
    { name: "num_attention_heads", value: heads },
    { name: "swa_num_key_value_heads", value: kvHeads },
  );
  // The other sizes are equal in all layers.
  requireField(config, "swa_num_attention_heads", heads);
  requireField(config, "swa_head_dim", headDim);
  requireField(config, "swa_v_head_dim", valueDim);
  const rotaryOf = rotaries(config, headDim);
  const slides = flags(config, "hybrid_layer_pattern", {
    key: "layer_types",
    names: ["full_attention", "sliding_attention"],
    isSet: (layer) => layer !== 0 && (layer + 1) % 6 !== 0,
  });
  const window = fixedWindowField(config, {
    layers: fields.layers,
    hasWindow: slides,
    default: 128,
  });
  requireField(config, "sliding_window_size", window);
  requireField(config, "attention_chunk_size", window);
  const sparse = flags(config, "moe_layer_freq", {
    key: "mlp_layer_types",
    names: ["dense", "sparse"],
    isSet: (layer) => layer !== 0,
  });
  return {
    ...fields,
    rotary: rotaryOf("full_attention", "rope_theta", 5e6),
    valueDim,
    sliding: {
      kvHeads,
      rotary: rotaryOf("sliding_attention", "swa_rope_theta", 10000),
    },
    valueScale: anyField(config, "attention_value_scale") === null
      ? 1
      : positiveField(config, "attention_value_scale", { default: 0.707 }),
    denseFfn: field("intermediate_size", 16384),
    routedScale: optionalField(config, "routed_scaling_factor") ?? 1,
    kindOf: (layer) => ({
      experts: sparse(layer),
      window: slides(layer) ? window : undefined,
    }),
  };
}

/**
 * Reads a property of layers: zeros and ones in the published field `key`, names in that of transformers 5, or the
 * default.
 */
function flags(
  config: Config,
  key: string,
  { key: named, names: [unset, set], isSet }: {
    readonly key: string;
    readonly names: readonly [unset: string, set: string];
    readonly isSet: (layer: number) => boolean;
  },
): (layer: number) => boolean {
  const listed = integersField(config, key);
  const nameOf = layerTypes(config, [unset, set], (layer) => {
    const on = listed?.[layer];
    return (on === undefined ? isSet(layer) : on === 1) ? set : unset;
  }, named);
  return (layer) => nameOf(layer) === set;
}

/** Reads the rotation of each kind of layer: from an object of transformers 5, or from the published field `key`. */
function rotaries(
  config: Config,
  dim: number,
): (kind: string, key: string, theta: number) => Rotary {
  const all = objectField(config, "rope_parameters") ?? {};
  return (kind, key, theta) => {
    const ofKind = objectField(all, kind) ?? {
      rope_theta: positiveField(config, key, { default: theta }),
      partial_rotary_factor: config["partial_rotary_factor"],
    };
    return readRotary({ rope_parameters: ofKind }, { dim, theta, part: 0.334 });
  };
}

/** Builds the model of a configuration. */
function build(config: MiMoConfig, options: DecoderOptions): Model {
  return decoderModel(config, {
    axes: {},
    attend: (m, rows, layer) => attend(m, rows, layer, config),
    feed: sparseOrDense(config, (m, rows, layer) => {
      const routing = routeLayer(m, rows, layer, {
        topK: config.expertsPerToken,
        preset: "deepseekV3",
        bias: m.param("gate.e_score_correction_bias", "expert"),
        normalize: "chosen",
        scale: config.routedScale,
      });
      return experts(m, rows, routing);
    }),
  }, options);
}

/** The block `self_attn`. */
function attend(
  m: DecoderScope,
  rows: Rows,
  layer: Layer,
  config: MiMoConfig,
): Rows {
  const { window } = layer.kind;
  const { kvHeads, rotary } = window === undefined ? config : config.sliding;
  const { heads, headDim, valueDim } = config;
  const axes = {
    kvHead: kvHeads,
    headDim,
    valueDim,
    queries: heads * headDim,
    keys: kvHeads * headDim,
    values: kvHeads * valueDim,
    results: heads * valueDim,
  };
  return m.block("self_attn", axes, (m) => {
    const rotation = { position: layer.position, ...rotary };
    const q = dot(rows, m.param("q_proj.weight", "queries embed"), "embed");
    const k = dot(rows, m.param("k_proj.weight", "keys embed"), "embed");
    const v = dot(rows, m.param("v_proj.weight", "values embed"), "embed");
    const { y, keys, values } = attention(
      rope(split(q, "queries", "head headDim"), "headDim", rotation),
      {
        key: rope(split(k, "keys", "kvHead headDim"), "headDim", rotation),
        value: times(split(v, "values", "kvHead valueDim"), config.valueScale),
        keys: m.state("keys", "sequence context kvHead headDim"),
        values: m.state("values", "sequence context kvHead valueDim"),
        sequence: layer.sequence,
        position: layer.position,
        ...window === undefined
          ? {}
          : { window, sinks: m.param("attention_sink_bias", "head") },
      },
    );
    layer.keep(`${layer.name}.self_attn.keys`, keys);
    layer.keep(`${layer.name}.self_attn.values`, values);
    const output = m.param("o_proj.weight", "embed results");
    return dot(merge(y, "head valueDim", "results"), output, "results");
  });
}
