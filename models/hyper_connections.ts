/**
 * Manifold-constrained hyper-connections (arXiv 2512.24880): several residual streams. A block reads a weighted sum of them; its
 * result is added to each with a weight, and the streams are mixed by a doubly stochastic matrix.
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
  /** Iterations of Sinkhorn and Knopp, which make a matrix doubly stochastic. */
  readonly sinkhorn: number;
  readonly hyperEpsilon: number;
  readonly epsilon: number;
}

/**
 * Axes: streams; streams, and the result of a block; streams that a mix goes to, and that a result does; elements of both;
 * all weights of a mix; its matrix; all streams of a token; three factors; one.
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

/** Their sizes for so many streams. */
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

/** All streams as one vector, normed. */
function flatNorm(
  x: Streams,
  epsilon: number,
): Tensor<"token flat", "f32"> {
  return plainNorm(merge(x, "stream embed", "flat"), "flat", epsilon);
}

/** One of the factors of a mix. */
function factor(m: Scope, name: string, i: number): Tensor<"", "f32"> {
  return sum(slice(m.param(name, "three"), "three", i, "one"), "one");
}

/** Equal streams: rows times 1 for each, of a tensor that has their axis. */
export function openStreams(m: Scope, rows: Rows): Streams {
  const ones = add(mul(m.param("hc_head_base", "stream"), 0), 1);
  const product = dot(
    split(rows, "embed", "one inner"),
    split(ones, "stream", "toStream one"),
    "one",
  );
  return named(transpose(product, "token toStream inner"));
}

/** Streams by their own names. */
function named(x: Tensor<"token toStream inner", "f32">): Streams {
  return rename(rename(x, "toStream", "stream"), "inner", "embed");
}

/** A block between the streams; its parameters begin with `name`. */
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
  // The streams and the result as one more, each with its weights.
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

/** A softmax of rows, then columns and rows divided by their sums in turn, columns first and last. */
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

/** The weighted sum of streams that the last norm takes. */
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
