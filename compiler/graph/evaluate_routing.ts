/** Routing in the reference evaluator: who goes where, and the way there and back. */

import { DataError, invariant } from "../../spec/errors.ts";
import { isRouting, type NodeOf, type RoutingRule } from "./graph.ts";
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

/** What a routing may be given besides logits. */
export interface RouteOperands {
  /** The routing group of each token; or the first token axis is the group. */
  readonly group?: Value | "leading" | undefined;
  readonly noise?: Value | undefined;
  readonly bias?: Value | undefined;
}

/** Route by a rule. `logits` is [tokens…, expert] in any order of axes that the caller made so. */
export function routeTokens(
  rule: RoutingRule,
  logits: Value,
  { group, noise, bias }: RouteOperands,
): Routed {
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
    const scores = scoreRow(rule, row);
    const chosen = rule.capacity === "fairscale.top2"
      ? top2(scores, row, noise ? at(noise, t) : undefined)
      : largest(candidates(rule, row, scores, bias?.data), k);
    index.push(...chosen);
    weight.push(...weigh(rule, chosen.map((e) => scores[e]!)));
  }
  const base = { shape, experts, k, index };
  if (rule.capacity === undefined) {
    return { ...base, weight, slot: [], ...arrivals(index, experts) };
  }
  const perGroup = group === "leading" ? tokens / shape[0]! : tokens;
  const groups = Array.from(
    { length: tokens },
    (_, t) =>
      typeof group === "object" ? group.data[t]! : Math.floor(t / perGroup),
  );
  const { slot, row, rows } = fairscaleSlots(groups, index, experts);
  return { ...base, weight: kept(weight, slot, k), slot, row, rows };
}

/** What each expert scores. A softmax over the chosen is taken when they are known. */
function scoreRow(rule: RoutingRule, logits: readonly number[]): number[] {
  switch (rule.score) {
    case "softmax":
      return softmaxRow(logits);
    case "sigmoid":
      return logits.map((x) => Math.fround(1 / (1 + Math.exp(-x))));
    case "chosenSoftmax":
    case "none":
      return [...logits];
  }
}

/** What experts are chosen by; -Infinity outside of the kept groups. */
function candidates(
  rule: RoutingRule,
  logits: readonly number[],
  scores: readonly number[],
  bias: ArrayLike<number> | undefined,
): readonly number[] {
  const groups = rule.expertGroups;
  const worth = bias || groups?.score === "top2Sum"
    ? scores.map((s, e) => Math.fround(s + (bias?.[e] ?? 0)))
    : logits;
  if (groups === undefined) return worth;
  const size = worth.length / groups.count;
  const best = Array.from({ length: groups.count }, (_, g) => {
    const [first, second] = worth.slice(g * size, (g + 1) * size)
      .sort((a, b) => b - a);
    return groups.score === "max" ? first! : Math.fround(first! + second!);
  });
  const kept = largest(best, groups.keep);
  return worth.map((w, e) =>
    kept.includes(Math.floor(e / size)) ? w : -Infinity
  );
}

/** The weights of the chosen, from their scores. */
function weigh(rule: RoutingRule, scores: readonly number[]): number[] {
  const { normalize, epsilon = 0, scale = 1 } = rule;
  const raw = rule.score === "chosenSoftmax" ? softmaxRow(scores) : scores;
  const sum = raw.reduce((a, b) => a + b, 0) + epsilon;
  return raw.map((w) =>
    Math.fround((normalize === "chosen" ? w / sum : w) * scale)
  );
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

/** A routing by given choices: slots only say what is dropped; rows are in the order of tokens. */
export function givenRouting(
  [index, weight, slot]: readonly Value[],
  experts: number,
): Routed {
  const shape = index!.shape.slice(0, -1);
  const k = index!.shape.at(-1)!;
  const next = new Array<number>(experts).fill(0);
  const slots = slot ? [...slot.data] : [];
  const row = [...index!.data].map((e, i) => {
    if (!(e >= 0 && e < experts)) {
      throw new DataError(
        `Cannot route to expert ${e}: there are ${experts}. Give 0 to ${
          experts - 1
        }`,
      );
    }
    return (slots[i] ?? 0) < 0 ? -1 : next[e]!++;
  });
  return {
    ...{ shape, experts, k, slot: slots, row },
    index: [...index!.data],
    weight: [...weight!.data],
    rows: Math.max(0, ...next),
  };
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

/** Whether weights multiply what experts are given. */
function weighsInput(node: NodeOf<"dispatch"> | NodeOf<"combine">): boolean {
  const route = node.inputs[1]!;
  return isRouting(route) && route.params.rule.weighs === "input";
}

/** [tokens…, rest…] -> [expert, slot, rest…], times the weight if it is the input that is weighed; rows that no token takes are zero. */
export function dispatchRows(
  node: NodeOf<"dispatch">,
  x: Value,
  routed: Routed,
): Value {
  const rest = x.shape.slice(routed.shape.length);
  const width = count(rest);
  const weighed = weighsInput(node);
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
  const weighed = weighsInput(node);
  for (let t = 0; t < count(routed.shape); t++) {
    for (let d = 0; d < width; d++) {
      let total = 0;
      for (let i = t * routed.k; i < (t + 1) * routed.k; i++) {
        if (routed.row[i]! < 0) continue;
        const from = (routed.index[i]! * routed.rows + routed.row[i]!) * width;
        total += (weighed ? 1 : routed.weight[i]!) * y.data[from + d]!;
      }
      put(result, t * width + d, total);
    }
  }
  return result;
}
