/**
 * What the kernels of attention's derivative have in common: weights are computed again from queries, keys and the
 * logarithm of their sum. A query's cotangent sums over the keys that it sees, a key's and a value's over the queries of
 * this run that see them. Each has a file: `attention_sum`, `query_grad`, `key_grad`.
 */

import type { Binding, Expr, Hole, KernelText } from "./kernel.ts";
import { bindings, wgsl } from "./kernel.ts";
import { blockedSum } from "./pieces/blocked_sum.ts";

/**
 * What attention it is. Heads are innermost, so that invocations side by side read what is side by side: f32 `q`
 * [token, dim, head], `keys` [sequence, context, dim, kvHead], `values` [sequence, context, valueDim, kvHead] and `dy`
 * [token, valueDim, head]. `attentionSum` has i32 `sequence` [token] and `position` [token], and f32 `sinks` [head] if there
 * are any. The others have i32 `place` [token], sequence * context + position; and f32 `statistics` [token, head, 2], the
 * logarithms of sums, then the products of cotangents and results.
 */
export interface BackwardOptions {
  readonly name: string;
  readonly heads: number;
  readonly kvHeads: number;
  readonly dim: number;
  readonly valueDim: number;
  /** Values are the first elements of the keys; there is no binding `values`. */
  readonly shared: boolean;
  readonly sinks: boolean;
  readonly context: number;
  readonly scale: number;
  readonly window?: number;
  readonly chunk?: number;
  readonly tokens: Expr;
}

/** Bindings of the cotangents' kernels. */
export function gradBindings({ shared }: BackwardOptions): Binding[] {
  return bindings({
    ...{ q: "f32", keys: "f32", ...shared ? {} : { values: "f32" } },
    ...{ place: "i32", dy: "f32", statistics: "f32" },
  }, { y: "f32" });
}

/** `score`: the product of the query of `token` and `head` and the key of `entry` and `kv`, scaled. */
export function score(
  { dim, heads, kvHeads, scale }: BackwardOptions,
): KernelText {
  const dot = blockedSum(
    "dot",
    { length: dim, over: "d" },
    wgsl`
    dot_block = fma(q[q_at + d * ${heads}], keys[key_at + d * ${kvHeads}], dot_block);`,
  );
  return wgsl`
    let q_at = token * ${dim * heads} + head;
    let key_at = entry * ${dim * kvHeads} + kv;
    ${dot}
    let score = dot * ${scale};`;
}

/** `weight`, of the softmax, and where the cotangent of the query's result begins. */
export function weight({ heads, valueDim }: BackwardOptions): KernelText {
  return wgsl`
    let statistic = (token * ${heads} + head) * 2;
    let weight = exp(score - statistics[statistic]);
    let dy_at = token * ${valueDim * heads} + head;`;
}

/** `slope`: what the loss changes by with the score: weight * (dy · value - dy · y) * scale. */
export function slope(o: BackwardOptions): KernelText {
  const { heads, kvHeads, valueDim } = o;
  const values = o.shared ? "keys" : "values";
  const change = blockedSum(
    "change",
    { length: valueDim, over: "v" },
    wgsl`
    change_block = fma(dy[dy_at + v * ${heads}], ${values}[value_at + v * ${kvHeads}], change_block);`,
  );
  return wgsl`
    let value_at = entry * ${(o.shared ? o.dim : valueDim) * kvHeads} + kv;
    ${change}
    let slope = weight * (change - statistics[statistic + 1]) * ${o.scale};`;
}

/** For the query of `query`, which is of `token` and `head`, and each key of `entry` and `kv` that it sees: `then`. */
export function eachKey(
  o: BackwardOptions,
  own: { readonly position: Hole; readonly sequence: Hole },
  then: KernelText,
): KernelText {
  const { window, chunk } = o;
  const ofWindow = wgsl`max(own_position + 1, ${window}) - ${window}`;
  const ofChunk = wgsl`own_position / ${chunk} * ${chunk}`;
  const first = [
    ...window === undefined ? [] : [ofWindow],
    ...chunk === undefined ? [] : [ofChunk],
  ].reduce((a, b) => wgsl`max(${a}, ${b})`, wgsl`0u`);
  return wgsl`
    let token = query / ${o.heads};
    let head = query % ${o.heads};
    let kv = head / ${o.heads / o.kvHeads};
    let own_position = ${own.position};
    let own_sequence = ${own.sequence};
    for (var at = ${first}; at < own_position + 1; at++) {
      let entry = own_sequence * ${o.context} + at;
      ${then}
    }`;
}
