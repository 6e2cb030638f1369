/**
 * Multi-head latent attention of DeepSeek (arXiv 2405.04434, 2.1). Keys and values of all heads are computed from one
 * short vector per token. The cache holds only this vector and a key part that carries the position. The key and value
 * matrices are applied to queries and results instead, so the cache is never expanded.
 */

import {
  concat,
  dot,
  latentAttention,
  merge,
  mul,
  rmsNorm,
  rope,
  sigmoid,
  slice,
  split,
  type Tensor,
} from "../compiler/mod.ts";
import {
  anyField,
  type Config,
  integerField,
  optionalField,
  positiveField,
  requireField,
} from "./config.ts";
import { type DecoderScope, type Layer, type Rows, times } from "./decoder.ts";
import type { Selected } from "./indexer.ts";
import {
  readRotary,
  ropeScaling,
  type Rotary,
  yarnMagnitude,
} from "./rotary.ts";

/** Epsilon of the norms inside the attention, independent of the configuration. */
const EPSILON = 1e-6;

/** Sizes and constants of latent attention. `headDim` of the decoder is the rotated part of a head. */
export interface LatentFields {
  readonly heads: number;
  readonly headDim: number;
  /** Unrotated elements of a head, and elements of its value. */
  readonly nope: number;
  readonly value: number;
  /**
   * Sizes of the latent vectors of keys and values, and of queries. Undefined for queries: they are computed from the
   * row itself.
   */
  readonly latent: number;
  readonly queryLatent: number | undefined;
  readonly rotary: Rotary;
  /** Factor of scores. */
  readonly scale: number;
  /** Factors of queries and of normalized latents. Default: 1. */
  readonly queryScale?: number;
  readonly latentScale?: number;
}

/** A family's defaults. Missing ones are those of DeepSeek. */
export interface LatentDefaults {
  readonly heads: number;
  readonly interleaved: boolean;
  readonly nope?: number;
  readonly value?: number;
  readonly latent?: number;
  /** `null`: queries are not compressed. */
  readonly queryLatent?: number | null;
  /** Base of the rotary frequencies. */
  readonly theta?: number;
}

/** Reads the fields of latent attention. */
export function latentFields(
  config: Config,
  {
    heads,
    interleaved,
    nope: plain,
    value,
    latent,
    queryLatent,
    theta = 10000,
  }: LatentDefaults,
): LatentFields {
  requireField(config, "attention_bias", false);
  const headDim = integerField(config, "qk_rope_head_dim", { default: 64 });
  const nope = integerField(config, "qk_nope_head_dim", {
    default: plain ?? 128,
  });
  const rank = anyField(config, "q_lora_rank");
  return {
    heads: integerField(config, "num_attention_heads", { default: heads }),
    headDim,
    nope,
    value: integerField(config, "v_head_dim", { default: value ?? 128 }),
    latent: integerField(config, "kv_lora_rank", { default: latent ?? 512 }),
    // If it is null, queries are not compressed.
    queryLatent: (rank === undefined ? queryLatent : rank) === null
      ? undefined
      : integerField(config, "q_lora_rank", { default: queryLatent ?? 1536 }),
    rotary: readRotary(config, { dim: headDim, theta, interleaved }),
    scale: stretch(config) ** 2 / Math.sqrt(nope + headDim),
  };
}

/**
 * Returns the factor of scores with YaRN, from `mscale_all_dim`. DeepSeek's code always applies it; transformers 4.55.0
 * applies it only for V3.
 */
function stretch(config: Config): number {
  const scaling = ropeScaling(config);
  const weight = optionalField(scaling, "mscale_all_dim");
  if (weight === undefined) return 1;
  return yarnMagnitude(positiveField(scaling, "factor"), weight);
}

/**
 * Axis sizes of latent attention: the latent vector of keys and values; of a head the rotated part, the unrotated part,
 * both together, and the value; a key and value of a head; a cached vector; and all heads together.
 */
export type LatentAxes = {
  readonly [
    axis in
      | "latent"
      | "rope"
      | "nope"
      | "headQuery"
      | "value"
      | "nopeValue"
      | "cached"
      | "queries"
      | "nopeValues"
      | "values"
  ]: number;
};

/** Returns the axis sizes of a configuration. */
export function latentAxes(c: LatentFields): LatentAxes {
  return {
    latent: c.latent,
    rope: c.headDim,
    nope: c.nope,
    headQuery: c.nope + c.headDim,
    value: c.value,
    nopeValue: c.nope + c.value,
    cached: c.latent + c.headDim,
    queries: c.heads * (c.nope + c.headDim),
    nopeValues: c.heads * (c.nope + c.value),
    values: c.heads * c.value,
  };
}

/** Latent attention and its block. Default: `self_attn`. */
export interface LatentBlock extends LatentFields {
  readonly block?: string;
  /** Rotate queries and keys by their positions. Default: true. */
  readonly rotated?: boolean;
  /** The matrix whose sigmoid multiplies the values of all heads: each value, or each head. Default: none. */
  readonly gate?: { readonly name: string; readonly of: "values" | "head" };
  /** The output matrix. Default: `o_proj`. */
  readonly output?: string;
  /** Factor of the queries of each token. Default: 1. */
  readonly growth?: Tensor<"token", "f32">;
  /** Chooses the keys that tokens attend to. Default: all keys. */
  readonly select?: (
    m: DecoderScope<"queryLatent">,
    short: Tensor<"token queryLatent", "f32">,
  ) => Selected;
}

/** The latent attention block of a layer. */
export function attendLatent(
  m: DecoderScope<keyof LatentAxes>,
  rows: Rows,
  layer: Layer,
  c: LatentBlock,
): Rows {
  const { block = "self_attn", queryScale = 1, growth } = c;
  const { all, selected } = queries(m, rows, { ...c, block });
  const scaled = times(all, queryScale);
  const query = growth ? mul(scaled, growth) : scaled;
  return m.block(
    block,
    {},
    (m) => attend(m, { rows, query, selected, layer }, c),
  );
}

function attend(
  m: DecoderScope<keyof LatentAxes>,
  { rows, query, selected, layer }: {
    readonly rows: Rows;
    readonly query: Queries["all"];
    readonly selected: Selected | undefined;
    readonly layer: Layer;
  },
  c: LatentBlock,
): Rows {
  const { block = "self_attn", output = "o_proj", gate } = c;
  const { latentScale = 1, rotated = true } = c;
  const rotation = rotated && { position: layer.position, ...c.rotary };

  // The cache holds the normalized latent and a rotated key part that all heads share.
  const down = m.param("kv_a_proj_with_mqa.weight", "cached embed");
  const compressed = dot(rows, down, "embed");
  const normed = rmsNorm(
    slice(compressed, "cached", 0, "latent"),
    m.param("kv_a_layernorm.weight", "latent"),
    "latent",
    { epsilon: EPSILON },
  );
  const latent = times(normed, latentScale);
  const shared = slice(compressed, "cached", c.latent, "rope");
  const key = concat(
    latent,
    rotation ? rope(shared, "rope", rotation) : shared,
    "latent",
    "cached",
  );

  // The matrices that compute keys (without positions) and values from the latent, per head.
  const up = split(
    m.param("kv_b_proj.weight", "nopeValues latent"),
    "nopeValues",
    "head nopeValue",
  );
  const toKey = slice(up, "nopeValue", 0, "nope");
  const toValue = slice(up, "nopeValue", c.nope, "value");

  const q = split(query, "queries", "head headQuery");
  const nope = dot(slice(q, "headQuery", 0, "nope"), toKey, "nope");
  const tail = slice(q, "headQuery", c.nope, "rope");
  const end = rotation ? rope(tail, "rope", rotation) : tail;
  const { y, keys } = latentAttention(
    concat(nope, end, "latent", "cached"),
    {
      key,
      keys: m.state("latents", "sequence context cached"),
      value: "latent",
      sequence: layer.sequence,
      position: layer.position,
      scale: c.scale,
      ...selected ? { selected } : {},
    },
  );
  layer.keep(`${layer.name}.${block}.latents`, keys);
  const made = dot(y, toValue, "latent");
  const ofHeads = gate?.of === "head"
    ? mul(
      made,
      sigmoid(dot(rows, m.param(`${gate.name}.weight`, "head embed"), "embed")),
    )
    : made;
  const merged = merge(ofHeads, "head value", "values");
  const values = gate?.of === "values"
    ? mul(
      merged,
      sigmoid(
        dot(rows, m.param(`${gate.name}.weight`, "values embed"), "embed"),
      ),
    )
    : merged;
  return dot(values, m.param(`${output}.weight`, "embed values"), "values");
}

/** Queries of all heads, and the chosen keys if there is a choice. */
interface Queries {
  readonly all: Tensor<"token queries", "f32">;
  readonly selected: Selected | undefined;
}

/** Computes queries from the row itself, or through a latent vector. */
function queries(
  m: DecoderScope<keyof LatentAxes>,
  rows: Rows,
  { queryLatent, block, select }: LatentBlock & { readonly block: string },
): Queries {
  if (queryLatent === undefined) {
    const all = m.block(
      block,
      {},
      (m) => dot(rows, m.param("q_proj.weight", "queries embed"), "embed"),
    );
    return { all, selected: undefined };
  }
  let selected: Selected | undefined;
  const all = m.block(block, { queryLatent }, (m) => {
    const down = m.param("q_a_proj.weight", "queryLatent embed");
    const short = rmsNorm(
      dot(rows, down, "embed"),
      m.param("q_a_layernorm.weight", "queryLatent"),
      "queryLatent",
      { epsilon: EPSILON },
    );
    const up = m.param("q_b_proj.weight", "queries queryLatent");
    selected = select?.(m, short);
    return dot(short, up, "queryLatent");
  });
  return { all, selected };
}
