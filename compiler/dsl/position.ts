/** Ops that depend on the position of a token: embeddings and rotary positions. */

import type { DType } from "../../spec/dtype.ts";
import { ModelError } from "../../spec/errors.ts";
import { messages as say } from "../graph/messages.ts";
import { callSite } from "../../spec/call_site.ts";
import {
  apply,
  axisOf,
  names,
  refuse,
  type Tensor,
  traceOf,
} from "./tensor.ts";
import type { Axis, CanPosition, Cat, Float, Without } from "./types.ts";

/**
 * The row of `table` along `axis` for each of `ids`. Shared axes are batch axes: ids "token choice" select elements of
 * "token expert" along "expert" in each token's own row.
 *
 * Axes: those of `ids`, then those that only `table` has, without `axis`. Dtype: that of `table`; `ids` are "i32".
 * Errors: an axis that `table` does not have; ids of another dtype; at run time, an id out of range. Gradient: by
 * `table`, rows of the result are added by id, in order. Sharding: along every axis. If `axis` is sharded, each rank
 * reads its rows, and the results are reduced.
 *
 * @example
 * ```ts
 * const lookup = model({ token: 2, vocab: 3, embed: 1 }, (m) => ({
 *   y: embedding(m.param("table", "vocab embed"), m.input("ids", "token", { dtype: "i32" }), "vocab"),
 * }));
 * const { outputs } = evaluate(trace(lookup), {
 *   inputs: { ids: [2, 0] },
 *   params: { table: [5, 6, 7] },
 * });
 * console.assert(String(outputs.y?.data) === "7,5");
 * ```
 */
export function embedding<
  A extends string,
  D extends DType,
  I extends string,
  const K extends Axis<A>,
>(
  table: Tensor<A, D>,
  ids: Tensor<I, "i32">,
  axis: K,
): Tensor<Cat<I, Without<A, K | Axis<I>>>, D> {
  return apply(embedding, "embedding", [table, ids], { over: axis });
}

/** Options of `rope`. */
export interface RopeOptions<P> {
  /** The position of each token, "i32". */
  readonly position: P;
  /** Pair j of d/2 is rotated by position * theta^(-2j/d). Default: 10000. */
  readonly theta?: number;
  /** Exclusive upper bound of positions. Default: the size of the model's axis `context`. */
  readonly positions?: number;
  /**
   * Angle per position of each pair, instead of `theta`. With fewer than d/2 pairs, only the first elements are
   * rotated.
   */
  readonly inverseFrequencies?: readonly number[];
  /** Multiplies the result; default 1. */
  readonly scale?: number;
  /** Pairs are (2j, 2j + 1) instead of (j, j + n), with n pairs. */
  readonly interleaved?: boolean;
}

/**
 * Rotary position embedding: rotates pairs of elements along `axis` by an angle proportional to the position.
 *
 * Axes: those of `x`; `position` has some of them. Dtype: "f32" or "f16"; `position` is "i32". Errors: an axis that `x`
 * does not have, or of odd length; a position with other axes; no bound for positions. Gradient: the inverse rotation.
 * Sharding: along all axes except `axis`, which is replicated.
 *
 * @example
 * ```ts
 * const turn = model({ token: 1, dim: 2, context: 4 }, (m) => ({
 *   y: rope(m.input("x", "token dim"), "dim", {
 *     position: m.input("position", "token", { dtype: "i32" }),
 *     inverseFrequencies: [Math.PI / 2],
 *   }),
 * }));
 * const { outputs } = evaluate(trace(turn), { inputs: { x: [1, 0], position: [1] } });
 * console.assert(Math.abs(outputs.y!.data[1]! - 1) < 1e-6);
 * ```
 */
export function rope<
  A extends string,
  D extends Float,
  P extends string,
  const K extends Axis<A>,
>(
  x: Tensor<A, D>,
  axis: K,
  options: RopeOptions<CanPosition<NoInfer<A>, P, Tensor<P, "i32">>>,
): Tensor<A, D> {
  const position = options.position as unknown as Tensor;
  const trace = traceOf({ x, position }, rope);
  const span = callSite(rope);
  const sizeOf = (name: string) => trace.axes[axisOf(name, [x], trace)]?.size;
  if (!names(x.axes).includes(axis)) {
    return refuse(new ModelError(say.axis("rope", x.node.axes, axis), span), [
      x,
    ]);
  }
  const length = sizeOf(axis);
  if (length === undefined || length % 2 !== 0) {
    const error = new ModelError(
      `Cannot rope '${x.axes}' over '${axis}': its size is ${
        length ?? "not in the model"
      }, expected an even number`,
      span,
    );
    return refuse(error, [x]);
  }
  const positions = options.positions ?? sizeOf("context");
  if (positions === undefined) {
    const error = new ModelError(
      `Cannot rope '${x.axes}': the positions are unbounded. Give 'positions', or declare an axis 'context' in the model`,
      span,
    );
    return refuse(error, [x]);
  }
  const { theta = 10000, inverseFrequencies } = options;
  return apply(rope, "rope", [x, position], {
    over: axis,
    inverseFrequencies: inverseFrequencies ??
      Array.from({ length: length / 2 }, (_, j) => theta ** (-2 * j / length)),
    scale: options.scale ?? 1,
    interleaved: options.interleaved ?? false,
    positions,
  });
}
