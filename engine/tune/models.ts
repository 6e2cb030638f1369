/** Small models of one kernel each, on which a tuner times candidates. */

import {
  attention,
  combine,
  dispatch,
  dot,
  map,
  type MatmulShape,
  type Model,
  model,
  route,
  type Tensor,
  upTo,
} from "../../compiler/mod.ts";
import type { FileDType } from "../../spec/dtype.ts";

/** Maximum tokens of a step. */
export const MAX_TOKENS = 256;

const EXPERTS = 8;

/** A model to time, the storage dtype of its weights, and its steps. */
export interface Timed {
  readonly model: Model;
  readonly weights: { readonly [tensor: string]: FileDType };
  /** Tokens of the steps: as in prefill, and as in decode. */
  readonly steps: readonly {
    readonly tokens: number;
    readonly sequences: number;
  }[];
}

const STEPS: Timed["steps"] = [
  { tokens: MAX_TOKENS, sequences: 1 },
  { tokens: 4, sequences: 4 },
];

/** A matmul of a shape: over dispatched rows, or over tokens. */
export function matmulModel(shape: MatmulShape): Timed {
  const { grouped, weights, stored, k, columns } = shape;
  const names = Array.from({ length: weights }, (_, i) => `weight.${i}`);
  const axes = { token: upTo(MAX_TOKENS), row: k, column: columns };
  const product = (values: readonly Tensor<string, "f32">[]) =>
    values.length === 1
      ? values[0]!
      : map((a, b) => a * b, values[0]!, values[1]!);
  const built = grouped
    ? model({ ...axes, expert: EXPERTS }, (m) => {
      const logits = m.input("logits", "token expert");
      const routing = route(logits, {
        over: "expert",
        topK: 2,
        preset: "mixtral",
      });
      const sent = dispatch(m.input("x", "token row"), routing);
      const all = names.map((name) =>
        dot(sent, m.param(name, "expert column row"), "row")
      );
      return { y: combine(product(all) as typeof all[number], routing) };
    })
    : model(axes, (m) => {
      const x = m.input("x", "token row");
      const all = names.map((name) =>
        dot(x, m.param(name, "column row"), "row")
      );
      return { y: product(all) };
    });
  return {
    model: built,
    weights: Object.fromEntries(names.map((name) => [name, stored])),
    steps: STEPS,
  };
}

/** Attention of some heads over a cache. `max`: sequences, and tokens per step and per sequence. */
export function attentionModel(
  { heads, kvHeads, dim }: {
    readonly heads: number;
    readonly kvHeads: number;
    readonly dim: number;
  },
  max = { tokens: MAX_TOKENS, sequences: 4 },
): Timed {
  const axes = {
    token: upTo(max.tokens),
    sequence: max.sequences,
    context: max.tokens,
    head: heads,
    kvHead: kvHeads,
    headDim: dim,
  };
  const built = model(axes, (m) => {
    const cache = "sequence context kvHead headDim";
    const { y, keys, values } = attention(m.input("x", "token head headDim"), {
      key: m.input("key", "token kvHead headDim"),
      value: m.input("value", "token kvHead headDim"),
      sequence: m.input("sequence", "token", { dtype: "i32" }),
      position: m.input("position", "token", { dtype: "i32" }),
      keys: m.state("keys", cache),
      values: m.state("values", cache),
    });
    return { y, keys, values };
  });
  return { model: built, weights: {}, steps: STEPS };
}
