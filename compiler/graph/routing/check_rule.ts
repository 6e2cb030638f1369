/** Consistency of a router's options. */

import type { DType } from "../../../spec/dtype.ts";
import type { CapacityRule, RouteOperand, RoutingRule } from "../graph.ts";

/** The dtype of each operand of a router. */
export const OPERAND_DTYPES: { readonly [O in RouteOperand]: DType } = {
  group: "i32",
  noise: "f32",
  bias: "f32",
  mask: "i32",
  random: "f32",
  choices: "i32",
  weights: "f32",
};

/** Why the options of a router are inconsistent, in one sentence, or undefined. */
export function ruleProblem(
  rule: RoutingRule,
  operands: readonly RouteOperand[],
): string | undefined {
  const { preset, topK, choose, capacity, normalize } = rule;
  const has = (name: RouteOperand) => operands.includes(name);
  const by = `Cannot route by preset '${preset}'`;
  if (topK === undefined) {
    return "Cannot route: 'topK' is missing. Give the number of experts of a token, such as topK: 2";
  }
  if (!Number.isInteger(topK) || topK < 1) {
    return `Cannot route to ${topK} experts: topK must be a whole number of at least 1`;
  }
  if (choose === "given" && !has("choices")) {
    return `${by}: its choices are given. Give 'choices', an expert for each token and choice`;
  }
  if (has("weights") && !has("choices")) {
    return `${by} with weights: whose they are is not given. Give 'choices' too`;
  }
  if (choose === "balanced" && has("group")) {
    return `${by} with a group for each token: it counts tokens in their order. Give the name of the first axis, or 'choices'`;
  }
  if (normalize === "kept" && capacity === undefined) {
    return `${by} with weights divided by those kept: nothing is dropped. Use 'chosen'`;
  }
  if (capacity?.drop === "random" && !has("random")) {
    return `${by}: it drops at random. Give 'random', a number for each token and expert, or drop by 'position' or 'score'`;
  }
  if (capacity?.drop !== "random" && has("random")) {
    return `${by} with random numbers: it does not drop at random. Leave 'random' out, or drop at 'random'`;
  }
  return capacity && capacityProblem(by, capacity);
}

function capacityProblem(by: string, capacity: CapacityRule) {
  const { slots, factor, per, minimum = 0, alignment = 1 } = capacity;
  const isCount = (n: number, min: number) => Number.isInteger(n) && n >= min;
  if (typeof slots === "number" && !isCount(slots, 0)) {
    return `${by} with ${slots} slots: expected a whole number`;
  }
  if (
    (typeof slots === "number" || slots === "largest") &&
    (factor !== undefined || per !== undefined)
  ) {
    return `${by} with a capacity factor: its slots are ${
      slots === "largest" ? "as many as are needed" : slots
    }. Give 'slots' a formula`;
  }
  if (factor !== undefined && !(factor > 0 && Number.isFinite(factor))) {
    return `${by} with a capacity factor of ${factor}: expected a number above 0`;
  }
  if (!isCount(minimum, 0)) {
    return `${by} with at least ${minimum} slots: expected a whole number`;
  }
  return isCount(alignment, 1)
    ? undefined
    : `${by} with slots in multiples of ${alignment}: expected a whole number of at least 1`;
}
