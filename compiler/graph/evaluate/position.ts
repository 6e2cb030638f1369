/** Embedding, rotary positions, cache and attention in the reference evaluator. */

import { DataError } from "../../../spec/errors.ts";
import type { AttentionParams } from "../attention_params.ts";
import { softmaxRow } from "./routing.ts";
import {
  count,
  lengthOf,
  put,
  rounding,
  type Shown,
  strides,
  type Value,
  visit,
  zeros,
} from "./value.ts";

/** Checks that a number is an integer from 0 below `end`. */
export function within(at: number, end: number, what: string): number {
  if (at >= 0 && at < end) return at;
  throw new DataError(
    `Cannot read ${what} ${at}: expected a whole number from 0 to ${end - 1}`,
  );
}

/** The row of `table` for each id. Shared axes are batch axes. */
export function embed(
  node: Shown<"embedding">,
  table: Value,
  ids: Value,
): Value {
  const { over } = node.params;
  const shape = node.axes.map((axis) =>
    lengthOf(ids.axes.includes(axis) ? ids : table, axis)
  );
  const result = zeros(node.axes, shape, node.dtype);
  const step = strides(table, [over])[0]!;
  const steps = [strides(ids, node.axes), strides(table, node.axes)];
  visit(shape, steps, ([id, offset], n) => {
    const row = within(ids.data[id!]!, lengthOf(table, over), `'${over}'`);
    result.data[n] = table.data[row * step + offset!]!;
  });
  return result;
}

/** Rotates pairs along an axis by position times frequency. */
export function rotate(
  node: Shown<"rope">,
  x: Value,
  position: Value,
): Value {
  const { over, inverseFrequencies, scale, interleaved, positions } =
    node.params;
  const rest = x.axes.filter((axis) => axis !== over);
  const half = inverseFrequencies.length;
  const round = rounding(x);
  const step = strides(x, [over])[0]!;
  const result = zeros(node.axes, x.shape, node.dtype);
  result.data.set(x.data);
  const shape = rest.map((axis) => lengthOf(x, axis));
  visit(shape, [strides(x, rest), strides(position, rest)], ([start, at]) => {
    const p = within(position.data[at!]!, positions, "position");
    for (let j = 0; j < half; j++) {
      const angle = round(p * round(inverseFrequencies[j]!));
      const cosine = round(Math.cos(angle) * scale);
      const sine = round(Math.sin(angle) * scale);
      const first = start! + (interleaved ? 2 * j : j) * step;
      const second = start! + (interleaved ? 2 * j + 1 : j + half) * step;
      const [a, b] = [x.data[first]!, x.data[second]!];
      put(result, first, a * cosine - b * sine);
      put(result, second, b * cosine + a * sine);
    }
  });
  return result;
}

/** The state after writing every token's value at its sequence and position. */
export function writeCache(
  state: Value,
  value: Value,
  { sequence, position, sparse }: {
    readonly sequence: Value;
    readonly position: Value;
    readonly sparse: boolean;
  },
): Value {
  const data = state.data.slice();
  const [sequences, contexts] = state.shape;
  const width = count(state.shape.slice(2));
  for (let t = 0; t < value.shape[0]!; t++) {
    if (sparse && position.data[t]! < 0) continue;
    const s = within(sequence.data[t]!, sequences!, "sequence");
    const p = within(position.data[t]!, contexts!, "position");
    data.set(
      value.data.subarray(t * width, (t + 1) * width),
      (s * contexts! + p) * width,
    );
  }
  return { ...state, data };
}

/** The first position that the token at `p` attends to. */
function firstPosition(
  { window, chunk }: AttentionParams,
  p: number,
): number {
  return Math.max(
    0,
    window === undefined ? 0 : p - window + 1,
    chunk === undefined ? 0 : p - p % chunk,
  );
}

/** The positions that token `t` at `p` attends to with key head `kv`. */
export function seenPositions(
  params: AttentionParams,
  { t, p, kv, selected }: {
    readonly t: number;
    readonly p: number;
    readonly kv: number;
    readonly selected: Value | undefined;
  },
): number[] {
  if (selected === undefined) {
    const first = firstPosition(params, p);
    return Array.from({ length: p - first + 1 }, (_, i) => first + i);
  }
  const width = selected.shape.at(-1)!;
  const row = params.selectedPerHead ? t * selected.shape[1]! + kv : t;
  const list = [...selected.data.subarray(row * width, (row + 1) * width)];
  const end = list.findIndex((c) => c < 0);
  const seen = end < 0 ? list : list.slice(0, end);
  const { selectedBlock: size } = params;
  if (size === undefined) return seen;
  return seen.flatMap((block) =>
    Array.from({ length: size }, (_, i) => block * size + i)
  ).filter((c) => c <= p);
}

/** Attention of every token's heads over the visible positions of its sequence. `width`: the length of a value. */
export function attend(
  node: Shown<"attention">,
  [q, keys, values, sequence, position, ...more]: readonly Value[],
  width: number,
): Value {
  const { params } = node;
  const { scale, kvHead } = params;
  const sinks = params.sinks ? more.shift() : undefined;
  const selected = params.selected === undefined ? undefined : more.shift();
  const [entries, last] = params.entries === undefined ? [] : more;
  const [tokens, heads, dim] = q!.shape;
  const contexts = keys!.shape[1]!;
  const kvHeads = kvHead === undefined ? 1 : lengthOf(keys!, kvHead);
  const valueStride = values!.shape.at(-1)!;
  const result = zeros(node.axes, [tokens!, heads!, width], node.dtype);
  for (let t = 0; t < tokens!; t++) {
    const s = sequence!.data[t]!;
    const p = position!.data[t]!;
    const ofKeys = entries ? undefined : selected;
    const more = entries
      ? selected
        ? seenPositions(params, { t, p, kv: 0, selected })
        : Array.from({ length: last!.data[t]! + 1 }, (_, c) => c)
      : [];
    for (let h = 0; h < heads!; h++) {
      const kv = Math.floor(h / (heads! / kvHeads));
      const seen = seenPositions(params, { t, p, kv, selected: ofKeys });
      const from = (t * heads! + h) * dim!;
      const rows = [
        ...seen.map((c) => ({
          key: keys!.data,
          value: values!.data,
          row: (s * contexts + c) * kvHeads + kv,
        })),
        ...more.map((c) => ({
          key: entries!.data,
          value: entries!.data,
          row: s * entries!.shape[1]! + c,
        })),
      ];
      const scores = rows.map(({ key, row }) => {
        let sum = 0;
        for (let d = 0; d < dim!; d++) {
          sum += q!.data[from + d]! * key[row * dim! + d]!;
        }
        return sum * scale;
      });
      const weights = softmaxRow(
        sinks ? [...scores, sinks.data[h]!] : scores,
      );
      for (let d = 0; d < width; d++) {
        let sum = 0;
        rows.forEach(({ value, row }, i) =>
          sum += weights[i]! * value[row * valueStride + d]!
        );
        put(result, (t * heads! + h) * width + d, sum);
      }
    }
  }
  return result;
}
