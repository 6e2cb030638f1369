/**
 * The attention of DeepSeek-V4. All heads share one key, which is also the value. Tokens see a window of positions.
 * They also see compressed entries, each of several tokens: all entries, or those that an indexer chooses.
 */

import {
  add,
  attention,
  cacheRows,
  cast,
  concat,
  conv1d,
  div,
  dot,
  embedding,
  exp,
  latentAttention,
  log,
  maximum,
  merge,
  minimum,
  mul,
  rename,
  rmsNorm,
  rope,
  selectKeys,
  slice,
  split,
  sub,
  type Tensor,
  transpose,
} from "../compiler/mod.ts";
import type { DecoderScope, Layer, Rows } from "./decoder.ts";
import { plainNorm } from "./norms.ts";
import type { Rotary } from "./rotary.ts";

/** Sizes and constants. */
export interface CompressedAttention {
  readonly heads: number;
  readonly dim: number;
  /** Rotated elements at the end of a head. */
  readonly ropeDim: number;
  readonly queryLatent: number;
  readonly groups: number;
  readonly groupLatent: number;
  readonly window: number;
  readonly epsilon: number;
  readonly indexHeads: number;
  readonly indexDim: number;
  readonly indexKeys: number;
}

/** The compression and the rotation of a layer. */
export interface Compression {
  readonly rotary: Rotary;
  /** Tokens per entry. Undefined: no entries. */
  readonly ratio: number | undefined;
  /** Entries overlap, and an indexer chooses among them. */
  readonly indexed: boolean;
  /** Maximum number of entries of a sequence. */
  readonly entries: number;
}

/** Axes that all layers share. */
export type CompressedAxis =
  | "headDim"
  | "value"
  | "rope"
  | "nope"
  | "queryLatent"
  | "queries"
  | "values"
  | "group"
  | "groupValues"
  | "groupLatent"
  | "groupLatents"
  | "selected"
  | "one";

/** Returns their sizes. */
export function compressedAxes(
  c: CompressedAttention,
  selected: number,
): { readonly [axis in CompressedAxis]: number } {
  return {
    headDim: c.dim,
    value: c.dim,
    rope: c.ropeDim,
    nope: c.dim - c.ropeDim,
    queryLatent: c.queryLatent,
    queries: c.heads * c.dim,
    values: c.heads * c.dim,
    group: c.groups,
    groupValues: c.heads * c.dim / c.groups,
    groupLatent: c.groupLatent,
    groupLatents: c.groups * c.groupLatent,
    selected,
    one: 1,
  };
}

type Scope = DecoderScope<CompressedAxis>;
type Positions = Tensor<"token", "i32">;

/** Rotates the last elements of an axis. `nope` is the axis of the other elements. */
function rotateLast<A extends string>(
  x: Tensor<A, "f32">,
  axis: string,
  { nope, start, position, rotary }: {
    readonly nope: string;
    readonly start: number;
    readonly position: Positions;
    readonly rotary: Rotary;
  },
): Tensor<A, "f32"> {
  const any = x as Tensor as Tensor<"token axis", "f32">;
  const of = axis as "axis";
  const rest = slice(any, of, 0, nope as "nope");
  const last = rope(slice(any, of, start, "rope"), "rope", {
    position,
    ...rotary,
  });
  const all = concat(rest, last, nope as "nope", axis as "whole");
  return all as Tensor as Tensor<A, "f32">;
}

/** The attention block `attn`. */
export function attendCompressed(
  scope: Scope,
  rows: Rows,
  layer: Layer,
  c: CompressedAttention & Compression,
): Rows {
  const { position, sequence } = layer;
  const { epsilon, rotary, ratio, dim, ropeDim } = c;
  const turn = { nope: "nope", start: dim - ropeDim, position, rotary };
  const back = {
    ...turn,
    rotary: {
      ...rotary,
      inverseFrequencies: rotary.inverseFrequencies.map((f) => -f),
    },
  };
  return scope.block("attn", { entry: c.entries }, (m) => {
    const short = rmsNorm(
      dot(rows, m.param("wq_a.weight", "queryLatent embed"), "embed"),
      m.param("q_norm.weight", "queryLatent"),
      "queryLatent",
      { epsilon },
    );
    const up = m.param("wq_b.weight", "queries queryLatent");
    const heads = split(
      dot(short, up, "queryLatent"),
      "queries",
      "head headDim",
    );
    const q = rotateLast(plainNorm(heads, "headDim", epsilon), "headDim", turn);
    const key = rmsNorm(
      dot(rows, m.param("wkv.weight", "headDim embed"), "embed"),
      m.param("kv_norm.weight", "headDim"),
      "headDim",
      { epsilon },
    );
    const { y, keys } = latentAttention(q, {
      key: rotateLast(key, "headDim", turn),
      keys: m.state("keys", "sequence context headDim"),
      value: "value",
      sequence,
      position,
      window: c.window,
      sinks: m.param("attn_sink", "head"),
      scale: dim ** -0.5,
      ...ratio === undefined
        ? {}
        : entriesOf(m, { rows, short, layer, ratio }, c),
    });
    layer.keep(`${layer.name}.attn.keys`, keys);
    return project(m, rotateLast(y, "value", back));
  });
}

/** Projects groups of heads, each with its own matrix. */
function project(
  m: Scope,
  y: Tensor<"token head value", "f32">,
): Rows {
  const apart = split(
    merge(y, "head value", "values"),
    "values",
    "group groupValues",
  );
  const inward = split(
    m.param("wo_a.weight", "groupLatents groupValues"),
    "groupLatents",
    "group groupLatent",
  );
  const made = dot(apart, inward, "groupValues");
  return dot(
    merge(made, "group groupLatent", "groupLatents"),
    m.param("wo_b.weight", "embed groupLatents"),
    "groupLatents",
  );
}

/** Returns the entries of a layer, and the mask of the entries that tokens see. */
function entriesOf(
  m: DecoderScope<CompressedAxis | "entry">,
  { rows, short, layer, ratio }: {
    readonly rows: Rows;
    readonly short: Tensor<"token queryLatent", "f32">;
    readonly layer: Layer;
    readonly ratio: number;
  },
  c: CompressedAttention & Compression,
) {
  const { sequence, position } = layer;
  // The number of windows completed up to this token, whether the token completes one, and its current window.
  const complete = div(add(position, 1), ratio);
  const completes = maximum(sub(mul(complete, ratio), position), 0);
  const window = div(position, ratio);
  const positions = {
    write: sub(mul(completes, complete), 1),
    last: sub(complete, 1),
    first: mul(window, ratio),
    window,
    offset: sub(position, mul(window, ratio)),
  };
  const entries = cacheRows(
    m.state("entries", "sequence entry headDim"),
    compress(m, { rows, layer, ratio, positions, to: "headDim" }, c),
    { sequence, position: positions.write },
  );
  layer.keep(`${layer.name}.attn.entries`, entries);
  if (!c.indexed) return { entries, last: positions.last };
  const { indexHeads, indexDim, ropeDim, rotary } = c;
  const axes = {
    indexHead: indexHeads,
    indexDim,
    indexNope: indexDim - ropeDim,
    indexAll: indexHeads * indexDim,
  };
  const selected = m.block("indexer", axes, (m) => {
    const up = m.param("wq_b.weight", "indexAll queryLatent");
    const query = rotateLast(
      split(dot(short, up, "queryLatent"), "indexAll", "indexHead indexDim"),
      "indexDim",
      { nope: "indexNope", start: indexDim - ropeDim, position, rotary },
    );
    const weights = m.param("weights_proj.weight", "indexHead embed");
    const chosen = selectKeys(query, {
      key: compress(m, { rows, layer, ratio, positions, to: "indexDim" }, {
        ...c,
        dim: indexDim,
      }) as Tensor as Tensor<"token indexDim", "f32">,
      keys: m.state("keys", "sequence entry indexDim"),
      weights: mul(
        dot(rows, weights, "embed"),
        (indexHeads * indexDim) ** -0.5,
      ),
      sequence,
      position: positions.write,
      last: positions.last,
      k: c.indexKeys,
    });
    layer.keep(`${layer.name}.attn.indexer.keys`, chosen.keys);
    return chosen.selected;
  });
  return { entries, selected };
}

/**
 * Computes the entry of each token's window up to that token. An entry is a weighted sum of the tokens' values, with
 * softmax weights per element. With overlap, the sum includes half of the elements of the previous window. The entry is
 * then normalized and rotated by the first position of its window.
 */
function compress(
  scope: DecoderScope<CompressedAxis | "entry">,
  { rows, layer, ratio, positions, to }: {
    readonly rows: Rows;
    readonly layer: Layer;
    readonly ratio: number;
    readonly positions: {
      readonly first: Positions;
      readonly window: Positions;
      readonly offset: Positions;
    };
    readonly to: string;
  },
  { dim, ropeDim, rotary, epsilon, indexed }: CompressedAttention & Compression,
): Tensor<"token headDim", "f32"> {
  const { sequence, position } = layer;
  const columns = indexed ? 2 * dim : dim;
  const prefix = to === "headDim" ? "attn" : "attn.indexer";
  const axes = {
    columns,
    pool: dim,
    cell: dim,
    poolNope: dim - ropeDim,
    offset: ratio,
    slot: ratio,
    tap: ratio + 1,
  };
  const made = scope.block("compressor", axes, (m) => {
    const inward = (name: string) =>
      dot(rows, m.param(`${name}.weight`, "columns embed"), "embed");
    const ape = m.param("ape", "offset columns");
    const gates = add(
      inward("wgate"),
      embedding(ape, positions.offset, "offset"),
    );
    const values = inward("wkv");
    const half = (x: typeof gates, i: number) =>
      indexed
        ? slice(x, "columns", i * dim, "pool")
        : rename(x, "columns", "pool");
    let [gate, value] = [half(gates, 1), half(values, 1)];
    if (indexed) {
      // Only the first tap: the value of an earlier token at that distance.
      const none = mul(transpose(ape, "columns offset"), 0);
      const one = add(slice(none, "offset", 0, "one"), 1);
      const { y, state } = conv1d(
        concat(half(gates, 0), half(values, 0), "pool", "columns"),
        concat(one, none, "one", "tap"),
        "tap",
        {
          state: m.state("inputs", "sequence slot columns"),
          sequence,
          position,
        },
      );
      layer.keep(`${layer.name}.${prefix}.compressor.inputs`, state);
      // The first window has no previous window.
      const missing = sub(cast(minimum(positions.window, 1), "f32"), 1);
      const before = add(half(y, 0), mul(missing, 1e30));
      const top = maximum(before, gate);
      const [a, b] = [exp(sub(before, top)), exp(sub(gate, top))];
      const both = add(a, b);
      value = div(add(mul(a, half(y, 1)), mul(b, value)), both);
      gate = add(top, log(both));
    }
    const alone = (x: typeof gate) => split(x, "pool", "cell one");
    const { y, keys: savedGates, values: savedValues } = attention(
      add(mul(alone(value), 0), 1),
      {
        key: alone(gate),
        value: alone(value),
        keys: m.state("gates", "sequence context cell one"),
        values: m.state("values", "sequence context cell one"),
        sequence,
        position,
        chunk: ratio,
        scale: 1,
      },
    );
    layer.keep(`${layer.name}.${prefix}.compressor.gates`, savedGates);
    layer.keep(`${layer.name}.${prefix}.compressor.values`, savedValues);
    const normed = rmsNorm(
      merge(y, "cell one", "pool"),
      m.param("norm.weight", "pool"),
      "pool",
      { epsilon },
    );
    const rotated = rotateLast(normed, "pool", {
      nope: "poolNope",
      start: dim - ropeDim,
      position: positions.first,
      rotary,
    });
    return rename(rotated, "pool", to as "headDim");
  });
  return made;
}
