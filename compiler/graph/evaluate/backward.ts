/** Primitives of derivatives in the reference evaluator: rows summed by id, and the backward pass of attention. */

import type { AttentionParams } from "../attention_params.ts";
import { seenPositions, within } from "./position.ts";
import { logSumExpRow } from "./routing.ts";
import {
  lengthOf,
  put,
  type Shown,
  strides,
  type Value,
  visit,
  zeros,
} from "./value.ts";

/** Sums rows by id. */
export function scatterAddRows(
  node: Shown<"scatterAdd">,
  [rows, ids]: readonly [Value, Value],
  shape: readonly number[],
): Value {
  const result = zeros(node.axes, shape, node.dtype);
  const { over } = node.params;
  const step = strides(result, [over])[0]!;
  const length = lengthOf(result, over);
  // Sums in double precision and rounds once.
  const sums = new Float64Array(result.data.length);
  const steps = [strides(result, rows.axes), strides(ids, rows.axes)];
  visit(rows.shape, steps, ([entry, id], n) => {
    const row = within(ids.data[id!]!, length, `'${over}'`);
    sums[entry! + row * step]! += rows.data[n]!;
  });
  sums.forEach((sum, i) => put(result, i, sum));
  return result;
}

/** A query of one head, and a key that it attends to. */
interface Seen {
  /** Index and offset of the query. */
  readonly query: number;
  readonly from: number;
  /** Offset of the key, and its score before the softmax. */
  readonly key: number;
  readonly score: number;
}

/** Sequence and position of a token. */
interface TokenPosition {
  readonly sequence: number;
  readonly position: number;
}

/** Visits every query of every head, with the keys that it attends to. */
function eachQuery(
  params: AttentionParams,
  [q, keys, selected]: readonly [Value, Value, Value | undefined],
  positionOf: (token: number) => TokenPosition,
  each: (seen: readonly Seen[], query: number) => void,
): void {
  const [tokens, heads, dim] = q.shape as [number, number, number];
  const { kvHead, scale } = params;
  const kvHeads = kvHead === undefined ? 1 : lengthOf(keys, kvHead);
  const contexts = keys.shape[1]!;
  for (let query = 0; query < tokens * heads; query++) {
    const t = Math.floor(query / heads);
    const kv = Math.floor((query % heads) / (heads / kvHeads));
    const { sequence, position } = positionOf(t);
    const seen: Seen[] = [];
    const at = { t, p: position, kv, selected };
    for (const c of seenPositions(params, at)) {
      const row = (sequence * contexts + c) * kvHeads + kv;
      const [from, key] = [query * dim, row];
      let sum = 0;
      for (let d = 0; d < dim; d++) {
        sum += q.data[from + d]! * keys.data[row * dim + d]!;
      }
      seen.push({ query, from, key, score: sum * scale });
    }
    each(seen, query);
  }
}

/** The log-sum-exp of every query's scores. */
export function sumScores(
  node: Shown<"attentionSum">,
  [q, keys, sequence, position, ...more]: readonly Value[],
): Value {
  const sinks = node.params.sinks ? more[0] : undefined;
  const selected = more[sinks ? 1 : 0];
  const [tokens, heads] = q!.shape as [number, number];
  const result = zeros(node.axes, [tokens, heads], node.dtype);
  eachQuery(
    node.params,
    [q!, keys!, selected],
    (t) => ({ sequence: sequence!.data[t]!, position: position!.data[t]! }),
    (seen, query) => {
      const scores = seen.map(({ score }) => score);
      const sink = sinks ? [sinks.data[query % heads]!] : [];
      put(result, query, logSumExpRow([...scores, ...sink]));
    },
  );
  return result;
}

/** The cotangent of queries, keys or values. */
export function attendBack(
  node: Shown<"attentionGrad">,
  [q, keys, values, entry, dy, statistics, selected]: readonly Value[],
): Value {
  const { of, scale, shared } = node.params;
  const like = { query: q!, keys: keys!, values: values! }[of];
  const sums = new Float64Array(like.data.length);
  const [, , dim] = q!.shape as [number, number, number];
  const contexts = keys!.shape[1]!;
  const valueDim = dy!.shape[2]!;
  const valueStride = values!.shape.at(-1)!;
  const sparse = Number(node.params.sparse ?? false);
  const positionOf = (t: number): TokenPosition => ({
    sequence: Math.floor(entry!.data[t]! / (contexts + sparse)),
    position: entry!.data[t]! % (contexts + sparse) - sparse,
  });
  eachQuery(node.params, [q!, keys!, selected], positionOf, (seen, query) => {
    const logSum = statistics!.data[2 * query]!;
    const product = statistics!.data[2 * query + 1]!;
    for (const { from, key, score } of seen) {
      const weight = Math.exp(score - logSum);
      if (of === "values" || of === "keys" && shared) {
        for (let d = 0; d < valueDim; d++) {
          sums[key * valueStride + d]! += weight *
            dy!.data[query * valueDim + d]!;
        }
      }
      if (of === "values") continue;
      let change = 0;
      for (let d = 0; d < valueDim; d++) {
        change += dy!.data[query * valueDim + d]! *
          values!.data[key * valueStride + d]!;
      }
      const slope = weight * (change - product) * scale;
      for (let d = 0; d < dim; d++) {
        if (of === "query") {
          sums[from + d]! += slope * keys!.data[key * dim + d]!;
        } else sums[key * dim + d]! += slope * q!.data[from + d]!;
      }
    }
  });
  const result = zeros(node.axes, like.shape, node.dtype);
  sums.forEach((sum, i) => put(result, i, sum));
  return result;
}
