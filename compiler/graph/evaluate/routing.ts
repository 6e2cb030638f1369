/** Routing in the reference evaluator: the chosen experts of a token, their weights, and the kept choices. */

import { DataError } from "../../../spec/errors.ts";
import { giveSlots } from "./slots.ts";
import type { RouteOperand, RoutingRule } from "../graph.ts";
import type { Mark } from "../routing/presets.ts";
import { count, rounding, type Value } from "./value.ts";

/** The choices of every token, row-major [tokens, k]. */
export interface Routed {
  /** Lengths of the token axes. */
  readonly shape: readonly number[];
  readonly experts: number;
  readonly k: number;
  readonly index: readonly number[];
  readonly weight: readonly number[];
  /** Slot within the routing group; -1 if dropped. Empty if nothing can be dropped. */
  readonly slot: readonly number[];
  /** Slots of an expert in each routing group, groups in ascending order. Empty without capacity. */
  readonly capacity: readonly number[];
  /** Whether each token is padding; empty without a mask. */
  readonly padding: readonly boolean[];
  /** Row at the expert, over all groups; -1 if dropped. */
  readonly row: readonly number[];
  /** Rows per expert of a dispatched value. */
  readonly rows: number;
}

/** The indices of the `k` largest values, by value descending, then index ascending. */
export function largest(xs: readonly number[], k: number): number[] {
  return xs.map((_, i) => i).sort((i, j) => xs[j]! - xs[i]! || i - j)
    .slice(0, k);
}

/** Softmax of a row. */
export function softmaxRow(xs: readonly number[]): number[] {
  const top = xs.reduce((a, b) => Math.max(a, b), -Infinity);
  const powers = xs.map((x) => Math.exp(x - top));
  const total = powers.reduce((a, b) => a + b, 0);
  return powers.map((x) => x / total);
}

/** Log-sum-exp of a row. */
export function logSumExpRow(xs: readonly number[]): number {
  const top = xs.reduce((a, b) => Math.max(a, b), -Infinity);
  return top + Math.log(xs.reduce((sum, x) => sum + Math.exp(x - top), 0));
}

/**
 * Operands of a router besides logits: values over the same tokens. The routing group may be the first token axis
 * instead.
 */
export type RouteOperands =
  & {
    readonly [O in Exclude<RouteOperand, "group">]?: Value | undefined;
  }
  & { readonly group?: Value | "leading" | undefined };

/** Routes by a rule. `logits` are [tokens…, expert]. */
export function routeTokens(
  rule: RoutingRule,
  logits: Value,
  operands: RouteOperands = {},
): Routed {
  const shape = logits.shape.slice(0, -1);
  const experts = logits.shape[logits.shape.length - 1]!;
  const tokens = count(shape);
  const k = rule.topK;
  const { bias, noise, mask, choices, weights, group } = operands;
  const perGroup = group === "leading" ? tokens / shape[0]! : tokens;
  const round = rounding(logits);
  const index: number[] = [];
  const weight: number[] = [];
  const firstScore: number[] = [];
  for (let t = 0; t < tokens; t++) {
    const row = rowOf(logits, experts, t);
    const scores = scoreRow(rule, row).map(round);
    const chosen = rule.choose === "given"
      ? given(rowOf(choices!, k, t), experts)
      : rule.choose === "balanced"
      ? Array.from({ length: k }, (_, j) => (t % perGroup * k + j) % experts)
      : choose(
        rule,
        candidates(rule, row, scores, { bias: bias?.data, round }),
        noise ? rowOf(noise, experts, t) : undefined,
        round,
      );
    index.push(...chosen);
    firstScore.push(scores[chosen[0]!]!);
    weight.push(
      ...weigh(
        rule,
        weights
          ? rowOf(weights, k, t)
          : rule.score === "chosenSoftmax"
          ? softmaxRow(chosen.map((e) => scores[e]!)).map(round)
          : chosen.map((e) => scores[e]!),
      ).map(round),
    );
  }
  const padding = mask ? Array.from(mask.data, (m) => m === 0) : [];
  const base = { shape, experts, k, index, padding };
  if (rule.capacity === undefined) {
    const slot = padding.length === 0
      ? []
      : index.map((_, i) => padding[Math.floor(i / k)] ? -1 : 0);
    const kept = weight.map((w, i) => slot[i] === -1 ? 0 : w);
    const rows = arrivals(index, slot, experts);
    return { ...base, weight: kept, slot, capacity: [], ...rows };
  }
  const groups = Array.from(
    { length: tokens },
    (_, t) =>
      typeof group === "object" ? group.data[t]! : Math.floor(t / perGroup),
  );
  const { slot, capacity } = giveSlots(rule.capacity, {
    groups,
    index,
    weight,
    experts,
    k,
    padding,
    firstScore,
    random: operands.random?.data,
  });
  return {
    ...base,
    slot,
    capacity,
    weight: keep(rule, weight, slot).map(round),
    ...arrivals(index, slot, experts),
  };
}

/** A row of a value whose rows have `length` elements. */
function rowOf(value: Value, length: number, row: number): number[] {
  return Array.from(value.data.subarray(row * length, (row + 1) * length));
}

/** Scores of the experts. A softmax over the chosen experts is computed after selection. */
function scoreRow(rule: RoutingRule, logits: readonly number[]): number[] {
  switch (rule.score) {
    case "softmax":
      return softmaxRow(logits);
    case "sigmoid":
      return logits.map((x) => 1 / (1 + Math.exp(-x)));
    case "sqrtSoftplus":
      return logits.map((x) =>
        Math.sqrt(Math.max(x, 0) + Math.log(1 + Math.exp(-Math.abs(x))))
      );
    case "chosenSoftmax":
    case "none":
      return [...logits];
  }
}

/** Selection scores of the experts; -Infinity outside the kept groups. */
function candidates(
  rule: RoutingRule,
  logits: readonly number[],
  scores: readonly number[],
  { bias, round }: {
    bias: ArrayLike<number> | undefined;
    round: (x: number) => number;
  },
): readonly number[] {
  const groups = rule.expertGroups;
  const worth = bias || (groups?.best ?? 1) > 1
    ? scores.map((s, e) => round(s + (bias?.[e] ?? 0)))
    : logits;
  if (groups === undefined) return worth;
  const size = worth.length / groups.count;
  const sums = Array.from(
    { length: groups.count },
    (_, g) =>
      worth.slice(g * size, (g + 1) * size)
        .sort((a, b) => b - a).slice(0, groups.best)
        .reduce((sum, x) => round(sum + x)),
  );
  const kept = largest(sums, groups.keep);
  return worth.map((w, e) =>
    kept.includes(Math.floor(e / size)) ? w : -Infinity
  );
}

/** Chooses the best experts by selection score and noise; the first choice may ignore the noise. */
function choose(
  rule: RoutingRule,
  worth: readonly number[],
  noise: readonly number[] | undefined,
  round: (x: number) => number,
): number[] {
  if (noise === undefined) return largest(worth, rule.topK);
  const noisy = worth.map((w, e) => round(w + noise[e]!));
  if (rule.noisy !== "second") return largest(noisy, rule.topK);
  const first = largest(worth, 1);
  const others = largest(noisy, noisy.length).filter((e) => e !== first[0]);
  return [...first, ...others.slice(0, rule.topK - 1)];
}

/** Checks given choices. */
function given(choices: readonly number[], experts: number): readonly number[] {
  const wrong = choices.find((e) => !(e >= 0 && e < experts));
  if (wrong === undefined) return choices;
  throw new DataError(
    `Cannot route to expert ${wrong}: there are ${experts}. Give 0 to ${
      experts - 1
    }`,
  );
}

/** The weights of the chosen experts before dropping. */
function weigh(rule: RoutingRule, scores: readonly number[]): number[] {
  if (rule.normalize === "kept") return [...scores];
  const { scale = 1 } = rule;
  const sum = rule.normalize === "chosen" ? divisor(rule, scores) : 1;
  return scores.map((w) => w / sum * scale);
}

/** The divisor of weights. */
function divisor(rule: RoutingRule, scores: readonly number[]): number {
  const { epsilon = 0, minSum = -Infinity } = rule;
  return Math.max(scores.reduce((a, b) => a + b, 0) + epsilon, minSum);
}

/** The weights after dropping: 0 for dropped choices; optionally divided by the sum of the kept ones. */
function keep(
  rule: RoutingRule,
  weight: readonly number[],
  slot: readonly number[],
): number[] {
  const { topK: k, scale = 1 } = rule;
  const kept = weight.map((w, i) => slot[i]! < 0 ? 0 : w);
  if (rule.normalize !== "kept") return kept;
  return kept.map((w, i) => {
    const first = i - i % k;
    return w === 0
      ? 0
      : w / divisor(rule, kept.slice(first, first + k)) * scale;
  });
}

/** The row of each choice at its expert, in token order. */
function arrivals(
  index: readonly number[],
  slot: readonly number[],
  experts: number,
) {
  const next = new Array<number>(experts).fill(0);
  const row = index.map((e, i) => (slot[i] ?? 0) < 0 ? -1 : next[e]!++);
  return { row, rows: Math.max(0, ...next) };
}

/** A routing with given choices. Slots only mark dropped choices; rows are in token order. */
export function givenRouting(
  [index, weight, slot]: readonly Value[],
  experts: number,
): Routed {
  const shape = index!.shape.slice(0, -1);
  const k = index!.shape.at(-1)!;
  const slots = slot ? [...slot.data] : [];
  const chosen = given([...index!.data], experts);
  return {
    shape,
    experts,
    k,
    index: chosen,
    slot: slots,
    weight: [...weight!.data],
    capacity: [],
    padding: [],
    ...arrivals(chosen, slots, experts),
  };
}

/** The number of times each token chose each expert, [tokens…, expert]. */
export function marks(
  { shape, experts, k, index, slot, padding }: Routed,
  field: Mark,
): number[] {
  const result = new Array<number>(count(shape) * experts).fill(0);
  index.forEach((e, i) => {
    const t = Math.floor(i / k);
    const dropped = (slot[i] ?? 0) < 0;
    if (field === "kept" ? dropped : padding[t]) return;
    if (field === "first" && i % k > 0) return;
    result[t * experts + (field === "settled" && dropped ? 0 : e)]!++;
  });
  return result;
}
