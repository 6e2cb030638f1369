/**
 * DeepSeek-V4: hyper-connections instead of a residual stream, compressed attention, and first layers that route by
 * token id.
 */

import {
  add,
  cast,
  clamp,
  embedding,
  minimum,
  type Model,
  swiglu,
  type Tensor,
} from "switchyard-moe";
import {
  attendCompressed,
  closeStreams,
  type CompressedAttention,
  compressedAxes,
  type Compression,
  type Config,
  connect,
  type DecoderFields,
  decoderFields,
  decoderModel,
  type DecoderOptions,
  type DecoderScope,
  defineFamily,
  experts,
  fieldError,
  fixedWindowField,
  hyperAxes,
  type HyperConnections,
  ignoreFields,
  integerField,
  integersField,
  type Layer,
  layerTypes,
  mlp,
  NUMBERED,
  objectField,
  openStreams,
  positiveField,
  readRotary,
  requireField,
  requireMultiple,
  type Rotary,
  routeLayer,
  type Rows,
  type Streams,
} from "switchyard-moe/models";

/** The family of `DeepseekV4ForCausalLM`. */
export const family = defineFamily({
  architectures: ["DeepseekV4ForCausalLM"],
  config: readConfig,
  build,
  // Files in the GGUF format count layers that predict further tokens.
  unused: ({ layers }) => ["mtp.", `layers.${layers}.`],
});

const KINDS = [
  "sliding_attention",
  "compressed_sparse_attention",
  "heavily_compressed_attention",
] as const;

/** The compression of a layer. */
type Kind = (typeof KINDS)[number];

/** A DeepSeek-V4 configuration. */
interface DeepseekV4Config
  extends DecoderFields, HyperConnections, CompressedAttention {
  readonly headDim: number;
  readonly sharedFfn: number;
  readonly routedScale: number;
  /** Upper limit of gates, and limit of the absolute value of their factors. */
  readonly limit: number;
  readonly rates: { readonly [kind in Kind]: number | undefined };
  readonly kinds: (layer: number) => Kind;
  readonly hashed: (layer: number) => boolean;
  /** Rotation of layers without and with compression. */
  readonly rotary: { readonly main: Rotary; readonly compress: Rotary };
}

/** Reads a config.json. Missing fields have transformers' defaults. */
function readConfig(config: Config): DeepseekV4Config {
  requireField(config, "attention_bias", false);
  requireField(config, "mlp_bias", false);
  requireField(config, "norm_topk_prob", true);
  requireField(config, "scoring_func", "sqrtsoftplus");
  requireField(config, "num_key_value_heads", 1);
  ignoreFields(config, [
    "num_nextn_predict_layers",
    // Read with the `quantization_config`.
    "expert_dtype",
    "partial_rotary_factor",
    "topk_method",
  ]);
  const field = (key: string, value: number, min = 1) =>
    integerField(config, key, { default: value, min });
  const fields = decoderFields(config, {
    layers: 43,
    vocabulary: 129280,
    embed: 4096,
    experts: 256,
    expertsPerToken: 6,
    ffn: 2048,
    epsilon: 1e-6,
    maxPositions: 1048576,
  }, { experts: "n_routed_experts", ffn: "moe_intermediate_size" });
  const heads = field("num_attention_heads", 64);
  const dim = field("head_dim", 512);
  const groups = field("o_groups", 8);
  requireMultiple(
    { name: "num_attention_heads", value: heads },
    { name: "o_groups", value: groups },
  );
  const ropeDim = field("qk_rope_head_dim", rotatedElements(config, dim));
  const indexDim = field("index_head_dim", 128);
  if (ropeDim % 2 !== 0 || ropeDim >= Math.min(dim, indexDim)) {
    throw fieldError("qk_rope_head_dim", ropeDim, "an even part of a head");
  }
  const hashedLayers = field("num_hash_layers", 3, 0);
  const hashType = layerTypes(
    config,
    ["hash_moe", "moe"],
    (layer) => layer < hashedLayers ? "hash_moe" : "moe",
    "mlp_layer_types",
  );
  const kinds = readKinds(config);
  const hashed = (layer: number) => hashType(layer) === "hash_moe";
  return {
    ...fields,
    heads,
    headDim: ropeDim,
    dim,
    ropeDim,
    queryLatent: field("q_lora_rank", 1024),
    groups,
    groupLatent: field("o_lora_rank", 1024),
    window: fixedWindowField(config, {
      layers: fields.layers,
      hasWindow: () => true,
      default: 128,
    }),
    indexHeads: field("index_n_heads", 64),
    indexDim,
    indexKeys: field("index_topk", 512),
    streams: field("hc_mult", 4),
    sinkhorn: field("hc_sinkhorn_iters", 20),
    hyperEpsilon: positiveField(config, "hc_eps", { default: 1e-6 }),
    sharedFfn: fields.ffn * field("n_shared_experts", 1),
    routedScale: positiveField(config, "routed_scaling_factor", {
      default: 1.5,
    }),
    limit: positiveField(config, "swiglu_limit", { default: 10 }),
    rates: readRates(config),
    kinds,
    hashed,
    rotary: {
      main: readFrequencies(config, "main", ropeDim),
      compress: readFrequencies(config, "compress", ropeDim),
    },
    kindOf: (layer) => ({
      experts: true,
      mixer: `${kinds(layer)}${hashed(layer) ? ", hash_moe" : ""}`,
    }),
  };
}

/** Returns the number of rotated elements of a head, from their fraction. */
function rotatedElements(config: Config, dim: number): number {
  const factor = config["partial_rotary_factor"];
  return typeof factor === "number" ? Math.round(dim * factor) : 64;
}

/** Reads the compression of each layer: by name, or by tokens per entry as published. */
function readKinds(config: Config): (layer: number) => Kind {
  const ratios = integersField(config, "compress_ratios");
  const known: { readonly [ratio: number]: Kind } = {
    0: KINDS[0],
    4: KINDS[1],
    128: KINDS[2],
  };
  const unknown = ratios?.find((ratio) => known[ratio] === undefined);
  if (unknown !== undefined) {
    throw fieldError("compress_ratios", ratios, "a list of 0, 4 and 128");
  }
  return layerTypes(
    config,
    KINDS,
    (layer) =>
      known[ratios?.[layer] ?? -1] ??
        (layer >= 2 && layer % 2 === 1 ? KINDS[1] : KINDS[2]),
  );
}

/** Reads the tokens per entry for each kind of layer. */
function readRates(config: Config): DeepseekV4Config["rates"] {
  const rates = objectField(config, "compress_rates") ?? {};
  const rate = (kind: Kind, key: string, value: number) =>
    integerField(rates, kind, {
      default: integerField(config, key, { default: value }),
    });
  return {
    sliding_attention: undefined,
    compressed_sparse_attention: rate(KINDS[1], "compress_rate_csa", 4),
    heavily_compressed_attention: rate(KINDS[2], "compress_rate_hca", 128),
  };
}

/**
 * Reads the frequencies of layers without compression, which are plain, or with it, which may be scaled. Cosines are
 * never scaled.
 */
function readFrequencies(
  config: Config,
  of: "main" | "compress",
  dim: number,
): Rotary {
  const all = objectField(config, "rope_parameters") ?? {};
  const scaling = objectField(config, "rope_scaling") ?? all;
  const theta = of === "main"
    ? positiveField(config, "rope_theta", { default: 10000 })
    : positiveField(config, "compress_rope_theta", { default: 160000 });
  const ofKind = objectField(all, of) ??
    (of === "main" ? {} : { ...scaling, rope_theta: theta });
  const rotary = readRotary({
    ...config,
    rope_theta: theta,
    rope_scaling: undefined,
    rope_parameters: { ...ofKind, partial_rotary_factor: 1 },
    partial_rotary_factor: 1,
  }, { dim, theta, interleaved: true });
  return { ...rotary, scale: 1 };
}

/** Builds the model of a configuration. */
function build(config: DeepseekV4Config, options: DecoderOptions): Model {
  const { streams, embed } = config;
  const compressions = Object.fromEntries(
    KINDS.map((kind) => [kind, compressionOf(config, kind, options)]),
  ) as { readonly [kind in Kind]: Compression };
  const { entries } = compressions.compressed_sparse_attention;
  const indexKeys = Math.min(config.indexKeys, entries);
  return decoderModel(config, {
    axes: {
      ...compressedAxes(config, indexKeys),
      ...hyperAxes(streams, embed),
    },
    names: {
      embedding: "embed.weight",
      layer: "layers",
      norm: "norm.weight",
      output: "head.weight",
    },
    begin: (m, { ids, rows }) => ({
      rows: openStreams(m, rows) as Tensor as Rows,
      layer(scope, x, layer) {
        const streams = x as Tensor as Streams;
        const kind = config.kinds(layer.index);
        const attended = connect(
          scope,
          streams,
          { ...config, name: "hc_attn" },
          (rows) =>
            attendCompressed(
              scope,
              layer.norm(scope, rows, "attn_norm.weight"),
              layer,
              { ...config, ...compressions[kind], indexKeys },
            ),
        );
        const fed = connect(
          scope,
          layer.pick(scope, attended),
          { ...config, name: "hc_ffn" },
          (rows) =>
            feed(scope, layer.norm(scope, rows, "ffn_norm.weight"), layer, {
              config,
              ids: layer.pick(scope, ids),
            }),
        );
        return fed as Tensor as Rows;
      },
      end: (x) => closeStreams(m, x as Tensor as Streams, config),
    }),
  }, options);
}

function compressionOf(
  { rates, rotary }: DeepseekV4Config,
  kind: Kind,
  { maxContext }: DecoderOptions,
): Compression {
  const ratio = rates[kind];
  return {
    ratio,
    rotary: ratio === undefined ? rotary.main : rotary.compress,
    indexed: kind === "compressed_sparse_attention",
    entries: Math.ceil(maxContext / (ratio ?? maxContext)),
  };
}

/** The block `ffn`: experts that the router or the token id chooses, and a shared expert. */
function feed(
  m: DecoderScope,
  rows: Rows,
  layer: Layer,
  { config, ids }: {
    readonly config: DeepseekV4Config;
    readonly ids: Tensor<"token", "i32">;
  },
): Rows {
  const { ffn, sharedFfn, limit, vocabulary } = config;
  const glu = <A extends string>(
    gate: Tensor<A, "f32">,
    up: Tensor<A, "f32">,
  ) =>
    swiglu(minimum(gate, limit), clamp(up, -limit, limit)) as Tensor<A, "f32">;
  return m.block("ffn", { ffn, tokenId: vocabulary }, (m) => {
    const byToken = () => {
      // Small integers are exact in f32, and ranks add the rows of f32 tables.
      const table = m.param("gate.tid2eid", "tokenId choice", { dtype: "i32" });
      return cast(embedding(cast(table, "f32"), ids, "tokenId"), "i32");
    };
    const routing = routeLayer(m, rows, layer, {
      topK: config.expertsPerToken,
      score: "sqrtSoftplus",
      normalize: "chosen",
      epsilon: 1e-20,
      scale: config.routedScale,
      ...config.hashed(layer.index)
        ? { choices: byToken() }
        : { bias: m.param("gate.bias", "expert") },
    });
    return add(
      experts(m, rows, routing, { names: NUMBERED, glu }),
      mlp(m, rows, {
        name: "shared_experts",
        ffn: sharedFfn,
        names: ["w1", "w3", "w2"],
        glu,
      }),
    );
  });
}
