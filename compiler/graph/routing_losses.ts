/** Load-balancing losses of published systems, as data: `factor · Σ_e f_e · P_e`. Sources are in spec/routing.md. */

import type { NodeOf } from "./graph.ts";

/** What a load-balancing loss is made of. */
export interface BalancingRule {
  /**
   * Which choices count: first ones or all, before dropping; those kept; or those kept, and dropped ones for expert 0,
   * as transformers' Switch counts.
   */
  readonly fraction: Extract<
    NodeOf<"tupleElement">["params"]["field"],
    "first" | "chosen" | "kept" | "settled"
  >;
  /** What an expert scores: its share of the softmax, or of the sigmoids of a token. */
  readonly score: "softmax" | "sigmoid";
  /** Multiplies the sum; 1 is a loss of 1 / experts for one choice in balance. */
  readonly factor: number;
}

/** A rule whose factor depends on how many experts and choices there are. */
export type BalancingFormula = Omit<BalancingRule, "factor"> & {
  readonly factor: (experts: number, topK: number) => number;
};

const FIRST: BalancingFormula = {
  fraction: "first",
  score: "softmax",
  factor: (experts) => experts,
};

/** Balanced at 1. */
const SHARE: BalancingFormula = {
  fraction: "chosen",
  score: "softmax",
  factor: (experts, topK) => experts / topK,
};

/** Balanced at the number of choices. */
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

/** The loss of a preset, with some of it said otherwise. Presets without one of their own are balanced at 1. */
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
