/** Router presets: what each published router does, as data. Formulas and sources are in spec/routing.md. */

import type { RoutingRule } from "./graph.ts";

/** What a preset fixes. How many experts and groups there are, and the scale, belong to a model. */
export type PresetRule =
  & Omit<RoutingRule, "preset" | "topK" | "expertGroups">
  & {
    /** What a group of experts is worth, where the model has groups; default "max". */
    readonly groupScore?: GroupScore;
  };

/** What a group of experts is worth: its best expert, or its two best together. */
export type GroupScore = NonNullable<RoutingRule["expertGroups"]>["score"];

/** Presets by name. */
export const ROUTING_PRESETS = {
  "mixtral": { score: "softmax", normalize: "chosen" },
  "olmoe": { score: "softmax", normalize: "none" },
  "qwen2Moe": { score: "softmax", normalize: "none" },
  "qwen3Moe": { score: "softmax", normalize: "chosen" },
  "graniteMoe": { score: "chosenSoftmax", normalize: "none" },
  "gptOss": { score: "chosenSoftmax", normalize: "none" },
  "deepseekV2": { score: "softmax", normalize: "none", groupScore: "max" },
  "deepseekV3": {
    score: "sigmoid",
    normalize: "chosen",
    epsilon: 1e-20,
    groupScore: "top2Sum",
  },
  "llama4": { score: "sigmoid", normalize: "none", weighs: "input" },
  "fairscale.top2": {
    score: "softmax",
    normalize: "kept",
    capacity: "fairscale.top2",
  },
} as const satisfies { [preset: string]: PresetRule };

/** The name of a router preset. */
export type RoutingPreset = keyof typeof ROUTING_PRESETS;
