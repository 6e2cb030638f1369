/** Ops over the tokens of sequences with states of fixed size. */

import { callSite } from "../../spec/call_site.ts";
import { ModelError } from "../../spec/errors.ts";
import { apply, refuse, type Tensor, traceOf } from "./tensor.ts";
import type { Axis, First } from "./types.ts";

/** Options of `conv1d`. */
export interface Conv1dOptions<State, At> {
  /** State: the last inputs of each sequence, `sequence slot channel`. */
  readonly state: State;
  /** Index of each token's sequence, "i32". */
  readonly sequence: At;
  /** Each token's position in its sequence, "i32". */
  readonly position: At;
}

/** Result of `conv1d`, and the next value of the state. */
export type Conv1d<X extends string, S extends string> = {
  readonly y: Tensor<X, "f32">;
  readonly state: Tensor<S, "f32">;
};

/**
 * Causal depthwise convolution along the tokens of each sequence, as in Mamba. With w taps, token (s, p) is the sum
 * over j of `weight[j] · x[s, p - (w - 1) + j]`, in the order of taps; inputs before position 0 are 0. Tokens of a
 * sequence are in the order of their positions. The state contains the last w - 1 inputs of each sequence, oldest
 * first; position 0 does not read it.
 *
 * Axes: `x` is `token channel`, `weight` is `channel axis`, `state` is `sequence slot channel`; `y` has the axes of
 * `x`. Dtype: "f32"; `sequence` and `position` are "i32". Errors: other axes or dtypes; a number of slots other than
 * taps minus one; a state that is not returned. Gradient: by `x` and `weight`, in a run in which every sequence starts.
 * Sharding: along the channels, and along the tokens if the tokens of a sequence are on one rank.
 *
 * @example
 * ```ts
 * const conv = model({ token: 3, channel: 1, tap: 2, sequence: 1, slot: 1 }, (m) =>
 *   conv1d(m.input("x", "token channel"), m.param("weight", "channel tap"), "tap", {
 *     state: m.state("state", "sequence slot channel"),
 *     sequence: m.input("sequence", "token", { dtype: "i32" }),
 *     position: m.input("position", "token", { dtype: "i32" }),
 *   }));
 * const { outputs } = evaluate(trace(conv), {
 *   inputs: { x: [1, 2, 3], sequence: [0, 0, 0], position: [0, 1, 2] },
 *   params: { weight: [10, 1] },
 * });
 * console.assert(String(outputs.y?.data) === "1,12,23");
 * ```
 */
export function conv1d<
  X extends string,
  W extends string,
  S extends string,
  const K extends Axis<W>,
>(
  x: Tensor<X, "f32">,
  weight: Tensor<W, "f32">,
  axis: K,
  options: Conv1dOptions<Tensor<S, "f32">, Tensor<First<NoInfer<X>>, "i32">>,
): Conv1d<X, S> {
  const { state, sequence, position } = options;
  traceOf({ x, weight, state, sequence, position }, conv1d);
  const y: Tensor<X, "f32"> = apply(
    conv1d,
    "conv1d",
    [state, x, weight, sequence, position],
    { over: axis },
  );
  return { y, state: apply(conv1d, "nextState", [y], {}) };
}

/** Options of `linearRecurrence`. */
export interface LinearRecurrenceOptions<
  State,
  At,
  Decay,
  Rate,
> {
  /**
   * Update of the state by a token: adds its value ("add"), or the difference between its value and the state's value
   * for its key ("delta").
   */
  readonly rule: "add" | "delta";
  /** Factors that multiply the state before each token: `token head`, or `token head dim` for one per key element. */
  readonly decay: Decay;
  /** Factors of the update, `token head`. */
  readonly rate: Rate;
  /** State: a matrix per head and sequence, `sequence head dim valueDim`. */
  readonly state: State;
  /** Index of each token's sequence, "i32". */
  readonly sequence: At;
  /** Each token's position in its sequence, "i32". */
  readonly position: At;
}

/** Result of `linearRecurrence`, and the next value of the state. */
export type LinearRecurrence<V extends string, S extends string> = {
  readonly y: Tensor<V, "f32">;
  readonly state: Tensor<S, "f32">;
};

/**
 * Linear recurrence over the tokens of each sequence with a matrix S as its state: gated delta net, KDA, Mamba-2, gated
 * linear attention. For each token: `S = decay · S`; `d = rate · (value - Sᵀ key)` by the rule "delta", or `rate ·
 * value` by "add"; `S = S + key dᵀ`; the result is `Sᵀ query`. S starts as 0 at position 0. Tokens of a sequence
 * are in the order of their positions. Head h reads key head h / (heads / key heads).
 *
 * Bits depend neither on how a sequence is divided into runs nor on the mesh: sums over key elements are in blocks of
 * 32.
 *
 * Axes: `query` and `key` are `token keyHead dim`, `value` is `token head valueDim`; `y` has the axes of `value`.
 * Dtype: "f32"; `sequence` and `position` are "i32". Errors: other axes or dtypes; a number of heads that is not a
 * multiple of the key heads; a state that is not returned. Gradient: by `query`, `key`, `value`, `decay` and `rate`, in
 * a run in which every sequence starts. Sharding: along the heads with their key heads, along `valueDim`,
 * and along the tokens if the tokens of a sequence are on one rank.
 *
 * @example
 * ```ts
 * const memory = model({ token: 2, head: 1, dim: 1, value: 1, sequence: 1 }, (m) => {
 *   const at = (name: string) => m.input(name, "token", { dtype: "i32" });
 *   const key = m.input("key", "token head dim");
 *   return linearRecurrence(key, key, m.input("value", "token head value"), {
 *     rule: "delta",
 *     decay: m.input("decay", "token head"),
 *     rate: m.input("rate", "token head"),
 *     state: m.state("state", "sequence head dim value"),
 *     sequence: at("sequence"),
 *     position: at("position"),
 *   });
 * });
 * const { outputs } = evaluate(trace(memory), {
 *   inputs: { key: [1, 1], value: [4, 6], decay: [1, 1], rate: [1, 0.5], sequence: [0, 0], position: [0, 1] },
 * });
 * console.assert(String(outputs.y?.data) === "4,5");
 * ```
 */
export function linearRecurrence<
  Q extends string,
  V extends string,
  S extends string,
  D extends string,
  R extends string,
>(
  query: Tensor<Q, "f32">,
  key: Tensor<NoInfer<Q>, "f32">,
  value: Tensor<V, "f32">,
  options: LinearRecurrenceOptions<
    Tensor<S, "f32">,
    Tensor<First<NoInfer<V>>, "i32">,
    Tensor<D, "f32">,
    Tensor<R, "f32">
  >,
): LinearRecurrence<V, S> {
  const { rule, decay, rate, state, sequence, position } = options;
  const tensors = {
    state,
    query,
    key,
    value,
    decay,
    rate,
    sequence,
    position,
  };
  traceOf(tensors, linearRecurrence);
  const [, kvHead, dim] = query.node.axes;
  const [token, head, valueDim] = value.node.axes;
  if (
    query.node.axes.length !== 3 || value.node.axes.length !== 3 ||
    state.node.axes.length !== 4
  ) {
    const error = new ModelError(
      `Cannot compute a recurrence of query '${query.axes}' and value '${value.axes}' with state '${state.axes}': expected 'token keyHead dim', 'token head valueDim' and 'sequence head dim valueDim'`,
      callSite(linearRecurrence),
    );
    return { y: refuse(error, [value]), state };
  }
  const y: Tensor<V, "f32"> = apply(
    linearRecurrence,
    "linearRecurrence",
    Object.values(tensors) as Tensor[],
    {
      rule,
      token: token!,
      head: head!,
      kvHead: kvHead!,
      dim: dim!,
      valueDim: valueDim!,
    },
  );
  return { y, state: apply(linearRecurrence, "nextState", [y], {}) };
}
