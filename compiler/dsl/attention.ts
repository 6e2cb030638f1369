/** Attention with a cache. */

import type { DType } from "../../spec/dtype.ts";
import { ModelError } from "../../spec/errors.ts";
import { messages as say } from "../graph/messages.ts";
import { sameAxes } from "../graph/operands.ts";
import { callSite } from "../../spec/call_site.ts";
import { apply, refuse, type Tensor, traceOf } from "./tensor.ts";
import type {
  CanCache,
  CanCached,
  CanKey,
  CanQuery,
  CanSharedKey,
  CanValue,
  First,
  Float,
  Renamed,
  Second,
  Valued,
  Without,
} from "./types.ts";

/** Options of all attention ops. */
export interface AttentionChoices<At, Sinks> {
  /** Index of each token's sequence, "i32". */
  readonly sequence: At;
  /** Each token's position in its sequence, "i32". */
  readonly position: At;
  /** Multiplies the scores; default 1 / sqrt(elements of a key). */
  readonly scale?: number;
  /** Window size: a token attends to this many positions, including its own. */
  readonly window?: number;
  /** Chunk size: a token attends only to positions of its own chunk. */
  readonly chunk?: number;
  /**
   * The positions that a token attends to instead, `token selected`, "i32", from `selectKeys`: at least one, each at
   * most once, with negative numbers only at the end. `token kvHead selected`: a list for each key head.
   */
  readonly selected?: Tensor<string, "i32">;
  /**
   * `selected` lists blocks of this many positions in ascending order, from `selectBlocks`. A token attends to their
   * positions up to its own. Default: it lists positions.
   */
  readonly selectedBlock?: number;
  /** Score of the attention sink of each head: `exp` of it is added to the softmax denominator. A sink has no value. */
  readonly sinks?: Sinks;
}

/** Options of `attention`. */
export interface AttentionOptions<K, V, KeyCache, ValueCache, At, Sinks>
  extends AttentionChoices<At, Sinks> {
  /** Keys of these tokens, `token kvHead headDim`. */
  readonly key: K;
  /** Values of these tokens, `token kvHead valueDim`. `valueDim` may be `headDim`. */
  readonly value: V;
  /** State: keys of all tokens so far, `sequence context kvHead headDim`. */
  readonly keys: KeyCache;
  /** State: values of all tokens so far, `sequence context kvHead valueDim`. */
  readonly values: ValueCache;
}

/**
 * Result of `attention`, and the next values of the two states, to be returned under their names. A type, not an
 * interface, so that a model can return it.
 */
export type Attention<
  Y extends string,
  S extends string,
  W extends string,
  D extends DType,
> = {
  readonly y: Tensor<Y, D>;
  readonly keys: Tensor<S, D>;
  readonly values: Tensor<W, D>;
};

/**
 * Causal grouped-query attention with a cache. Token (s, p) writes its key and value at (s, p) of the states and then
 * attends to positions ≤ p of sequence s. Query head h reads key head h / (heads / key heads).
 *
 * Axes: `q` is `token head headDim`, `key` is `token kvHead headDim`, `value` is `token kvHead valueDim`, `keys` and
 * `values` are these with `sequence context` instead of `token`; `y` is `token head valueDim`. Dtype: all equal, "f32"
 * or "f16"; `sequence` and `position` are "i32". Errors: other axes; dtypes differ; a number of heads that is not a
 * multiple of the key heads; states that are not returned. Gradient: by `q`, `key`, `value` and `sinks`, in a run in
 * which every sequence starts. Sharding: along the heads with their key heads, and along the tokens if the tokens of a
 * sequence are on one rank.
 *
 * @example
 * ```ts
 * const attend = model({ token: 1, head: 1, kvHead: 1, dim: 1, sequence: 1, context: 2 }, (m) => {
 *   const one = "token kvHead dim";
 *   const { y, keys, values } = attention(m.input("q", "token head dim"), {
 *     key: m.input("k", one),
 *     value: m.input("v", one),
 *     keys: m.state("keys", "sequence context kvHead dim"),
 *     values: m.state("values", "sequence context kvHead dim"),
 *     sequence: m.input("sequence", "token", { dtype: "i32" }),
 *     position: m.input("position", "token", { dtype: "i32" }),
 *   });
 *   return { y, keys, values };
 * });
 * const { outputs, states } = evaluate(trace(attend), {
 *   inputs: { q: [1], k: [1], v: [3], sequence: [0], position: [0] },
 * });
 * console.assert(outputs.y?.data[0] === 3 && String(states.values?.data) === "3,0");
 * ```
 */
export function attention<
  Q extends string,
  D extends Float,
  K extends string,
  V extends string,
  S extends string,
  W extends string,
>(
  q: CanQuery<Q, Tensor<Q, D>>,
  options: AttentionOptions<
    CanKey<NoInfer<Q>, K, Tensor<K, NoInfer<D>>>,
    CanValue<NoInfer<K>, V, Tensor<V, NoInfer<D>>>,
    CanCache<NoInfer<K>, S, Tensor<S, NoInfer<D>>>,
    CanCache<NoInfer<V>, W, Tensor<W, NoInfer<D>>>,
    Tensor<First<NoInfer<Q>>, "i32">,
    Tensor<Second<NoInfer<Q>>, NoInfer<D>>
  >,
): Attention<Valued<Q, V>, S, W, D> {
  const query = q as unknown as Tensor;
  const key = options.key as unknown as Tensor;
  const value = options.value as unknown as Tensor;
  const keys = options.keys as unknown as Tensor<S, D>;
  const values = options.values as unknown as Tensor<W, D>;
  const { sequence, position } = options;
  traceOf({ q, key, value, keys, values, sequence, position }, attention);
  const span = callSite(attention);
  const [token, head, dim] = query.node.axes;
  const [, kvHead] = key.node.axes;
  const valueDim = value.node.axes[2];
  const fail = (message: string): Attention<Valued<Q, V>, S, W, D> => ({
    y: refuse(new ModelError(message, span), [query, key], [
      ...query.node.axes.slice(0, 2),
      valueDim ?? dim!,
    ]),
    keys,
    values,
  });
  if (query.node.axes.length !== 3) return fail(say.query(query.node.axes));
  if (!sameAxes(key.node.axes, [token!, kvHead!, dim!])) {
    return fail(say.key(query.node.axes, key.node.axes));
  }
  if (!sameAxes(value.node.axes, [token!, kvHead!, valueDim!])) {
    return fail(say.value(key.node.axes, value.node.axes));
  }
  for (const [cache, rows] of [[keys, key], [values, value]] as const) {
    const [s, c, ...rest] = cache.node.axes;
    if (!sameAxes(rest, rows.node.axes.slice(1)) || !s || !c) {
      return fail(say.cache(rows.node.axes, cache.node.axes));
    }
  }
  const write = <A extends string>(
    state: Tensor<A, D>,
    rows: Tensor,
  ): Tensor<A, D> =>
    apply(attention, "cacheWrite", [state, rows, sequence, position], {});
  const next = { keys: write(keys, key), values: write(values, value) };
  const operands = [query, next.keys, next.values] as const;
  const y: Tensor<Valued<Q, V>, D> = attend(attention, operands, {
    options,
    token: token!,
    head: head!,
    dim: dim!,
    valueDim: valueDim!,
    kvHead: kvHead!,
  });
  return { y, ...next };
}

/** Options of `cachedAttention`. */
export interface CachedAttentionOptions<KeyCache, ValueCache, At, Sinks>
  extends AttentionChoices<At, Sinks> {
  /** Keys of all tokens so far, including these: `keys` of another attention. */
  readonly keys: KeyCache;
  /** Values of all tokens so far, axes of `keys`. */
  readonly values: ValueCache;
}

/**
 * Causal grouped-query attention over the cache that another attention of the same run has written, as in layers that
 * share keys and values with an earlier layer. It does not write the cache.
 *
 * Axes: `q` is `token head dim`, `keys` and `values` are `sequence context kvHead headDim`, where `dim` and `headDim`
 * may belong to different blocks; the result has the axes of `q`. Dtype: all equal, "f32" or "f16"; `sequence` and
 * `position` are "i32". Errors: other axes; different sizes of `dim` and `headDim`; dtypes differ; a number of heads
 * that is not a multiple of the key heads. Gradient: as `attention`. Sharding: as `attention`.
 *
 * @example
 * ```ts
 * const attend = model({ token: 1, head: 1, kvHead: 1, dim: 1, sequence: 1, context: 2 }, (m) => {
 *   const one = "token kvHead dim";
 *   const at = {
 *     sequence: m.input("sequence", "token", { dtype: "i32" }),
 *     position: m.input("position", "token", { dtype: "i32" }),
 *   };
 *   const q = m.input("q", "token head dim");
 *   const { y, keys, values } = attention(q, {
 *     key: m.input("k", one),
 *     value: m.input("v", one),
 *     keys: m.state("keys", "sequence context kvHead dim"),
 *     values: m.state("values", "sequence context kvHead dim"),
 *     ...at,
 *   });
 *   return { y: cachedAttention(y, { keys, values, ...at }), keys, values };
 * });
 * const { outputs } = evaluate(trace(attend), {
 *   inputs: { q: [1], k: [1], v: [3], sequence: [0], position: [0] },
 * });
 * console.assert(outputs.y?.data[0] === 3);
 * ```
 */
export function cachedAttention<
  Q extends string,
  D extends Float,
  S extends string,
>(
  q: CanQuery<Q, Tensor<Q, D>>,
  options: CachedAttentionOptions<
    CanCached<S, Tensor<S, NoInfer<D>>>,
    Tensor<NoInfer<S>, NoInfer<D>>,
    Tensor<First<NoInfer<Q>>, "i32">,
    Tensor<Second<NoInfer<Q>>, NoInfer<D>>
  >,
): Tensor<Q, D> {
  const query = q as unknown as Tensor;
  const keys = options.keys as unknown as Tensor;
  const { values, sequence, position } = options;
  traceOf({ q, sequence, position }, cachedAttention);
  traceOf({ keys, values }, cachedAttention);
  const [token, head, dim] = query.node.axes;
  const [, , kvHead, cached] = keys.node.axes;
  const four = keys.node.axes.length === 4;
  const wrong = query.node.axes.length !== 3
    ? say.query(query.node.axes)
    : !four || !sameAxes(values.node.axes, keys.node.axes)
    ? say.cached((four ? values : keys).node.axes)
    : undefined;
  if (wrong !== undefined) {
    const error = new ModelError(wrong, callSite(cachedAttention));
    return refuse(error, [query, keys]);
  }
  const named = (x: Tensor, from: string, to: string): Tensor =>
    from === to ? x : apply(cachedAttention, "rename", [x], { from, to });
  const y: Tensor = attend(
    cachedAttention,
    [named(query, dim!, cached!), keys, values],
    {
      options,
      token: token!,
      head: head!,
      dim: cached!,
      valueDim: cached!,
      kvHead: kvHead!,
    },
  );
  return named(y, cached!, dim!) as Tensor<Q, D>;
}

/** Options of `latentAttention`. */
export interface LatentAttentionOptions<K, V, KeyCache, At, Sinks>
  extends AttentionChoices<At, Sinks> {
  /** The latent vector of each of these tokens, `token keyDim`. */
  readonly key: K;
  /** State: latent vectors of all tokens so far, `sequence context keyDim`. */
  readonly keys: KeyCache;
  /** The axis of the result. The value of a token is this many first elements of its vector. */
  readonly value: V;
  /**
   * A second cache, `sequence entry keyDim`, as `cacheRows` makes it, to whose entries tokens attend besides, in the
   * same softmax: the `selected` ones, or all up to `last`.
   */
  readonly entries?: Tensor<string, "f32">;
  /** The last entry that a token attends to, -1 for none, "i32". */
  readonly last?: At;
}

/** Result of `latentAttention`, and the next value of the state. */
export type LatentAttention<
  Y extends string,
  S extends string,
  D extends DType,
> = {
  readonly y: Tensor<Y, D>;
  readonly keys: Tensor<S, D>;
};

/**
 * Causal attention with one cached vector per token, shared by all heads. The vector is the key, and its first elements
 * are the value.
 *
 * Axes: `q` is `token head keyDim`, `key` is `token keyDim`, `keys` is `sequence context keyDim`; `y` is `token head
 * value`. Dtype: all equal, "f32" or "f16"; `sequence` and `position` are "i32". Errors: other axes; dtypes differ; a
 * value axis longer than the key; a state that is not returned. Gradient: as `attention`. Sharding: along the heads,
 * and along the tokens if the tokens of a sequence are on one rank; the key is replicated.
 *
 * @example
 * ```ts
 * const attend = model({ token: 1, head: 1, dim: 2, half: 1, sequence: 1, context: 2 }, (m) => {
 *   const { y, keys } = latentAttention(m.input("q", "token head dim"), {
 *     key: m.input("k", "token dim"),
 *     keys: m.state("keys", "sequence context dim"),
 *     value: "half",
 *     sequence: m.input("sequence", "token", { dtype: "i32" }),
 *     position: m.input("position", "token", { dtype: "i32" }),
 *   });
 *   return { y, keys };
 * });
 * const { outputs } = evaluate(trace(attend), {
 *   inputs: { q: [1, 1], k: [5, 6], sequence: [0], position: [0] },
 * });
 * console.assert(String(outputs.y?.data) === "5");
 * ```
 */
export function latentAttention<
  Q extends string,
  D extends Float,
  K extends string,
  S extends string,
  const V extends string,
>(
  q: CanQuery<Q, Tensor<Q, D>>,
  options: LatentAttentionOptions<
    CanSharedKey<NoInfer<Q>, K, Tensor<K, NoInfer<D>>>,
    V,
    CanCache<NoInfer<K>, S, Tensor<S, NoInfer<D>>>,
    Tensor<First<NoInfer<Q>>, "i32">,
    Tensor<Second<NoInfer<Q>>, NoInfer<D>>
  >,
): LatentAttention<Renamed<Q, Without<K, First<K>>, V>, S, D> {
  const query = q as unknown as Tensor;
  const key = options.key as unknown as Tensor;
  const state = options.keys as unknown as Tensor<S, D>;
  const { sequence, position, value } = options;
  traceOf({ q, key, keys: state, sequence, position }, latentAttention);
  const span = callSite(latentAttention);
  const [token, head, dim] = query.node.axes;
  const wrong = query.node.axes.length !== 3
    ? say.query(query.node.axes)
    : !sameAxes(key.node.axes, [token!, dim!])
    ? say.sharedKey(query.node.axes, key.node.axes)
    : state.node.axes.length !== 3 || state.node.axes[2] !== dim
    ? say.cache(key.node.axes, state.node.axes)
    : undefined;
  if (wrong !== undefined) {
    const error = new ModelError(wrong, span);
    const axes = query.node.axes.map((axis) => axis === dim ? value : axis);
    return { y: refuse(error, [query, key], axes), keys: state };
  }
  const keys: Tensor<S, D> = apply(
    latentAttention,
    "cacheWrite",
    [state, key, sequence, position],
    {},
  );
  const y: Tensor<Renamed<Q, Without<K, First<K>>, V>, D> = attend(
    latentAttention,
    [query, keys],
    { options, token: token!, head: head!, dim: dim!, valueDim: value },
  );
  return { y, keys };
}

/** The attention node over the written caches. */
function attend<Y extends string, D extends Float>(
  op: typeof attention | typeof cachedAttention | typeof latentAttention,
  operands: readonly [query: Tensor, keys: Tensor, values?: Tensor],
  part: {
    readonly options: AttentionChoices<Tensor, Tensor> & {
      readonly entries?: Tensor;
      readonly last?: Tensor;
    };
    readonly token: string;
    readonly head: string;
    readonly dim: string;
    readonly valueDim: string;
    readonly kvHead?: string;
  },
): Tensor<Y, D> {
  const { options, ...axes } = part;
  const [query, keys, values] = operands;
  const { sequence, position, sinks, selected, scale, window, chunk } = options;
  const { selectedBlock, entries, last } = options;
  const upTo = entries && !selected ? last : undefined;
  const more = [sinks, selected, entries, upTo].filter((x) => x !== undefined);
  const tensors = [query, keys, values ?? keys, sequence, position, ...more];
  const { axes: sizes } = traceOf([query], op);
  const list = selected?.node.axes.at(-1);
  return apply(op, "attention", tensors, {
    ...axes,
    scale: scale ?? 1 / Math.sqrt(sizes[axes.dim]?.size ?? 1),
    ...window === undefined ? {} : { window },
    ...chunk === undefined ? {} : { chunk },
    ...list === undefined ? {} : { selected: list },
    ...selectedBlock === undefined ? {} : { selectedBlock },
    ...selected?.node.axes.length === 3 ? { selectedPerHead: true } : {},
    ...entries === undefined ? {} : { entries: entries.node.axes[1]! },
    context: keys.node.axes[1]!,
    sinks: sinks !== undefined,
    shared: values === undefined,
  });
}
