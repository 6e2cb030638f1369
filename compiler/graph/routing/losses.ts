/** Balancing losses of published systems, as data: `factor · Σ_e f_e · P_e`. spec/routing.md lists sources. */

import type { NodeOf } from "../graph.ts";

/** Definition of a balancing loss. */
export interface BalancingRule {
  /**
   * Counted choices: first ones or all, before dropping; kept ones; or kept ones plus dropped ones counted for expert
   * 0, like transformers' Switch.
   */
  readonly fraction: Extract<
    NodeOf<"tupleElement">["params"]["field"],
    "first" | "chosen" | "kept" | "settled"
  >;
  /** Score of an expert: softmax, or sigmoid divided by the sum of the token. */
  readonly score: "softmax" | "sigmoid";
  /** Multiplies the sum. 1 gives a loss of 1 / experts for one choice in balance. */
  readonly factor: number;
}

/** A rule whose factor depends on the numbers of experts and choices. */
export type BalancingFormula = Omit<BalancingRule, "factor"> & {
  readonly factor: (experts: number, topK: number) => number;
};

const FIRST: BalancingFormula = {
  fraction: "first",
  score: "softmax",
  factor: (experts) => experts,
};

/** Value 1 in balance. */
const SHARE: BalancingFormula = {
  fraction: "chosen",
  score: "softmax",
  factor: (experts, topK) => experts / topK,
};

/** Value k, the number of choices, in balance. */
const TRANSFORMERS: BalancingFormula = {
  ...SHARE,
  factor: (experts) => experts,
};

const FORMULAS: { readonly [preset: string]: BalancingFormula } = {
  "switch.top1": { ...FIRST, fraction: "settled" },
  "gshard.top2": FIRST,
  "fairscale.top2": { ...FIRST, factor: (experts) => 1 / experts },
  "deepspeed.top1": FIRST,
  "deepspeed.top2": FIRST,
  "tutel.topk": FIRST,
  "tutel.prioritised": FIRST,
  "megatron.sigmoid": { ...SHARE, score: "sigmoid" },
  "deepseekV3": { ...SHARE, score: "sigmoid" },
  "mixtral": TRANSFORMERS,
  "olmoe": TRANSFORMERS,
  "qwen2Moe": TRANSFORMERS,
  "qwen3Moe": TRANSFORMERS,
  "gptOss": TRANSFORMERS,
  "graniteMoe": TRANSFORMERS,
};

/** The loss of a preset with overrides. Presets without their own loss have value 1 in balance. */
export function balancingFormula(
  preset: string,
  { fraction, score, factor }: Partial<BalancingRule> = {},
): BalancingFormula {
  const known = Object.hasOwn(FORMULAS, preset) ? FORMULAS[preset] : undefined;
  return {
    ...known ?? SHARE,
    ...fraction ? { fraction } : {},
    ...score ? { score } : {},
    ...factor === undefined ? {} : { factor: () => factor },
  };
}
