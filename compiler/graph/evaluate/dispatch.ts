/** Dispatch and combine in the reference evaluator. */

import { invariant } from "../../../spec/errors.ts";
import type { Routed } from "./routing.ts";
import { isWeighted } from "../graph.ts";
import { count, put, type Shown, type Value, zeros } from "./value.ts";

/**
 * [tokens…, rest…] -> [expert, slot, rest…], times the weight if dispatch applies weights; unused slots are zero.
 */
export function dispatchRows(
  node: Shown<"dispatch">,
  x: Value,
  routed: Routed,
): Value {
  const rest = x.shape.slice(routed.shape.length);
  const width = count(rest);
  const weighed = isWeighted(node);
  const result = zeros(
    node.axes,
    [routed.experts, routed.rows, ...rest],
    node.dtype,
  );
  routed.index.forEach((expert, i) => {
    if (routed.row[i]! < 0) return;
    const from = Math.floor(i / routed.k) * width;
    const to = (expert * routed.rows + routed.row[i]!) * width;
    for (let d = 0; d < width; d++) {
      const value = x.data[from + d]!;
      put(result, to + d, weighed ? routed.weight[i]! * value : value);
    }
  });
  return result;
}

/**
 * [expert, slot, rest…] -> [tokens…, rest…]: the sum over choices in order, weighted if combine applies weights.
 */
export function combineRows(
  node: Shown<"combine">,
  y: Value,
  routed: Routed,
): Value {
  const rest = y.shape.slice(2);
  const width = count(rest);
  const result = zeros(node.axes, [...routed.shape, ...rest], node.dtype);
  invariant(y.shape[1] === routed.rows, "a dispatched value changed its rows");
  const weighed = isWeighted(node);
  for (let t = 0; t < count(routed.shape); t++) {
    for (let d = 0; d < width; d++) {
      let total = 0;
      for (let i = t * routed.k; i < (t + 1) * routed.k; i++) {
        if (routed.row[i]! < 0) continue;
        const from = (routed.index[i]! * routed.rows + routed.row[i]!) * width;
        total += (weighed ? routed.weight[i]! : 1) * y.data[from + d]!;
      }
      put(result, t * width + d, total);
    }
  }
  return result;
}

/** [expert, slot, rest…] -> [tokens…, choice, rest…]: the row of each choice; 0 for dropped ones. */
export function returnedRows(
  node: Shown<"combineTranspose">,
  y: Value,
  routed: Routed,
): Value {
  const rest = y.shape.slice(2);
  const width = count(rest);
  const shape = [...routed.shape, routed.k, ...rest];
  const result = zeros(node.axes, shape, node.dtype);
  routed.index.forEach((expert, i) => {
    if (routed.row[i]! < 0) return;
    const from = (expert * routed.rows + routed.row[i]!) * width;
    for (let d = 0; d < width; d++) {
      put(result, i * width + d, y.data[from + d]!);
    }
  });
  return result;
}
