/**
 * Routers: experts and weights of a token. One invocation per token scores its logits, selects the best groups of
 * experts if there are groups, selects the k best experts, and divides their weights by their sum. spec/routing.md
 * lists formulas and sources of each preset.
 */

import { invariant } from "../../../spec/errors.ts";
import type { RouteOperand, RoutingRule } from "../../graph/graph.ts";
import type { Expr, Hole, Kernel, KernelText } from "../kernel.ts";
import { bindings, elementwise, wgsl } from "../kernel.ts";
import { blockedSum } from "../pieces/blocked_sum.ts";
import { eachLargest, largest } from "../pieces/selection.ts";
import { LOWEST } from "../pieces/numbers.ts";

/** Operands of a router besides its logits. */
export type RouterOperand = Exclude<RouteOperand, "group" | "random">;

/** A router. Its grid is `elementwiseGrid(tokens)`. */
export interface RouterOptions {
  readonly name: string;
  readonly experts: number;
  readonly rule: RoutingRule;
  readonly tokens: Expr;
  /** Tokens per routing group, for balanced choices. Default: all. */
  readonly group?: Expr;
  readonly operands?: readonly RouterOperand[];
}

/** The operands and results of routers. */
export const ROUTER_BINDINGS = bindings({
  logits: "f32 [token, expert]",
  noise: "f32 [token, expert]",
  bias: "f32 [expert]",
  weights: "f32 [token, k]",
  mask: "i32 [token]",
  choices: "i32 [token, k]",
}, {
  // 0 or -1, if only padding is dropped.
  slot: "i32 [token, k]",
  first: "f32 [token]",
  index: "i32 [token, k]",
  weight: "f32 [token, k]",
});

/** Chosen experts and their weights. If weights are divided by the sum of kept ones, they are the scores. */
export function router(o: RouterOptions): Kernel {
  const { experts, rule, operands = [] } = o;
  const k = rule.topK;
  invariant(k <= experts, "no more choices than experts");
  const padding = operands.includes("mask") && rule.capacity === undefined;
  const firstScore = wgsl`
    let best_first = index[choices_at];
    ${storeFirst(rule, wgsl`u32(best_first)`)}`;
  const maskPadding = wgsl`
    // Padding has no slot and no weight.
    let is_padding = mask[i] == 0;
    for (var j = 0u; j < ${k}; j++) {
      slot[choices_at + j] = select(0i, -1, is_padding);
      if (is_padding) { weight[choices_at + j] = 0.0; }
    }`;
  return elementwise({
    name: o.name,
    count: o.tokens,
    bindings: ROUTER_BINDINGS,
    body: wgsl`
      let row = i * ${experts};
      let choices_at = i * ${k};
      ${rule.score === "softmax" && softmaxOfAll(experts)}
      var chosen = 0.0;
      ${choose(o)}
      ${chosenSoftmax(o) && softmaxOfChosen(rule)}
      ${rule.normalize === "chosen" && divideChosen(rule)}
      ${rule.capacity?.prioritised && firstScore}
      ${padding && maskPadding}`,
  });
}

/** Stores the score of a token's first choice. */
export function storeFirst(rule: RoutingRule, expert: KernelText): KernelText {
  return wgsl`first[i] = ${score(rule, expert)};`;
}

/** Whether weights are a softmax over the chosen experts, computed after selection. */
export function chosenSoftmax({ rule, operands = [] }: RouterOptions): boolean {
  return rule.score === "chosenSoftmax" && !operands.includes("weights");
}

/** `top` and `total`: the maximum logit of the row, and the sum of exp(logit - top). */
function softmaxOfAll(experts: number): KernelText {
  const power = wgsl`total_block += exp(logits[row + k] - top);`;
  return wgsl`
    var top = logits[row];
    for (var e = 1u; e < ${experts}; e++) { top = max(top, logits[row + e]); }
    ${blockedSum("total", { length: experts }, power)}`;
}

/** The score of an expert. */
export function score({ score }: RoutingRule, expert: Hole): KernelText {
  const logit = wgsl`logits[row + ${expert}]`;
  switch (score) {
    case "softmax":
      return wgsl`exp(${logit} - top) / total`;
    case "sigmoid":
      return wgsl`1.0 / (1.0 + exp(-${logit}))`;
    case "sqrtSoftplus":
      return wgsl`sqrt(max(${logit}, 0.0) + log(1.0 + exp(-abs(${logit}))))`;
    case "chosenSoftmax":
    case "none":
      return logit;
  }
}

/** Writes the choices of a token: given, round-robin, or the best. */
function choose(o: RouterOptions): KernelText {
  const { experts, rule, tokens, group, operands = [] } = o;
  const k = rule.topK;
  if (rule.choose !== undefined) {
    const expert = rule.choose === "given"
      ? wgsl`min(u32(choices[choices_at + j]), ${experts - 1})`
      : wgsl`(i % ${group ?? tokens} * ${k} + j) % ${experts}`;
    return wgsl`
      for (var j = 0u; j < ${k}; j++) {
        let best = ${expert};
        ${writeChoice(o, wgsl`j`, "best")}
      }`;
  }
  const noise = operands.includes("noise");
  const noisy = (e: string) => wgsl`${worth(o, e)} + noise[row + ${e}]`;
  const allowed = rule.expertGroups &&
    inTopGroup(experts / rule.expertGroups.count);
  if (!noise || rule.noisy !== "second") {
    const value = noise ? noisy("e") : worth(o, "e");
    const best = { k, count: experts, value, allowed };
    return wgsl`
      ${keepGroups(o)}
      ${eachLargest("best", best, writeChoice(o, wgsl`j`, "best"))}`;
  }
  // The best without noise, then the best others with it.
  const other = wgsl`e != best_one`;
  const others = {
    k: k - 1,
    count: experts,
    value: noisy("e"),
    allowed: allowed ? wgsl`${allowed} && ${other}` : other,
  };
  return wgsl`
    ${keepGroups(o)}
    ${largest("best_one", { count: experts, value: worth(o, "e"), allowed })}
    // A separate scope, because the next choice declares the same variables.
    if (true) { ${writeChoice(o, wgsl`0u`, "best_one")} }
    ${
    k > 1 && eachLargest("best", others, writeChoice(o, wgsl`j + 1`, "best"))
  }`;
}

/** Selection value of experts: score plus bias, or a value with the order of the score. */
export function worth(
  { rule, operands = [] }: RouterOptions,
  e: string,
): KernelText {
  if (operands.includes("bias")) return wgsl`${score(rule, e)} + bias[${e}]`;
  const added = (rule.expertGroups?.best ?? 1) > 1;
  return added ? score(rule, e) : wgsl`logits[row + ${e}]`;
}

/** Writes choice j, and adds its weight to `chosen`. */
function writeChoice(
  o: RouterOptions,
  j: KernelText,
  expert: string,
): KernelText {
  const { rule, operands = [] } = o;
  const divided = chosenSoftmax(o) || rule.normalize === "chosen";
  const raw = operands.includes("weights")
    ? wgsl`weights[at]`
    : score(rule, expert);
  return wgsl`
    let at = choices_at + ${j};
    index[at] = i32(${expert});
    let raw = ${raw};
    chosen += raw;
    weight[at] = ${divided ? wgsl`raw` : scaled(rule, wgsl`raw`)};`;
}

/** A weight times the model's scale, unless weights are divided after dropping. */
export function scaled(
  { scale, normalize }: RoutingRule,
  w: KernelText,
): KernelText {
  return scale === undefined || normalize === "kept"
    ? w
    : wgsl`${w} * ${scale}`;
}

/** The divisor of weights, from their sum. */
export function divisorOf(
  { epsilon = 0, minSum }: RoutingRule,
  sum: string,
): KernelText {
  const all = epsilon === 0 ? wgsl`${sum}` : wgsl`${sum} + ${epsilon}`;
  return minSum === undefined ? all : wgsl`max(${all}, ${minSum})`;
}

/** Weights divided by their sum. */
function divideChosen(rule: RoutingRule): KernelText {
  const share = wgsl`weight[choices_at + j] / divisor`;
  return wgsl`
    let divisor = ${divisorOf(rule, "chosen")};
    for (var j = 0u; j < ${rule.topK}; j++) {
      weight[choices_at + j] = ${scaled(rule, share)};
    }`;
}

/** The softmax over the chosen logits in `weight`; `chosen` becomes the sum of the weights. */
function softmaxOfChosen(rule: RoutingRule): KernelText {
  const k = rule.topK;
  const last = rule.normalize !== "chosen";
  return wgsl`
    var top = weight[choices_at];
    for (var j = 1u; j < ${k}; j++) { top = max(top, weight[choices_at + j]); }
    chosen = 0.0;
    for (var j = 0u; j < ${k}; j++) {
      let power = exp(weight[choices_at + j] - top);
      weight[choices_at + j] = power;
      chosen += power;
    }
    var shares = 0.0;
    for (var j = 0u; j < ${k}; j++) {
      let share = weight[choices_at + j] / chosen;
      weight[choices_at + j] = ${last ? scaled(rule, wgsl`share`) : "share"};
      shares += share;
    }
    chosen = shares;`;
}

/**
 * Bit g of `groups` becomes 1 for each kept group of experts: the groups with the largest sum of their best members.
 */
function keepGroups(o: RouterOptions): KernelText | undefined {
  if (o.rule.expertGroups === undefined) return undefined;
  const { count, keep } = o.rule.expertGroups;
  const groups = { k: keep, count, ...groupValue(o, worth(o, "m")) };
  return wgsl`
    var groups = 0u;
    ${eachLargest("group_", groups, wgsl`groups |= 1u << group_;`)}`;
}

/** The value of group `e`: the sum of its best members, of which `member` is the value of expert m. */
export function groupValue(
  { experts, rule: { expertGroups } }: RouterOptions,
  member: KernelText,
): { readonly prepare: KernelText; readonly value: KernelText } {
  invariant(expertGroups, "experts have groups");
  const { count, best } = expertGroups;
  const size = experts / count;
  const members = Array.from({ length: best }, (_, n) => n);
  // Insertion into the best so far, from the last to the first: each receives the value displaced from the previous
  // one.
  const insert = members.toReversed().map((n) => {
    const fallen = n === 0 ? "member" : wgsl`min(member_${n - 1}, member)`;
    return wgsl`member_${n} = max(member_${n}, ${fallen});`;
  });
  return {
    prepare: wgsl`
      let start = e * ${size};
      ${members.map((n) => wgsl`var member_${n} = f32(${LOWEST});`)}
      for (var m = start; m < start + ${size}; m++) {
        let member = ${member};
        ${insert}
      }`,
    value: members.map((n) => wgsl`member_${n}`)
      .reduce((sum, member) => wgsl`${sum} + ${member}`),
  };
}

/** Whether the group of expert e is kept; groups have `size` experts. */
function inTopGroup(size: number): KernelText {
  return wgsl`((groups >> (e / ${size})) & 1) == 1`;
}
