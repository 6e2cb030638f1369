/**
 * Gemma 4 with experts. Norms surround every block. Every layer has a dense block beside its experts. Full attention
 * has other sizes than window attention, and its values may be its keys. Logits are limited.
 */

import { add, gelu, type Model, mul, sum, type Tensor } from "switchyard-moe";
import {
  anyField,
  attendHeads,
  attendWritten,
  booleanField,
  type Config,
  type DecoderFields,
  decoderFields,
  decoderModel,
  type DecoderOptions,
  type DecoderScope,
  defineFamily,
  fieldError,
  fixedWindowField,
  fusedExperts,
  groupedAxes,
  ignoreFields,
  integerField,
  type Layer,
  mlp,
  normHeads,
  objectField,
  optionalField,
  plainNorm,
  positiveField,
  project,
  requireField,
  requireMultiple,
  type Rotary,
  rotate,
  routeLayer,
  type Rows,
  slidingLayers,
  splitHeads,
  textConfig,
  WRAPPED,
  type Written,
} from "switchyard-moe/models";

import { addLayerInputs, layerInputs } from "./layer_inputs.ts";

/** The family of Gemma 4 with experts, text part. */
export const family = defineFamily({
  architectures: ["Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"],
  config: readConfig,
  build,
  unused: () => [
    "model.vision_tower.",
    "model.embed_vision.",
    "model.audio_tower.",
    "model.embed_audio.",
  ],
});

/** The attention of a layer. */
interface Attention {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly rotary: Rotary;
  /** Values are the keys before norm and rotation. */
  readonly keysAsValues: boolean;
}

/** The caches that layers attend over. */
type Caches = Map<Attention, Written>;

/** A Gemma 4 configuration. */
interface Gemma4MoeConfig extends DecoderFields {
  readonly heads: number;
  readonly headDim: number;
  /** Attention of layers with a window, and of the other layers. */
  readonly sliding: Attention;
  readonly full: Attention;
  readonly denseFfn: number;
  /** Factor of `denseFfn` in layers that attend over an earlier cache. */
  readonly wide: number;
  /** Size of the additional per-layer input of each token. 0: none. */
  readonly layerInput: number;
  readonly softCap: number | undefined;
  /** One tensor has the matrices of all experts. */
  readonly fused: boolean;
  readonly wrapped: boolean;
}

/** Reads a config.json. Missing fields have transformers' defaults. */
function readConfig(document: Config): Gemma4MoeConfig {
  const { config, wrapped } = textConfig(document);
  requireField(config, "attention_bias", false);
  requireField(config, "hidden_activation", "gelu_pytorch_tanh");
  ignoreFields(config, ["per_layer_config"]);
  const bidirectional = anyField(config, "use_bidirectional_attention") ?? null;
  // "vision": only image tokens see later tokens.
  if (bidirectional !== null && bidirectional !== "vision") {
    throw fieldError(
      "use_bidirectional_attention",
      bidirectional,
      "null or 'vision', the only ones built",
    );
  }
  // If it is missing, the model has no experts.
  requireStated(config, "enable_moe_block", true);
  const field = (key: string, value: number) =>
    integerField(config, key, { default: value });
  const fields = decoderFields(config, {
    layers: 30,
    vocabulary: 262144,
    embed: 2304,
    experts: 128,
    expertsPerToken: 8,
    ffn: 704,
    epsilon: 1e-6,
    maxPositions: 131072,
    tied: true,
  }, {
    experts: "num_experts",
    expertsPerToken: "top_k_experts",
    ffn: "moe_intermediate_size",
  });
  const layerInput = integerField(config, "hidden_size_per_layer_input", {
    default: 256,
    min: 0,
  });
  const layerVocabulary = "vocab_size_per_layer_input";
  if (layerInput === 0) ignoreFields(config, [layerVocabulary]);
  else requireField(config, layerVocabulary, fields.vocabulary);
  const heads = field("num_attention_heads", 8);
  const kvHeads = field("num_key_value_heads", 4);
  const headDim = field("head_dim", 256);
  const keysAsValues = booleanField(config, "attention_k_eq_v", {
    default: false,
  });
  const globalHeads = keysAsValues
    ? field("num_global_key_value_heads", kvHeads)
    : kvHeads;
  const query = { name: "num_attention_heads", value: heads };
  requireMultiple(query, { name: "num_key_value_heads", value: kvHeads });
  requireMultiple(query, {
    name: "num_global_key_value_heads",
    value: globalHeads,
  });
  const globalDim = field("global_head_dim", 512);
  if (globalDim % 2 !== 0) {
    throw fieldError("global_head_dim", globalDim, "an even number");
  }
  const slides = slidingLayers(config, (layer) => (layer + 1) % 6 !== 0);
  // The last layer has no window, regardless of the list.
  const hasWindow = (layer: number) =>
    layer !== fields.layers - 1 && slides(layer);
  const window = fixedWindowField(config, {
    layers: fields.layers,
    hasWindow,
    default: 512,
  });
  const sharingLayers = integerField(config, "num_kv_shared_layers", {
    default: 0,
    min: 0,
  });
  const shares = (layer: number) => layer >= fields.layers - sharingLayers;
  checkSharing(fields.layers, sharingLayers, hasWindow);
  return {
    ...fields,
    heads,
    headDim,
    sliding: {
      heads,
      kvHeads,
      headDim,
      rotary: readFrequencies(config, "sliding_attention", headDim),
      keysAsValues: false,
    },
    full: {
      heads,
      kvHeads: globalHeads,
      headDim: globalDim,
      rotary: readFrequencies(config, "full_attention", globalDim),
      keysAsValues,
    },
    denseFfn: field("intermediate_size", 9216),
    wide: booleanField(config, "use_double_wide_mlp", { default: false })
      ? 2
      : 1,
    layerInput,
    softCap: optionalField(config, "final_logit_softcapping"),
    fused: booleanField(config, "fused_experts", { default: true }),
    wrapped,
    kindOf: (layer) => ({
      experts: true,
      window: hasWindow(layer) ? window : undefined,
      ...shares(layer) ? { mixer: "shared" } : {},
    }),
  };
}

/** Rejects layers that share the cache of a layer that does not exist. */
function checkSharing(
  layers: number,
  sharing: number,
  hasWindow: (layer: number) => boolean,
): void {
  const windowed = Array.from(
    { length: Math.max(0, layers - sharing) },
    (_, layer) => hasWindow(layer),
  );
  for (let layer = windowed.length; layer < layers; layer++) {
    if (windowed.includes(hasWindow(layer))) continue;
    throw fieldError(
      "num_kv_shared_layers",
      sharing,
      "fewer, so that a layer before them has the window of each",
    );
  }
}

/** Rejects a field that is missing or has an unsupported value. */
function requireStated(
  config: Config,
  key: string,
  only: number | boolean,
): void {
  const value = anyField(config, key);
  if (value !== only) {
    throw fieldError(key, value, `${only}, the only one built`);
  }
}

/**
 * Reads the frequencies. Window attention rotates all pairs of a head. Full attention rotates the first pairs, at the
 * frequencies of the whole head.
 */
function readFrequencies(
  config: Config,
  type: "sliding_attention" | "full_attention",
  dim: number,
): Rotary {
  const all = objectField(config, "rope_parameters") ?? {};
  const ofType = objectField(all, type) ?? {};
  const full = type === "full_attention";
  requireField(ofType, "rope_type", full ? "proportional" : "default");
  const base = positiveField(ofType, "rope_theta", {
    default: full ? 1e6 : 10000,
  });
  const part = full
    ? positiveField(ofType, "partial_rotary_factor", { default: 0.25 })
    : 1;
  const rotated = Math.floor(part * dim / 2);
  return {
    inverseFrequencies: Array.from(
      { length: dim / 2 },
      (_, i) => i < rotated ? base ** (-2 * i / dim) : 0,
    ),
    scale: 1,
    interleaved: false,
  };
}

/** Builds the model of a configuration. */
function build(config: Gemma4MoeConfig, options: DecoderOptions): Model {
  const { embed, epsilon, wrapped, softCap, layerInput, layers } = config;
  return decoderModel(config, {
    axes: {
      one: 1,
      layerInput: Math.max(1, layerInput),
      layerInputs: layers * Math.max(1, layerInput),
      layer: layers,
    },
    names: wrapped ? WRAPPED : {},
    multipliers: { embedding: Math.sqrt(embed), residual: 1, logits: 1 },
    ...softCap === undefined ? {} : { softCap },
    begin(scope, start) {
      const caches: Caches = new Map();
      const given = layerInput === 0
        ? undefined
        : layerInputs(scope, start, { epsilon, wrapped, layerInput, embed });
      return {
        layer: (scope, x, layer) => {
          const m: DecoderScope = scope;
          const norm = (rows: Rows, name: string) =>
            layer.norm(m, rows, `${name}.weight`);
          const attended = layer.residual(x, (rows) => {
            const ready = norm(rows, "input_layernorm");
            return norm(
              attend(m, ready, layer, { config, caches }),
              "post_attention_layernorm",
            );
          });
          const fed = layer.residual(layer.pick(m, attended), (rows) => {
            const dense = mlp(m, norm(rows, "pre_feedforward_layernorm"), {
              name: "mlp",
              ffn: config.denseFfn *
                (layer.kind.mixer === "shared" ? config.wide : 1),
              glu: geglu,
            });
            const routed = feed(m, rows, layer, {
              config,
              ready: norm(rows, "pre_feedforward_layernorm_2"),
            });
            return norm(
              add(
                norm(dense, "post_feedforward_layernorm_1"),
                norm(routed, "post_feedforward_layernorm_2"),
              ),
              "post_feedforward_layernorm",
            );
          });
          const done = given === undefined
            ? fed
            : addLayerInputs(scope, fed, layer, { given, layerInput });
          return mul(done, sum(scope.param("layer_scalar", "one"), "one"));
        },
      };
    },
  }, options);

  function feed(
    m: DecoderScope,
    rows: Rows,
    layer: Layer,
    { config: { ffn, expertsPerToken: topK, fused }, ready }: {
      readonly config: Gemma4MoeConfig;
      readonly ready: Rows;
    },
  ): Rows {
    // The router has its own norm of the unnormalized rows.
    const seen = mul(
      mul(plainNorm(rows, "embed", epsilon), m.param("router.scale", "embed")),
      embed ** -0.5,
    );
    const routing = routeLayer(m, seen, layer, {
      router: "router.proj",
      topK,
      preset: "mixtral",
    });
    const scale = m.param("router.per_expert_scale", "expert");
    const expert = fused ? "" : "{expert}.";
    return m.block(
      "experts",
      { ffn, gateUp: 2 * ffn },
      (m) =>
        fusedExperts(m, ready, routing, {
          ffn,
          inward: `${expert}gate_up_proj`,
          outward: `${expert}down_proj`,
          glu: geglu,
          scale,
        }),
    );
  }
}

/** The block `self_attn`, whose scores are not scaled. */
function attend(
  m: DecoderScope,
  rows: Rows,
  layer: Layer,
  { config: { sliding, full, epsilon }, caches }: {
    readonly config: Gemma4MoeConfig;
    readonly caches: Caches;
  },
): Rows {
  const { window, mixer } = layer.kind;
  const c = window === undefined ? full : sliding;
  const cache = caches.get(c);
  if (mixer === "shared" && cache) {
    const options = { cache, epsilon, rotary: c.rotary, window, scale: 1 };
    return m.block(
      "self_attn",
      groupedAxes(c),
      (m) => attendWritten(m, rows, layer, options),
    );
  }
  return m.block("self_attn", groupedAxes(c), (m) => {
    const projected = project(m, rows, { keysAsValues: c.keysAsValues });
    const heads = normHeads(m, splitHeads(projected), { epsilon });
    const v = plainNorm(heads.v, "headDim", epsilon);
    const ready = rotate({ ...heads, v }, c.rotary, layer);
    return attendHeads(m, ready, layer, {
      window,
      scale: 1,
      written: (cache) => void caches.set(c, cache as never),
    });
  });
}

/** up · gelu(gate) */
function geglu<A extends string>(
  gate: Tensor<A, "f32">,
  up: Tensor<A, "f32">,
): Tensor<A, "f32"> {
  return mul(gelu(gate, { approximate: "tanh" }), up) as Tensor<A, "f32">;
}
