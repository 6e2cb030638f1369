/** Choosing the keys of a cache that tokens attend to, and writing other rows to one. */

import type { DType } from "../../spec/dtype.ts";
import { apply, axisOf, type Tensor, traceOf } from "./tensor.ts";
import type { First, Second } from "./types.ts";

/** Options of `selectKeys`. */
export interface SelectKeysOptions<K, KeyCache, Weights, At, C> {
  /** The vector of each of these tokens, `token dim`. */
  readonly key: K;
  /** State: vectors of all tokens so far, `sequence context dim`. */
  readonly keys: KeyCache;
  /** The factor of each head, `token head`. */
  readonly weights: Weights;
  /** Which sequence each token belongs to, "i32". */
  readonly sequence: At;
  /** Each token's position in its sequence, "i32". */
  readonly position: At;
  /** The last position that each token chooses from, -1 for none; default its own. */
  readonly last?: At;
  /** Keys of a token. */
  readonly k: number;
  /** The axis of the chosen keys; default "selected". */
  readonly axis?: C;
}

/** The result of `selectKeys`: the positions that each token attends to, and the next value of the state. */
export type SelectKeys<
  Q extends string,
  S extends string,
  C extends string,
> = {
  readonly selected: Tensor<`${First<Q>} ${C}`, "i32">;
  readonly keys: Tensor<S, "f32">;
};

/**
 * The k keys with the best scores for each token, as the indexer of DeepSeek-V3.2 chooses them: `attention` and
 * `latentAttention` take them as `selected`. Token (s, p) writes its key at (s, p) of the state; the score of position
 * c ≤ p is the sum over heads of `weight · relu(query · key[s, c])`. Positions are in ascending order; of equal
 * scores the first are chosen; where there are fewer than k, -1 follows. With `last`, positions are those of other
 * things than tokens, such as windows: a token with a negative position writes nothing, and c ≤ `last`.
 *
 * Axes: `query` is `token head dim`, `key` is `token dim`, `keys` is `sequence context dim`, `weights` is `token head`;
 * the result is `token selected`. Dtype: "f32"; `sequence`, `position` and the result are "i32". Errors: other axes or
 * dtypes; a state that is not returned. Gradient: none, as a choice has none. Sharding: along the tokens, if those of a
 * sequence are on one rank; every rank has all heads.
 *
 * @example
 * ```ts
 * const pick = model({ token: 3, head: 1, dim: 1, sequence: 1, context: 4 }, (m) => {
 *   const at = (name: string) => m.input(name, "token", { dtype: "i32" });
 *   return selectKeys(m.input("query", "token head dim"), {
 *     key: m.input("key", "token dim"),
 *     keys: m.state("keys", "sequence context dim"),
 *     weights: m.input("weights", "token head"),
 *     sequence: at("sequence"),
 *     position: at("position"),
 *     k: 2,
 *   });
 * });
 * const { outputs } = evaluate(trace(pick), {
 *   inputs: { query: [1, 1, 1], key: [3, 1, 2], weights: [1, 1, 1], sequence: [0, 0, 0], position: [0, 1, 2] },
 * });
 * console.assert(String(outputs.selected?.data) === "0,-1,0,1,0,2");
 * ```
 */
export function selectKeys<
  Q extends string,
  K extends string,
  S extends string,
  W extends string,
  const C extends string = "selected",
>(
  query: Tensor<Q, "f32">,
  options: SelectKeysOptions<
    Tensor<K, "f32">,
    Tensor<S, "f32">,
    Tensor<W, "f32">,
    Tensor<First<NoInfer<Q>>, "i32">,
    C
  >,
): SelectKeys<Q, S, C> {
  const { key, keys: state, weights, sequence, position, k } = options;
  const { last = position } = options;
  const tensors = {
    query,
    key,
    keys: state,
    weights,
    sequence,
    position,
    last,
  };
  const trace = traceOf(tensors, selectKeys);
  const keys: Tensor<S, "f32"> = apply(
    selectKeys,
    "cacheWrite",
    [state, key, sequence, position],
    options.last ? { sparse: true } : {},
  );
  const [token, head, dim] = query.node.axes;
  const selected = apply(
    selectKeys,
    "selectKeys",
    [query, weights, keys, sequence, last],
    {
      token: token!,
      head: head!,
      dim: dim!,
      context: state.node.axes[1]!,
      k,
      axis: axisOf(options.axis ?? "selected", [query], trace),
    },
  );
  return {
    selected: selected as Tensor as SelectKeys<Q, S, C>["selected"],
    keys,
  };
}

/** Options of `selectBlocks`. */
export interface SelectBlocksOptions<K, KeyCache, At, C> {
  /** The vector of each of these tokens, `token dim`. */
  readonly key: K;
  /** State: vectors of all tokens so far, `sequence context dim`. */
  readonly keys: KeyCache;
  /** Which sequence each token belongs to, "i32". */
  readonly sequence: At;
  /** Each token's position in its sequence, "i32". */
  readonly position: At;
  /** Positions per block. */
  readonly block: number;
  /** Blocks of a token and head. */
  readonly k: number;
  /** Number of first blocks that are always selected; default 0. */
  readonly first?: number;
  /** Number of last blocks, up to that of the token, that are always selected; default 0. */
  readonly local?: number;
  /** The axis of the selected blocks; default "selected". */
  readonly axis?: C;
}

/** The result of `selectBlocks`: the blocks that each token and head attends to, and the next value of the state. */
export type SelectBlocks<
  Q extends string,
  S extends string,
  C extends string,
> = {
  readonly selected: Tensor<`${First<Q>} ${Second<Q>} ${C}`, "i32">;
  readonly keys: Tensor<S, "f32">;
};

/**
 * The k blocks of positions with the best scores for each token and head, as the indexer of MiniMax-M3 chooses them:
 * `attention` takes them as `selected`, if the heads are its key heads, with `selectedBlock`. Token (s, p) writes its
 * key at (s, p) of the state; the score of a block is the largest `query · key[s, c]` of its positions c ≤ p. Blocks
 * up to that of p are in ascending order; of equal scores the first are selected; where there are fewer than k, -1
 * follows.
 *
 * Axes: `query` is `token head dim`, `key` is `token dim`, `keys` is `sequence context dim`; the result is `token head
 * selected`. Dtype: "f32"; `sequence`, `position` and the result are "i32". Errors: other axes or dtypes; `first +
 * local` above `k`; a state that is not returned. Gradient: none, as a choice has none. Sharding: along the heads, and
 * along the tokens if those of a sequence are on one rank; the keys are replicated.
 *
 * @example
 * ```ts
 * const pick = model({ token: 5, head: 1, dim: 1, sequence: 1, context: 6 }, (m) => {
 *   const at = (name: string) => m.input(name, "token", { dtype: "i32" });
 *   return selectBlocks(m.input("query", "token head dim"), {
 *     key: m.input("key", "token dim"),
 *     keys: m.state("keys", "sequence context dim"),
 *     sequence: at("sequence"),
 *     position: at("position"),
 *     block: 2,
 *     local: 1,
 *     k: 2,
 *   });
 * });
 * const { outputs } = evaluate(trace(pick), {
 *   inputs: { query: [1, 1, 1, 1, 1], key: [1, 2, 1, 5, 1], sequence: [0, 0, 0, 0, 0], position: [0, 1, 2, 3, 4] },
 * });
 * console.assert(String(outputs.selected?.data.slice(-4)) === "0,1,1,2");
 * ```
 */
export function selectBlocks<
  Q extends string,
  K extends string,
  S extends string,
  const C extends string = "selected",
>(
  query: Tensor<Q, "f32">,
  options: SelectBlocksOptions<
    Tensor<K, "f32">,
    Tensor<S, "f32">,
    Tensor<First<NoInfer<Q>>, "i32">,
    C
  >,
): SelectBlocks<Q, S, C> {
  const { key, keys: state, sequence, position, block, k } = options;
  const { first = 0, local = 0 } = options;
  const tensors = { query, key, keys: state, sequence, position };
  const trace = traceOf(tensors, selectBlocks);
  const keys: Tensor<S, "f32"> = apply(
    selectBlocks,
    "cacheWrite",
    [state, key, sequence, position],
    {},
  );
  const [token, head, dim] = query.node.axes;
  const selected = apply(
    selectBlocks,
    "selectBlocks",
    [query, keys, sequence, position],
    {
      token: token!,
      head: head!,
      dim: dim!,
      context: state.node.axes[1]!,
      k,
      block,
      first,
      local,
      axis: axisOf(options.axis ?? "selected", [query], trace),
    },
  );
  return {
    selected: selected as Tensor as SelectBlocks<Q, S, C>["selected"],
    keys,
  };
}

/** Options of `cacheRows`. */
export interface CacheRowsOptions<At> {
  /** Which sequence each token belongs to, "i32". */
  readonly sequence: At;
  /** Where each token writes its row, "i32"; a negative number: nowhere. */
  readonly position: At;
}

/**
 * Writes rows of some tokens to a state, for example one row per window, and returns its next value: `entries` of
 * `latentAttention`. No two tokens of a run write to one position.
 *
 * Axes: `state` is `sequence entry …`, `rows` is `token …`; the result has the axes of `state`. Dtype: both equal;
 * `sequence` and `position` are "i32". Errors: other axes or dtypes; a state that is not returned. Gradient: by
 * `rows`. Sharding: along the tokens, if those of a sequence are on one rank.
 *
 * @example
 * ```ts
 * const keep = model({ token: 2, dim: 1, sequence: 1, entry: 2 }, (m) => ({
 *   state: cacheRows(m.state("state", "sequence entry dim"), m.input("rows", "token dim"), {
 *     sequence: m.input("sequence", "token", { dtype: "i32" }),
 *     position: m.input("position", "token", { dtype: "i32" }),
 *   }),
 * }));
 * const { states } = evaluate(trace(keep), {
 *   inputs: { rows: [5, 6], sequence: [0, 0], position: [-1, 0] },
 * });
 * console.assert(String(states.state?.data) === "6,0");
 * ```
 */
export function cacheRows<
  S extends string,
  R extends string,
  D extends DType,
>(
  state: Tensor<S, D>,
  rows: Tensor<R, NoInfer<D>>,
  options: CacheRowsOptions<Tensor<First<NoInfer<R>>, "i32">>,
): Tensor<S, D> {
  const { sequence, position } = options;
  traceOf({ state, rows, sequence, position }, cacheRows);
  return apply(cacheRows, "cacheWrite", [state, rows, sequence, position], {
    sparse: true,
  });
}
