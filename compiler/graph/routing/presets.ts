/** Router presets: published routers as data. spec/routing.md lists formulas and sources. */

import { ModelError, type Span } from "../../../spec/errors.ts";
import type {
  CapacityRule,
  Node,
  NodeOf,
  RouteOperand,
  RoutingRule,
} from "../graph.ts";

/** A capacity factor, or one for training plans and one for all others. */
export type CapacityFactor =
  | number
  | { readonly training: number; readonly evaluation: number };

/** A preset's capacity. */
export type PresetCapacity = Omit<CapacityRule, "factor"> & {
  readonly factor?: CapacityFactor;
};

/** Options fixed by a preset. The numbers of experts and groups, and the scale, belong to a model. */
export type PresetRule =
  & Omit<
    RoutingRule,
    "preset" | "topK" | "expertGroups" | "normalize" | "capacity"
  >
  & {
    readonly capacity?: PresetCapacity;
    /** `several`: `chosen` if there is more than one choice, else `none`. */
    readonly normalize: RoutingRule["normalize"] | "several";
    /** Fixed number of experts per token, if the preset has one. */
    readonly chooses?: number;
    /** Number of best experts that a group is worth; `share`: topK / keep. Default: 1. */
    readonly best?: number | "share";
    /** The preset drops only if `capacity` is given, and then by its own `capacity`. */
    readonly dropless?: true;
  };

/** Minimum divisor in fairscale, DeepSpeed and Tutel: the f32 epsilon. */
const F32_EPSILON = 2 ** -23;

const MEGATRON: Pick<PresetRule, "capacity" | "dropless"> = {
  capacity: { slots: "ceil", factor: 1, drop: "score", order: "token" },
  dropless: true,
};

const TUTEL = {
  score: "softmax",
  normalize: "several",
  minSum: F32_EPSILON,
  capacity: {
    slots: "floorOfCeil",
    factor: 1,
    drop: "position",
    order: "choice",
  },
} as const;

/** Presets by name. */
export const ROUTING_PRESETS = {
  "switch.top1": {
    score: "softmax",
    normalize: "none",
    chooses: 1,
    capacity: { slots: 64, drop: "position", order: "token" },
  },
  "gshard.top2": {
    score: "softmax",
    normalize: "chosen",
    epsilon: 1e-9,
    chooses: 2,
    noisy: "second",
    capacity: {
      slots: "floor",
      factor: { training: 1.25, evaluation: 2 },
      per: "token",
      minimum: 4,
      drop: "position",
      order: "choice",
    },
  },
  "fairscale.top2": {
    score: "softmax",
    normalize: "kept",
    minSum: F32_EPSILON,
    chooses: 2,
    noisy: "second",
    capacity: { slots: "floor", factor: 1, drop: "position", order: "choice" },
  },
  "deepspeed.top1": {
    score: "softmax",
    normalize: "none",
    chooses: 1,
    capacity: {
      slots: "ceilF32",
      factor: 1,
      minimum: 4,
      drop: "random",
      order: "token",
    },
  },
  "deepspeed.top2": {
    score: "softmax",
    normalize: "kept",
    minSum: F32_EPSILON,
    chooses: 2,
    noisy: "second",
    capacity: {
      slots: "ceilF32",
      factor: 1,
      minimum: 4,
      drop: "position",
      order: "choice",
    },
  },
  "deepspeed.topk": {
    score: "softmax",
    normalize: "kept",
    minSum: F32_EPSILON,
    capacity: {
      slots: "ceilF32",
      factor: 1,
      minimum: 4,
      drop: "score",
      order: "token",
    },
  },
  "tutel.topk": TUTEL,
  "tutel.prioritised": {
    ...TUTEL,
    capacity: { ...TUTEL.capacity, prioritised: true },
  },
  "megatron.postSoftmax": {
    score: "chosenSoftmax",
    normalize: "none",
    best: "share",
    ...MEGATRON,
  },
  "megatron.preSoftmax": {
    score: "softmax",
    normalize: "none",
    best: "share",
    ...MEGATRON,
  },
  "megatron.sigmoid": {
    score: "sigmoid",
    normalize: "several",
    epsilon: 1e-20,
    best: "share",
    ...MEGATRON,
  },
  "megablocks": {
    score: "softmax",
    normalize: "none",
    capacity: { slots: "floor", factor: 1, drop: "position", order: "token" },
    dropless: true,
  },
  "mixtral": { score: "softmax", normalize: "chosen" },
  "olmoe": { score: "softmax", normalize: "none" },
  "qwen2Moe": { score: "softmax", normalize: "none" },
  "qwen3Moe": { score: "softmax", normalize: "chosen" },
  "deepseekV2": { score: "softmax", normalize: "none" },
  "deepseekV3": {
    score: "sigmoid",
    normalize: "chosen",
    epsilon: 1e-20,
    best: 2,
  },
  "gptOss": { score: "chosenSoftmax", normalize: "none" },
  "graniteMoe": { score: "chosenSoftmax", normalize: "none" },
  "llama4": { score: "sigmoid", normalize: "none", weighs: "input" },
  "expertChoice": {
    score: "softmax",
    normalize: "none",
    capacity: {
      slots: "floor",
      factor: 2,
      per: "token",
      drop: "score",
      order: "token",
    },
  },
  "hash": { score: "softmax", normalize: "none", choose: "given" },
  "forced": { score: "softmax", normalize: "none", choose: "balanced" },
} as const satisfies { [preset: string]: PresetRule };

/** The name of a router preset. */
export type RoutingPreset = keyof typeof ROUTING_PRESETS;

/** Groups of experts to choose from. */
export interface ExpertGroups {
  readonly count: number;
  readonly keep: number;
  /** Number of best experts that a group is worth. Default: that of the preset. */
  readonly best?: number;
}

/** Capacity of the experts and its assignment. Defaults: those of the preset. spec/routing.md lists formulas. */
export type Capacity = Partial<PresetCapacity>;

/** Router options that override a preset. */
export interface RuleChoices {
  /** Experts per token. */
  readonly topK: number;
  /** Score of an expert. Default: that of the preset. */
  readonly score?: RoutingRule["score"];
  /** Whether weights are divided by their sum, and over which choices. Default: that of the preset. */
  readonly normalize?: RoutingRule["normalize"];
  /** Added to the divisor. Default: that of the preset. */
  readonly epsilon?: number;
  /** Minimum of the divisor. Default: that of the preset. */
  readonly minSum?: number;
  /** Whether a weight multiplies the output or the input of an expert. Default: that of the preset. */
  readonly weighs?: "input" | "output";
  /** Multiplies the weights. Default: 1. */
  readonly scale?: number;
  /** Choices that use the noise. Default: those of the preset. */
  readonly noisy?: "all" | "second";
  /** Restricts the choice to the `keep` best of `count` groups of adjacent experts. */
  readonly expertGroups?: ExpertGroups;
  /** Capacity of the experts; "dropless": unlimited. */
  readonly capacity?: Capacity | "dropless";
}

/**
 * The rule of a preset and overriding options. Throws ModelError at `span` for an unknown preset, or one with another
 * fixed number of choices.
 */
export function routingRule(
  { preset, given, training = false, ...choices }: RuleChoices & {
    readonly preset?: string;
    /** Experts are given instead of chosen by score. */
    readonly given?: boolean;
    /** Whether the rule is for a training step. Default: false. */
    readonly training?: boolean;
  },
  span?: Span,
): RoutingRule {
  const { topK, expertGroups: groups } = choices;
  const start = presetOf(preset, span);
  const { best = 1, chooses, capacity, dropless, normalize, ...rule } = start;
  if (chooses !== undefined && topK !== chooses) {
    throw new ModelError(
      `Cannot route to ${topK} experts: preset '${preset}' chooses ${chooses}`,
      span,
    );
  }
  const room = choices.capacity === undefined
    ? dropless ? undefined : capacity
    : choices.capacity === "dropless"
    ? undefined
    : capacityOf(capacity, choices.capacity);
  const set = Object.fromEntries(
    (["score", "epsilon", "minSum", "weighs", "scale", "noisy"] as const)
      .flatMap((name) =>
        choices[name] === undefined ? [] : [[name, choices[name]]]
      ),
  );
  const several = topK > 1 ? "chosen" : "none";
  const share = (keep: number) => best === "share" ? topK / keep : best;
  return {
    ...rule,
    ...set,
    preset: preset ?? "none",
    topK,
    normalize: choices.normalize ??
      (normalize === "several" ? several : normalize),
    ...groups ? { expertGroups: { best: share(groups.keep), ...groups } } : {},
    ...given ? { choose: "given" } : {},
    ...room ? { capacity: capacityFor(room, training) } : {},
  };
}

/** A capacity with the factor for training or for evaluation. */
function capacityFor(
  { factor, ...rest }: PresetCapacity,
  training: boolean,
): CapacityRule {
  if (factor === undefined) return rest;
  if (typeof factor === "number") return { ...rest, factor };
  return { ...rest, factor: factor[training ? "training" : "evaluation"] };
}

/** Returns the preset. Throws an error for untyped callers. */
function presetOf(preset: string | undefined, span?: Span): PresetRule {
  const known: { [preset: string]: PresetRule } = ROUTING_PRESETS;
  if (preset === undefined) return { score: "softmax", normalize: "none" };
  const found = Object.hasOwn(known, preset) ? known[preset] : undefined;
  if (found) return found;
  throw new ModelError(
    `Cannot route by preset '${preset}': there is none. Presets are ${
      Object.keys(known).map((name) => `'${name}'`).join(", ")
    }`,
    span,
  );
}

/** A preset's capacity with overrides. A number of slots replaces the factor. */
function capacityOf(
  preset: PresetCapacity | undefined,
  set: Capacity,
): PresetCapacity {
  const base = preset ?? { slots: "ceil", drop: "position", order: "token" };
  if (typeof set.slots !== "number" && set.slots !== "largest") {
    return { ...base, ...set };
  }
  const { drop, order, prioritised } = base;
  return {
    drop,
    order,
    ...prioritised ? { prioritised } : {},
    ...set,
    slots: set.slots,
  };
}

/** Token counts of a routing group. */
export interface GroupCounts {
  readonly tokens: number;
  readonly experts: number;
  readonly topK: number;
}

/** Number of slots of an expert in a routing group. `largest` requires the count of the fullest expert. */
export function slotsOf(
  rule: CapacityRule,
  { tokens, experts, topK }: GroupCounts,
  largest = 0,
): number {
  const { factor = 1, minimum = 0, alignment = 1 } = rule;
  const choices = rule.per === "token" ? 1 : topK;
  const counted = () => {
    switch (rule.slots) {
      case "largest":
        return largest;
      case "floor":
        return Math.floor((tokens * (factor * choices)) / experts);
      case "ceil":
        return Math.ceil(((tokens * choices) / experts) * factor);
      case "ceilF32": {
        const share = Math.fround(tokens / experts);
        return Math.ceil(Math.fround(share * Math.fround(factor * choices)));
      }
      case "floorOfCeil":
        return choices * Math.floor(factor * Math.ceil(tokens / experts));
      default:
        return rule.slots;
    }
  };
  return Math.ceil(Math.max(counted(), minimum) / alignment) * alignment;
}

/** An operand of a router besides its logits. */
export function routeOperand(
  { inputs, params }: Pick<NodeOf<"route">, "inputs" | "params">,
  name: RouteOperand,
): Node | undefined {
  const at = params.operands.indexOf(name);
  return at < 0 ? undefined : inputs[at + 1];
}

/** The axes of each operand of a router besides its logits. */
export function routeOperandAxes(
  { tokens, expert, choice }: NodeOf<"route">["params"],
): { readonly [O in RouteOperand]: readonly string[] } {
  return {
    group: tokens,
    mask: tokens,
    bias: [expert],
    noise: [...tokens, expert],
    random: [...tokens, expert],
    choices: [...tokens, choice],
    weights: [...tokens, choice],
  };
}

/** The parts of a routing that are masks of chosen experts. */
export type Mark = "chosen" | "first" | "kept" | "settled";

/** Whether a part of a routing is a mask of chosen experts. */
export function isMark(
  field: NodeOf<"tupleElement">["params"]["field"],
): field is Mark {
  return ["chosen", "first", "kept", "settled"].includes(field);
}

/** Whether the routing of a token depends on the other tokens of its routing group. */
export function looksAtGroup(rule: RoutingRule): boolean {
  return rule.capacity !== undefined || rule.choose === "balanced";
}
