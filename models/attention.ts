/** Grouped-query attention as most families use it: projections, heads, cache and output. */

import {
  add,
  attention,
  cachedAttention,
  dot,
  merge,
  mul,
  rmsNorm,
  rope,
  sigmoid,
  split,
  type Tensor,
} from "../compiler/mod.ts";
import type { DecoderScope, Layer, Rows } from "./decoder.ts";
import type { Rotary } from "./rotary.ts";

/** Queries, keys and values of all heads in one row. */
export interface Projections {
  readonly q: Tensor<"token query", "f32">;
  readonly k: Tensor<"token keyValue", "f32">;
  readonly v: Tensor<"token keyValue", "f32">;
}

/** Queries, keys and values per head. */
export interface Heads {
  readonly q: Tensor<"token head headDim", "f32">;
  readonly k: Tensor<"token kvHead headDim", "f32">;
  readonly v: Tensor<"token kvHead headDim", "f32">;
}

/**
 * Axis sizes of grouped-query attention: heads of keys, one head, and all heads of a projection. Each projection has
 * its own axis name, even if two sizes are equal, because one axis has one meaning.
 */
export type GroupedAxes = {
  readonly [axis in "kvHead" | "headDim" | "query" | "keyValue"]: number;
};

/** The cache of an attention block, including the keys and values of the current tokens. */
export interface Written {
  readonly keys: Tensor<"sequence context kvHead headDim", "f32">;
  readonly values: Tensor<"sequence context kvHead headDim", "f32">;
}

/** The scope of an attention block. */
export type AttentionScope = DecoderScope<keyof GroupedAxes>;

/** Returns the axis sizes of a configuration. */
export function groupedAxes(
  c: {
    readonly heads: number;
    readonly kvHeads: number;
    readonly headDim: number;
  },
): GroupedAxes {
  return {
    kvHead: c.kvHeads,
    headDim: c.headDim,
    query: c.heads * c.headDim,
    keyValue: c.kvHeads * c.headDim,
  };
}

/** `q_proj`, `k_proj` and `v_proj`, with or without biases. */
export function project(
  m: AttentionScope,
  rows: Rows,
  { bias = false, keysAsValues = false }: {
    readonly bias?: boolean;
    /** There is no `v_proj`: values are computed from the key projection. */
    readonly keysAsValues?: boolean;
  } = {},
): Projections {
  const keyValue = (name: string) => {
    const y = dot(rows, m.param(`${name}.weight`, "keyValue embed"), "embed");
    return bias ? add(y, m.param(`${name}.bias`, "keyValue")) : y;
  };
  const q = dot(rows, m.param("q_proj.weight", "query embed"), "embed");
  return {
    q: bias ? add(q, m.param("q_proj.bias", "query")) : q,
    k: keyValue("k_proj"),
    v: keyValue(keysAsValues ? "k_proj" : "v_proj"),
  };
}

/** Splits rows into an axis of heads and an axis of their elements. */
export function splitHeads({ q, k, v }: Projections): Heads {
  return {
    q: split(q, "query", "head headDim"),
    k: split(k, "keyValue", "kvHead headDim"),
    v: split(v, "keyValue", "kvHead headDim"),
  };
}

/** Projects rows and splits them into heads. */
export function projectHeads(
  m: AttentionScope,
  rows: Rows,
  options: { readonly bias?: boolean } = {},
): Heads {
  return splitHeads(project(m, rows, options));
}

/** Normalizes queries and keys over all heads, with the gains `q_norm` and `k_norm`. */
export function normAllHeads(
  m: AttentionScope,
  { q, k, v }: Projections,
  options: { readonly epsilon: number },
): Projections {
  const qGain = m.param("q_norm.weight", "query");
  const kGain = m.param("k_norm.weight", "keyValue");
  return {
    q: rmsNorm(q, qGain, "query", options),
    k: rmsNorm(k, kGain, "keyValue", options),
    v,
  };
}

/** Normalizes queries and keys per head. `names` are the gains; `centred` gains are stored minus 1. */
export function normHeads(
  m: AttentionScope,
  { q, k, v }: Heads,
  { epsilon, names = ["q_norm", "k_norm"], centred = false }: {
    readonly epsilon: number;
    readonly names?: readonly [q: string, k: string];
    readonly centred?: boolean;
  },
): Heads {
  const gain = (name: string) => {
    const stored = m.param(`${name}.weight`, "headDim");
    return centred ? add(stored, 1) : stored;
  };
  return {
    q: rmsNorm(q, gain(names[0]), "headDim", { epsilon }),
    k: rmsNorm(k, gain(names[1]), "headDim", { epsilon }),
    v,
  };
}

/** Rotates queries and keys by their positions. */
export function rotate(heads: Heads, rotary: Rotary, layer: Layer): Heads {
  const options = { position: layer.position, ...rotary };
  return {
    q: rope(heads.q, "headDim", options),
    k: rope(heads.k, "headDim", options),
    v: heads.v,
  };
}

/**
 * Attends over a cache that another layer wrote, then applies `o_proj`. Queries use `q_proj`, the norm `q_norm` per
 * head, and rotation.
 */
export function attendWritten(
  m: AttentionScope,
  rows: Rows,
  layer: Layer,
  { cache: { keys, values }, epsilon, rotary, window, scale }: {
    readonly cache: Written;
    readonly epsilon: number;
    readonly rotary: Rotary;
    readonly window?: number | undefined;
    readonly scale: number;
  },
): Rows {
  const { position, sequence } = layer;
  const projected = dot(rows, m.param("q_proj.weight", "query embed"), "embed");
  const gain = m.param("q_norm.weight", "headDim");
  const heads = split(projected, "query", "head headDim");
  const normed = rmsNorm(heads, gain, "headDim", { epsilon });
  const y = cachedAttention(rope(normed, "headDim", { position, ...rotary }), {
    keys,
    values,
    sequence,
    position,
    scale,
    ...window === undefined ? {} : { window },
  });
  const output = m.param("o_proj.weight", "embed query");
  return dot(merge(y, "head headDim", "query"), output, "query");
}

/** Attends over the cache of the layer's block, merges the heads and applies `o_proj`. */
export function attendHeads(
  m: AttentionScope,
  { q, k, v }: Heads,
  layer: Layer,
  options: {
    readonly window?: number | undefined;
    readonly chunk?: number;
    /** The positions that a token attends to, or blocks of `selectedBlock` positions. */
    readonly selected?: Tensor<string, "i32">;
    readonly selectedBlock?: number;
    readonly sinks?: Tensor<"head", "f32">;
    readonly scale?: number;
    readonly bias?: boolean;
    /** Its `activation` multiplies the result of the heads. Default: `sigmoid`. */
    readonly gate?: Tensor<"token head headDim" | "token head", "f32">;
    readonly activation?: <A extends string>(
      gate: Tensor<A, "f32">,
    ) => Tensor<A, "f32">;
    /** Receives the cache, for other layers that attend over it. */
    readonly written?: (cache: Written) => void;
    /** Name of the output matrix. Default: "o_proj". */
    readonly output?: string;
    /** Block of the output matrix. Default: "self_attn". */
    readonly block?: string;
  } = {},
): Rows {
  const { window, bias = false, gate, output = "o_proj", ...more } = options;
  const { block = "self_attn", written, activation = sigmoid, ...rest } = more;
  const cache = "sequence context kvHead headDim";
  const { y, keys, values } = attention(q, {
    key: k,
    value: v,
    keys: m.state("keys", cache),
    values: m.state("values", cache),
    sequence: layer.sequence,
    position: layer.position,
    ...window === undefined ? {} : { window },
    ...rest,
  });
  layer.keep(`${layer.name}.${block}.keys`, keys);
  layer.keep(`${layer.name}.${block}.values`, values);
  written?.({ keys, values });
  const made = gate ? mul(y, activation(gate)) : y;
  const rows = dot(
    merge(made, "head headDim", "query"),
    m.param(`${output}.weight`, "embed query"),
    "query",
  );
  return bias ? add(rows, m.param(`${output}.bias`, "embed")) : rows;
}
