/**
 * Manifold-constrained hyper-connections (arXiv 2512.24880): several residual streams. A block reads a weighted sum of
 * the streams. Its result is added to each stream with a weight, and a doubly stochastic matrix mixes the streams.
 */

import {
  add,
  concat,
  div,
  dot,
  merge,
  mul,
  rename,
  sigmoid,
  slice,
  softmax,
  split,
  sum,
  type Tensor,
  transpose,
} from "../compiler/mod.ts";
import type { DecoderScope, Rows } from "./decoder.ts";
import { plainNorm } from "./norms.ts";

/** Constants of hyper-connections. */
export interface HyperConnections {
  readonly streams: number;
  /** Sinkhorn-Knopp iterations, which make a matrix doubly stochastic. */
  readonly sinkhorn: number;
  readonly hyperEpsilon: number;
  readonly epsilon: number;
}

/**
 * Axes, in order: streams; streams with a block's result; target streams of a mix; target streams of a result; elements
 * of both; all weights of a mix; the mixing matrix; all streams of a token; three factors; one.
 */
export type HyperAxis =
  | "stream"
  | "streams"
  | "toStream"
  | "target"
  | "inner"
  | "mix"
  | "square"
  | "flat"
  | "three"
  | "one";

/** Returns their sizes for a number of streams. */
export function hyperAxes(
  n: number,
  embed: number,
): { readonly [axis in HyperAxis]: number } {
  return {
    stream: n,
    streams: n + 1,
    toStream: n,
    target: n,
    inner: embed,
    mix: (2 + n) * n,
    square: n * n,
    flat: n * embed,
    three: 3,
    one: 1,
  };
}

/** All streams of a token. */
export type Streams = Tensor<"token stream embed", "f32">;

type Scope = DecoderScope<HyperAxis>;

/** Normalizes all streams as one vector. */
function flatNorm(
  x: Streams,
  epsilon: number,
): Tensor<"token flat", "f32"> {
  return plainNorm(merge(x, "stream embed", "flat"), "flat", epsilon);
}

/** Returns one of the factors of a mix. */
function factor(m: Scope, name: string, i: number): Tensor<"", "f32"> {
  return sum(slice(m.param(name, "three"), "three", i, "one"), "one");
}

/** Returns equal streams: rows times a tensor of ones along the axis of streams. */
export function openStreams(m: Scope, rows: Rows): Streams {
  const ones = add(mul(m.param("hc_head_base", "stream"), 0), 1);
  const product = dot(
    split(rows, "embed", "one inner"),
    split(ones, "stream", "toStream one"),
    "one",
  );
  return named(transpose(product, "token toStream inner"));
}

/** Renames the axis of streams. */
function named(x: Tensor<"token toStream inner", "f32">): Streams {
  return rename(rename(x, "toStream", "stream"), "inner", "embed");
}

/** Connects a block to the streams. Its parameters begin with `name`. */
export function connect(
  m: Scope,
  x: Streams,
  { name, streams: n, sinkhorn, hyperEpsilon, epsilon }: HyperConnections & {
    readonly name: string;
  },
  block: (rows: Rows) => Rows,
): Streams {
  const mixing = dot(
    flatNorm(x, epsilon),
    m.param(`${name}_fn`, "mix flat"),
    "flat",
  );
  const base = m.param(`${name}_base`, "mix");
  const part = <A extends "stream" | "target" | "square">(
    start: number,
    axis: A,
    i: number,
  ) => {
    const named = axis as "stream";
    const y = mul(
      slice(mixing, "mix", start, named),
      factor(m, `${name}_scale`, i),
    );
    const sum = add(y, slice(base, "mix", start, named));
    return sum as Tensor as Tensor<`token ${A}`, "f32">;
  };
  const before = add(sigmoid(part(0, "stream", 0)), hyperEpsilon);
  const after = mul(sigmoid(part(n, "target", 1)), 2);
  const square = split(part(2 * n, "square", 2), "square", "stream toStream");
  const mix = doublyStochastic(square, sinkhorn, hyperEpsilon);
  const result = block(dot(before, x, "stream"));
  // The streams with the result as an additional one, each with its weights.
  const parts = concat(
    rename(x, "embed", "inner"),
    split(result, "embed", "one inner"),
    "stream",
    "streams",
  );
  const weights = concat(
    mix,
    split(after, "target", "one toStream"),
    "stream",
    "streams",
  );
  return named(dot(weights, parts, "streams"));
}

/** Applies a softmax to rows, then alternately divides columns and rows by their sums. Columns are first and last. */
function doublyStochastic(
  x: Tensor<"token stream toStream", "f32">,
  iterations: number,
  epsilon: number,
): Tensor<"token stream toStream", "f32"> {
  const columns = (x: Tensor<"token stream toStream", "f32">) =>
    div(x, add(sum(x, "stream"), epsilon));
  let c = columns(add(softmax(x, "toStream"), epsilon));
  for (let i = 1; i < iterations; i++) {
    c = columns(div(c, add(sum(c, "toStream"), epsilon)));
  }
  return c;
}

/** Returns the weighted sum of streams for the last norm. */
export function closeStreams(
  m: Scope,
  x: Streams,
  { hyperEpsilon, epsilon }: HyperConnections,
): Rows {
  const scale = sum(m.param("hc_head_scale", "one"), "one");
  const products = dot(
    flatNorm(x, epsilon),
    m.param("hc_head_fn", "stream flat"),
    "flat",
  );
  const scores = add(mul(products, scale), m.param("hc_head_base", "stream"));
  const weights = add(sigmoid(scores), hyperEpsilon);
  return dot(weights as Tensor as Tensor<"token stream", "f32">, x, "stream");
}
