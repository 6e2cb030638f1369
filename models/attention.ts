/** Grouped-query attention as most families have it: projections, heads, cache, output. */

import {
  add,
  attention,
  dot,
  merge,
  rope,
  split,
  type Tensor,
} from "../compiler/mod.ts";
import type { DecoderScope, Layer, Rows } from "./decoder.ts";
import type { Rotary } from "./rotary.ts";

/** Queries, keys and values of all heads together. */
export interface Projections {
  readonly q: Tensor<"token query", "f32">;
  readonly k: Tensor<"token keyValue", "f32">;
  readonly v: Tensor<"token keyValue", "f32">;
}

/** Queries, keys and values by head. */
export interface Heads {
  readonly q: Tensor<"token head headDim", "f32">;
  readonly k: Tensor<"token kvHead headDim", "f32">;
  readonly v: Tensor<"token kvHead headDim", "f32">;
}

/** Sizes of the axes of grouped-query attention. */
export function groupedAxes(
  c: {
    readonly heads: number;
    readonly kvHeads: number;
    readonly headDim: number;
  },
): { kvHead: number; headDim: number; query: number; keyValue: number } {
  return {
    kvHead: c.kvHeads,
    headDim: c.headDim,
    query: c.heads * c.headDim,
    keyValue: c.kvHeads * c.headDim,
  };
}

/** `q_proj`, `k_proj` and `v_proj`, with or without biases. */
export function project(
  m: DecoderScope,
  rows: Rows,
  layer: Layer,
  { bias = false }: { readonly bias?: boolean } = {},
): Projections {
  const at = `${layer.name}.self_attn`;
  const keyValue = (name: string) => {
    const y = dot(
      rows,
      m.param(`${at}.${name}.weight`, "keyValue embed"),
      "embed",
    );
    return bias ? add(y, m.param(`${at}.${name}.bias`, "keyValue")) : y;
  };
  const q = dot(rows, m.param(`${at}.q_proj.weight`, "query embed"), "embed");
  return {
    q: bias ? add(q, m.param(`${at}.q_proj.bias`, "query")) : q,
    k: keyValue("k_proj"),
    v: keyValue("v_proj"),
  };
}

/** One axis of heads and one of their elements. */
export function splitHeads({ q, k, v }: Projections): Heads {
  return {
    q: split(q, "query", "head headDim"),
    k: split(k, "keyValue", "kvHead headDim"),
    v: split(v, "keyValue", "kvHead headDim"),
  };
}

/** Project rows, head by head. */
export function projectHeads(
  m: DecoderScope,
  rows: Rows,
  layer: Layer,
  options: { readonly bias?: boolean } = {},
): Heads {
  return splitHeads(project(m, rows, layer, options));
}

/** Turn queries and keys by their positions. */
export function turn(heads: Heads, rotary: Rotary, layer: Layer): Heads {
  const options = { position: layer.position, ...rotary };
  return {
    q: rope(heads.q, "headDim", options),
    k: rope(heads.k, "headDim", options),
    v: heads.v,
  };
}

/** Attend over the layer's cache, and bring all heads back to a row by `o_proj`. */
export function attendHeads(
  m: DecoderScope,
  { q, k, v }: Heads,
  layer: Layer,
  options: {
    readonly window?: number | undefined;
    readonly chunk?: number;
    readonly sinks?: Tensor<"head", "f32">;
    readonly scale?: number;
    readonly bias?: boolean;
  } = {},
): Rows {
  const { window, bias = false, ...rest } = options;
  const cache = "sequence context kvHead headDim";
  const { y, keys, values } = attention(q, {
    key: k,
    value: v,
    keys: m.state(`${layer.name}.keys`, cache),
    values: m.state(`${layer.name}.values`, cache),
    sequence: layer.sequence,
    position: layer.position,
    ...window === undefined ? {} : { window },
    ...rest,
  });
  layer.keep(`${layer.name}.keys`, keys);
  layer.keep(`${layer.name}.values`, values);
  const at = `${layer.name}.self_attn.o_proj`;
  const rows = dot(
    merge(y, "head headDim", "query"),
    m.param(`${at}.weight`, "embed query"),
    "query",
  );
  return bias ? add(rows, m.param(`${at}.bias`, "embed")) : rows;
}
