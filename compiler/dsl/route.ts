/** Routers: select the experts and weights of each token. */

import { ModelError, type Span } from "../../spec/errors.ts";
import { type OptionNames, unknownOptions } from "../../spec/options.ts";
import type {
  NodeOf,
  RouteOperand,
  RoutingNode,
  RoutingRule,
} from "../graph/graph.ts";
import { makeNode } from "../graph/make_node.ts";
import { messages as say, without } from "../graph/messages.ts";
import { report } from "../graph/problems.ts";
import {
  type Capacity,
  type PresetCapacity,
  ROUTING_PRESETS,
  type RoutingPreset,
  routingRule,
  type RuleChoices,
} from "../graph/routing/presets.ts";
import {
  axisOf,
  siteOf,
  type Tensor,
  type Trace,
  traceOf,
  wrap,
} from "./tensor.ts";
import type { Axis, Cat, Without } from "./types.ts";

declare const routing: unique symbol;

/**
 * The experts and weights of each token: the handle for `dispatch` and `combine`. A model can compute with its parts
 * and return them.
 */
export interface Routing<
  out Token extends string = string,
  out Expert extends string = string,
  out Slot extends string = string,
  out Choice extends string = string,
> {
  readonly [routing]: { token: Token; expert: Expert; slot: Slot };
  /** The chosen experts, best first. */
  readonly index: Tensor<Cat<Token, Choice>, "i32">;
  /** The weight of each choice in `combine`; 0 for dropped choices. */
  readonly weight: Tensor<Cat<Token, Choice>, "f32">;
  /** 1 if the token chose the expert, dropped or not, else 0. Padding chooses no expert. */
  readonly chosen: Tensor<Cat<NoInfer<Token>, NoInfer<Expert>>, "f32">;
  /** 1 if the expert is the first choice of the token, else 0. */
  readonly first: Tensor<Cat<NoInfer<Token>, NoInfer<Expert>>, "f32">;
  /** 1 if the token chose the expert and was not dropped, else 0. */
  readonly kept: Tensor<Cat<NoInfer<Token>, NoInfer<Expert>>, "f32">;
  /** As `kept`, with dropped choices counted for expert 0, like transformers' Switch. */
  readonly settled: Tensor<Cat<NoInfer<Token>, NoInfer<Expert>>, "f32">;
  /** For the compiler. */
  readonly node: RoutingNode;
  /** For the compiler. */
  readonly trace: Trace;
}

/** A routing with capacity: tokens have slots, and may be dropped. */
export interface CapacityRouting<
  out Token extends string = string,
  out Expert extends string = string,
  out Slot extends string = string,
  out Choice extends string = string,
> extends Routing<Token, Expert, Slot, Choice> {
  /** The slot of each choice at its expert, within its routing group; -1 if dropped. */
  readonly slot: Tensor<Cat<Token, Choice>, "i32">;
}

/** Presets that drop by default. */
export type CapacityPreset = {
  [P in RoutingPreset]: (typeof ROUTING_PRESETS)[P] extends { dropless: true }
    ? never
    : (typeof ROUTING_PRESETS)[P] extends { capacity: PresetCapacity } ? P
    : never;
}[RoutingPreset];

/** Options of `route`. */
export interface RouteOptions<
  A extends string,
  E extends string,
  P extends RoutingPreset,
  S extends string,
  C extends string,
> extends RuleChoices {
  /** The axis of experts. */
  readonly over: E;
  /** Named router. Default: softmax over all experts, weights without renormalization. */
  readonly preset?: P;
  /** Added to the scores for selection only, not to weights. */
  readonly bias?: Tensor<NoInfer<E>, "f32">;
  /** Name of the axis of an expert's tokens. Default: "slot". It has no size. */
  readonly slot?: S;
  /** Name of the axis of choices, of size `topK`. Default: "choice". */
  readonly choice?: C;
  /**
   * Routing group in which capacity is counted: the name of the first axis, or an integer per token. Default: all
   * tokens are one group.
   */
  readonly group?:
    | Axis<NoInfer<A>>
    | Tensor<Without<NoInfer<A>, NoInfer<E>>, "i32">;
  /** 0 for padding tokens, which choose no expert. */
  readonly mask?: Tensor<Without<NoInfer<A>, NoInfer<E>>, "i32">;
  /** Added to the selection scores only, not to weights. */
  readonly noise?: Tensor<NoInfer<A>, "f32">;
  /** Random numbers for random dropping; the lowest are dropped. */
  readonly random?: Tensor<NoInfer<A>, "f32">;
  /** Experts of each token, instead of the best ones. */
  readonly choices?: Tensor<
    Cat<Without<NoInfer<A>, NoInfer<E>>, NoInfer<C>>,
    "i32"
  >;
  /** Scores of the given choices, instead of those of their logits. */
  readonly weights?: Tensor<
    Cat<Without<NoInfer<A>, NoInfer<E>>, NoInfer<C>>,
    "f32"
  >;
}

/** The parts of a routing. Each is created on first access. */
class Routed {
  readonly node: NodeOf<"route">;
  readonly trace: Trace;

  constructor(node: NodeOf<"route">, trace: Trace) {
    this.node = node;
    this.trace = trace;
  }

  #part(
    field: NodeOf<"tupleElement">["params"]["field"],
  ): Tensor<never, never> {
    const getter = Object.getOwnPropertyDescriptor(Routed.prototype, field);
    const site = getter?.get
      ? siteOf(this.trace, getter.get)
      : { span: this.node.span, problems: this.trace.problems };
    return wrap(
      makeNode("tupleElement", [this.node], { field }, site),
      this.trace,
    );
  }

  get index(): Tensor<never, never> {
    return this.#part("index");
  }

  get weight(): Tensor<never, never> {
    return this.#part("weight");
  }

  get slot(): Tensor<never, never> {
    return this.#part("slot");
  }

  get chosen(): Tensor<never, never> {
    return this.#part("chosen");
  }

  get first(): Tensor<never, never> {
    return this.#part("first");
  }

  get settled(): Tensor<never, never> {
    return this.#part("settled");
  }

  get kept(): Tensor<never, never> {
    return this.#part("kept");
  }
}

/** Operands of a router in the order of its inputs. */
const OPERANDS: readonly RouteOperand[] = [
  ...[
    "group",
    "noise",
    "bias",
    "mask",
    "random",
    "choices",
    "weights",
  ] as const,
];

/** Names of the options of `route`. */
const OPTIONS: OptionNames<
  RouteOptions<string, string, RoutingPreset, string, string>
> = {
  over: true,
  preset: true,
  slot: true,
  choice: true,
  topK: true,
  score: true,
  normalize: true,
  epsilon: true,
  minSum: true,
  weighs: true,
  scale: true,
  noisy: true,
  expertGroups: true,
  capacity: true,
  group: true,
  noise: true,
  bias: true,
  mask: true,
  random: true,
  choices: true,
  weights: true,
};

/** The rule of a preset and options. If mistakes are collected and the options are wrong, a default rule. */
function ruleOf(
  options: RuleChoices & {
    readonly preset?: RoutingPreset;
    readonly choices?: unknown;
  },
  { training, problems }: Trace,
  span: Span | undefined,
): RoutingRule {
  const given = options.choices !== undefined;
  try {
    return routingRule({ ...options, given, training }, span);
  } catch (error) {
    if (!(error instanceof ModelError)) throw error;
    report(problems, error, []);
    return routingRule({ topK: options.topK, given });
  }
}

/** Result type of `route`. It has slots if a capacity is given or the preset has one. */
type RoutingBy<
  P extends RoutingPreset,
  K,
  T extends string,
  E extends string,
  S extends string,
  C extends string,
> = [K] extends [never] ? P extends CapacityPreset ? CapacityRouting<T, E, S, C>
  : Routing<T, E, S, C>
  : K extends "dropless" ? Routing<T, E, S, C>
  : CapacityRouting<T, E, S, C>;

/**
 * Chooses experts for each token from the router's logits. spec/routing.md describes the presets, such as "mixtral"
 * (softmax, weights divided by their sum) and "deepspeed.topk" (capacity per expert, the choices of lowest weight are
 * dropped). Every option of a preset can be overridden.
 *
 * Axes: `logits` has the token axes and `over`; `index`, `weight` and `slot` have the token axes and `choice`, the
 * other parts the token axes and `over`. Dtype: "f32". Errors: an axis that the logits do not have; a group that is not
 * the first axis; operands with other axes; a `topK` that the preset does not support, or more than the number of
 * experts; `slot` without capacity; expert groups that do not divide the experts, or too few kept groups; incompatible
 * options. Gradient: by the logits, through the weights; choices have none. Sharding: along the token axes. With a
 * capacity, the tokens of a routing group are gathered. `over` is replicated.
 *
 * @example
 * ```ts
 * const router = model({ token: 1, expert: 3 }, (m) => {
 *   const routing = route(m.input("logits", "token expert"), {
 *     over: "expert",
 *     topK: 2,
 *     preset: "mixtral",
 *   });
 *   return { index: routing.index, weight: routing.weight };
 * });
 * const { outputs } = evaluate(trace(router), { inputs: { logits: [1, 3, 3] } });
 * console.assert(String(outputs.index?.data) === "1,2");
 * console.assert(String(outputs.weight?.data) === "0.5,0.5");
 * ```
 */
export function route<
  A extends string,
  const E extends Axis<A>,
  const P extends RoutingPreset = "olmoe",
  const S extends string = "slot",
  const C extends string = "choice",
  K extends Capacity | "dropless" = never,
>(
  logits: Tensor<A, "f32">,
  options: RouteOptions<A, E, P, S, C> & { readonly capacity?: K },
): RoutingBy<P, K, Without<A, E>, E, S, C> {
  const operands = OPERANDS.filter((name) =>
    options[name] !== undefined && typeof options[name] !== "string"
  );
  const tensors = operands.map((name) => options[name] as Tensor);
  const trace = traceOf([logits, ...tensors], route);
  const site = siteOf(trace, route);
  const { span } = site;
  for (const message of unknownOptions("route", options, OPTIONS)) {
    report(trace.problems, new ModelError(message, span), []);
  }
  const named = (name: string) => axisOf(name, [logits], trace);
  const over = named(options.over);
  const group = typeof options.group === "string"
    ? named(options.group)
    : undefined;
  if (group !== undefined && !logits.node.axes.includes(group)) {
    const rest = without(logits.node.axes, [over]);
    const error = new ModelError(say.axis("group", rest, group), span);
    report(trace.problems, error, [logits.node]);
  }
  const { slot = "slot" } = options;
  const node = makeNode("route", [logits, ...tensors].map((x) => x.node), {
    rule: ruleOf(options, trace, span),
    expert: over,
    slot: trace.block.names.get(slot) ?? slot,
    choice: named(options.choice ?? "choice"),
    tokens: without(logits.node.axes, [over]),
    ...group === undefined ? {} : { leadingGroup: group },
    operands,
  }, site);
  // `Routed` has every part. The type lists those of the preset, and each part is checked on access.
  return new Routed(node, trace) as unknown as ReturnType<
    typeof route<A, E, P, S, C, K>
  >;
}
