/** Routing in the reference evaluator: who goes where, and the way there and back. */

import { invariant } from "../../spec/errors.ts";
import type { NodeOf } from "./graph.ts";
import { count, put, type Value, zeros } from "./value.ts";

/** The choices of every token, row-major [tokens, k]. */
export interface Routed {
  /** Lengths of the token axes. */
  readonly shape: readonly number[];
  readonly experts: number;
  readonly k: number;
  readonly index: readonly number[];
  readonly weight: readonly number[];
  /** Slot within the routing group; -1 if dropped. Empty without capacity. */
  readonly slot: readonly number[];
  /** Row at the expert, over all groups; -1 if dropped. */
  readonly row: readonly number[];
  /** Rows per expert that a dispatched value has room for. */
  readonly rows: number;
}

/** The indices of the `k` largest, by value descending, index ascending. */
export function largest(xs: readonly number[], k: number): number[] {
  return xs.map((_, i) => i).sort((i, j) => xs[j]! - xs[i]! || i - j)
    .slice(0, k);
}

/** softmax of a row, every result rounded to f32. */
export function softmaxRow(xs: readonly number[]): number[] {
  const top = xs.reduce((a, b) => Math.max(a, b), -Infinity);
  const powers = xs.map((x) => Math.exp(x - top));
  const total = powers.reduce((a, b) => a + b, 0);
  return powers.map((x) => Math.fround(x / total));
}

/** Route by the node's rule. `logits` is [tokens…, expert] in any order of axes that the caller made so. */
export function routeTokens(
  node: NodeOf<"route">,
  logits: Value,
  group: Value | undefined,
  noise: Value | undefined,
): Routed {
  const { rule, leadingGroup } = node.params;
  const shape = logits.shape.slice(0, -1);
  const experts = logits.shape[logits.shape.length - 1]!;
  const tokens = count(shape);
  const k = rule.topK;
  const index: number[] = [];
  const weight: number[] = [];
  const at = (value: Value, t: number) =>
    Array.from(value.data.subarray(t * experts, (t + 1) * experts));
  for (let t = 0; t < tokens; t++) {
    const row = at(logits, t);
    const scores = softmaxRow(row);
    const chosen = rule.capacity === "fairscale.top2"
      ? top2(scores, row, noise ? at(noise, t) : undefined)
      : largest(row, k);
    const raw = chosen.map((e) => scores[e]!);
    const total = raw.reduce((a, b) => a + b, 0);
    index.push(...chosen);
    weight.push(
      ...rule.normalize === "chosen"
        ? raw.map((w) => Math.fround(w / total))
        : raw,
    );
  }
  const base = { shape, experts, k, index };
  if (rule.capacity === undefined) {
    return { ...base, weight, slot: [], ...arrivals(index, experts) };
  }
  const perGroup = leadingGroup === undefined ? tokens : tokens / shape[0]!;
  const groups = Array.from(
    { length: tokens },
    (_, t) => group ? group.data[t]! : Math.floor(t / perGroup),
  );
  const { slot, row, rows } = fairscaleSlots(groups, index, experts);
  return { ...base, weight: kept(weight, slot, k), slot, row, rows };
}

/** fairscale: the best, and the best of the others after noise. */
function top2(
  scores: readonly number[],
  logits: readonly number[],
  noise: readonly number[] | undefined,
): number[] {
  const first = largest(scores, 1)[0]!;
  const noisy = logits.map((x, e) =>
    e === first ? -Infinity : Math.fround(x + (noise?.[e] ?? 0))
  );
  return [first, largest(noisy, 1)[0]!];
}

/** Without capacity: rows in the order of tokens. */
function arrivals(index: readonly number[], experts: number) {
  const next = new Array<number>(experts).fill(0);
  const row = index.map((e) => next[e]!++);
  return { row, rows: Math.max(0, ...next) };
}

/** fairscale: in each group, first choices take slots before second ones; what does not fit is dropped. */
function fairscaleSlots(
  groups: readonly number[],
  index: readonly number[],
  experts: number,
) {
  const slot = new Array<number>(index.length).fill(-1);
  const row = new Array<number>(index.length).fill(-1);
  let before = 0;
  for (const group of [...new Set(groups)].sort((a, b) => a - b)) {
    const members = groups.flatMap((g, t) => g === group ? [t] : []);
    const capacity = Math.floor((2 * members.length) / experts);
    const next = new Array<number>(experts).fill(0);
    for (const choice of [0, 1]) {
      for (const t of members) {
        const i = t * 2 + choice;
        const place = next[index[i]!]!++;
        if (place >= capacity) continue;
        slot[i] = place;
        row[i] = before + place;
      }
    }
    before += capacity;
  }
  return { slot, row, rows: before };
}

/** Weights divided by the sum of those kept, at least the f32 epsilon; 0 for those dropped. */
function kept(
  weight: readonly number[],
  slot: readonly number[],
  k: number,
): number[] {
  return weight.map((w, i) => {
    const first = i - i % k;
    let total = 0;
    for (let j = first; j < first + k; j++) {
      if (slot[j]! >= 0) total += weight[j]!;
    }
    return slot[i]! < 0 ? 0 : Math.fround(w / Math.max(total, 2 ** -23));
  });
}

/** [tokens…, rest…] -> [expert, slot, rest…]; rows that no token takes are zero. */
export function dispatchRows(
  node: NodeOf<"dispatch">,
  x: Value,
  routed: Routed,
): Value {
  const rest = x.shape.slice(routed.shape.length);
  const width = count(rest);
  const result = zeros(
    node.axes,
    [routed.experts, routed.rows, ...rest],
    node.dtype,
  );
  routed.index.forEach((expert, i) => {
    if (routed.row[i]! < 0) return;
    const from = Math.floor(i / routed.k) * width;
    const to = (expert * routed.rows + routed.row[i]!) * width;
    result.data.set(x.data.subarray(from, from + width), to);
  });
  return result;
}

/** [expert, slot, rest…] -> [tokens…, rest…]: the weighted sum over choices, in their order. */
export function combineRows(
  node: NodeOf<"combine">,
  y: Value,
  routed: Routed,
): Value {
  const rest = y.shape.slice(2);
  const width = count(rest);
  const result = zeros(node.axes, [...routed.shape, ...rest], node.dtype);
  invariant(y.shape[1] === routed.rows, "a dispatched value changed its rows");
  for (let t = 0; t < count(routed.shape); t++) {
    for (let d = 0; d < width; d++) {
      let total = 0;
      for (let i = t * routed.k; i < (t + 1) * routed.k; i++) {
        if (routed.row[i]! < 0) continue;
        const from = (routed.index[i]! * routed.rows + routed.row[i]!) * width;
        total += routed.weight[i]! * y.data[from + d]!;
      }
      put(result, t * width + d, total);
    }
  }
  return result;
}
