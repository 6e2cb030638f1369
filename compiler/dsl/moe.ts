/** Mixture of experts: choose experts, send tokens to them, bring the results home. */

import { ModelError, type Span } from "../../spec/errors.ts";
import type { NodeOf, RoutingRule } from "../graph/graph.ts";
import { messages as say, without } from "../graph/messages.ts";
import {
  type GroupScore,
  type PresetRule,
  ROUTING_PRESETS,
  type RoutingPreset,
} from "../graph/routing.ts";
import { callSite } from "./span.ts";
import { makeNode, type Tensor, type Trace, traceOf, wrap } from "./tensor.ts";
import { transpose } from "./shape.ts";
import type {
  Axis,
  CanCombine,
  CanDispatch,
  Cat,
  Float,
  Without,
} from "./types.ts";

/** Options of `topK`. */
export interface TopKOptions<E extends string, C extends string> {
  /** The axis to choose along. */
  readonly over: E;
  /** How many. */
  readonly k: number;
  /** The name of the axis of choices, of size `k`; default "choice". */
  readonly axis?: C;
}

/** The largest values along an axis, and where they were. A type, so that a model can return it whole. */
export type TopK<A extends string, D extends Float> = {
  readonly values: Tensor<A, D>;
  readonly indices: Tensor<A, "i32">;
};

/**
 * The `k` largest of `x` along an axis: by value descending, equal ones by index ascending.
 *
 * Axes: those of `x` without `over`, then `axis`. Dtype: "f32" or "f16"; indices are "i32". Errors: an axis that `x`
 * does not have; a `k` that is no whole number from 1 to its length; an axis of choices of another size.
 *
 * @example
 * ```ts
 * const best = model({ token: 1, vocab: 3 }, (m) => {
 *   const { values, indices } = topK(m.input("x", "token vocab"), { over: "vocab", k: 2 });
 *   return { values, indices };
 * });
 * const { outputs } = evaluate(trace(best), { inputs: { x: [5, 7, 7] } });
 * console.assert(String(outputs.values?.data) === "7,7");
 * console.assert(String(outputs.indices?.data) === "1,2");
 * ```
 */
export function topK<
  A extends string,
  D extends Float,
  const E extends Axis<A>,
  const C extends string = "choice",
>(
  x: Tensor<A, D>,
  options: TopKOptions<E, C>,
): TopK<Cat<Without<A, E>, C>, D> {
  const { over, k, axis = "choice" } = options;
  const trace = traceOf([x], topK);
  const span = callSite(topK);
  const tuple = makeNode("topK", [x.node], { over, k, axis }, span);
  const read = (field: "values" | "indices") =>
    makeNode("part", [tuple], { field }, span);
  return {
    values: wrap(read("values"), trace),
    indices: wrap(read("indices"), trace),
  };
}

declare const routing: unique symbol;

/**
 * Which experts each token goes to, and with what weight: the handle that `dispatch` makes use of and `combine` needs.
 * `index` and `weight` can be computed with and returned.
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
  /** The weight of each choice in `combine`; 0 if dropped. */
  readonly weight: Tensor<Cat<Token, Choice>, "f32">;
  /** For the compiler. */
  readonly node: NodeOf<"route">;
  /** For the compiler. */
  readonly trace: Trace;
}

/** A routing by a preset with capacity: tokens have slots, and may be dropped. */
export interface CapacityRouting<
  out Token extends string = string,
  out Expert extends string = string,
  out Slot extends string = string,
  out Choice extends string = string,
> extends Routing<Token, Expert, Slot, Choice> {
  /** The slot of each choice at its expert, within its routing group; -1 if dropped. */
  readonly slot: Tensor<Cat<Token, Choice>, "i32">;
}

/** Presets with capacity. */
export type CapacityPreset = {
  [P in RoutingPreset]: (typeof ROUTING_PRESETS)[P] extends { capacity: string }
    ? P
    : never;
}[RoutingPreset];

/** Groups of experts to choose from. */
export interface ExpertGroups {
  readonly count: number;
  readonly keep: number;
  /** Instead of the preset's: what a group is worth, its best expert or its two best together. */
  readonly score?: GroupScore;
}

/** Options of `route`. */
export interface RouteOptions<
  A extends string,
  E extends string,
  P extends RoutingPreset,
  S extends string,
  C extends string,
> {
  /** The axis of experts. */
  readonly over: E;
  /** Experts per token. */
  readonly topK: number;
  /** How the router scores, weighs and drops; default: softmax over all experts, weights as they are. */
  readonly preset?: P;
  /** Instead of the preset's: what an expert scores. */
  readonly score?: RoutingRule["score"];
  /** Instead of the preset's: whether weights are divided by their sum. */
  readonly normalize?: "none" | "chosen";
  /** Instead of the preset's: whether a weight multiplies what an expert makes or what it is given. */
  readonly weighs?: "input" | "output";
  /** Added to the scores for choosing; weights do not have it. */
  readonly bias?: Tensor<NoInfer<E>, "f32">;
  /** Choose only from the `keep` best of `count` groups of neighbouring experts. */
  readonly expertGroups?: ExpertGroups;
  /** Multiplies the weights; default 1. */
  readonly scale?: number;
  /** The name of the axis of an expert's tokens; default "slot". It has no size. */
  readonly slot?: S;
  /** The name of the axis of choices, of size `topK`; default "choice". */
  readonly choice?: C;
  /**
   * The routing group that capacity acts on: the name of the first axis, or an integer per token. Without one, all
   * tokens are one group.
   */
  readonly group?:
    | Axis<NoInfer<A>>
    | Tensor<Without<NoInfer<A>, NoInfer<E>>, "i32">;
  /** Added to the logits where a preset chooses with noise. */
  readonly noise?: Tensor<NoInfer<A>, "f32">;
}

/** The preset's choices, and those set one by one. */
function ruleOf(
  axes: string,
  options: Omit<
    RouteOptions<string, string, RoutingPreset, string, string>,
    "bias" | "group" | "noise"
  >,
  span: Span | undefined,
): RoutingRule {
  const { preset, topK, expertGroups, scale } = options;
  const known: { [preset: string]: PresetRule } = ROUTING_PRESETS;
  const start: PresetRule | undefined = preset === undefined
    ? { score: "softmax", normalize: "none" }
    : Object.hasOwn(known, preset)
    ? known[preset]
    : undefined;
  if (start === undefined) {
    throw new ModelError(
      `Cannot route '${axes}': there is no preset '${preset}'. Presets are ${
        Object.keys(known).map((name) => `'${name}'`).join(", ")
      }`,
      span,
    );
  }
  const { groupScore = "max", ...rule } = start;
  return {
    ...rule,
    preset: preset ?? "none",
    topK,
    score: options.score ?? rule.score,
    normalize: options.normalize ?? rule.normalize,
    ...options.weighs ? { weighs: options.weighs } : {},
    ...expertGroups
      ? { expertGroups: { score: groupScore, ...expertGroups } }
      : {},
    ...scale === undefined ? {} : { scale },
  };
}

class Routed {
  readonly node: NodeOf<"route">;
  readonly trace: Trace;

  constructor(node: NodeOf<"route">, trace: Trace) {
    this.node = node;
    this.trace = trace;
  }

  /** A part, written where the property is read. */
  #part(field: "index" | "weight" | "slot"): Tensor<never, never> {
    const getter = Object.getOwnPropertyDescriptor(Routed.prototype, field);
    const span = getter?.get ? callSite(getter.get) : this.node.span;
    return wrap(makeNode("part", [this.node], { field }, span), this.trace);
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
}

/**
 * Choose experts for each token from the router's logits. Presets, such as "mixtral" (softmax, weights divided by their
 * sum) and "fairscale.top2" (two experts, capacity floor(2 · tokens / experts) per group, weights divided by the sum of
 * those kept), are in spec/routing.md; each of their choices can be set by itself.
 *
 * Axes: `logits` has the token axes and `over`; `index`, `weight` and `slot` have the token axes and `choice`. Dtype:
 * "f32". Errors: an axis that the logits do not have; a group that is not the first axis; noise with other axes; a
 * `topK` that the preset does not have, or more than there are experts; `slot` of a preset without capacity; a bias
 * that is not along the experts; groups that do not divide the experts, or of which too few are kept.
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
>(
  logits: Tensor<A, "f32">,
  options: RouteOptions<A, E, P, S, C>,
): P extends CapacityPreset ? CapacityRouting<Without<A, E>, E, S, C>
  : Routing<Without<A, E>, E, S, C> {
  const { over, group, noise, bias } = options;
  const span = callSite(route);
  if (typeof group === "string" && !logits.node.axes.includes(group)) {
    throw new ModelError(
      say.axis("group", without(logits.node.axes, [over]), group),
      span,
    );
  }
  const tensors: Tensor[] = [logits];
  if (group !== undefined && typeof group !== "string") {
    tensors.push(group as Tensor);
  }
  const grouped = tensors.length === 2;
  if (noise !== undefined) tensors.push(noise);
  if (bias !== undefined) tensors.push(bias);
  const trace = traceOf(tensors, route);
  const node = makeNode("route", tensors.map((tensor) => tensor.node), {
    rule: ruleOf(logits.axes, options, span),
    expert: over,
    slot: options.slot ?? "slot",
    choice: options.choice ?? "choice",
    tokens: without(logits.node.axes, [over]),
    ...typeof group === "string" ? { leadingGroup: group } : {},
    grouped,
    noisy: noise !== undefined,
    biased: bias !== undefined,
  }, span);
  // `Routed` has every part; which of them the preset has is in the type, and checked when one is read.
  return new Routed(node, trace) as unknown as ReturnType<
    typeof route<A, E, P, S, C>
  >;
}

/** The routing's node, or the complaint of callers without types. */
function routeNode(
  routing: Routing | undefined,
  verb: typeof dispatch | typeof combine,
): NodeOf<"route"> {
  if (routing?.node?.primitive !== "route") {
    throw new ModelError(
      `Cannot ${verb.name}: the second operand is not a routing`,
      callSite(verb),
    );
  }
  return routing.node;
}

/**
 * Send each token to its experts. What is computed on the result must keep rows apart until `combine`.
 *
 * Axes: `x` has the routed token axes; the result is `expert slot`, then the others. Dtype: that of `x`. Errors: `x`
 * without a routed axis; when traced, a result that never reaches `combine`, or whose rows are mixed.
 *
 * @example
 * ```ts
 * const layer = model({ token: 4, embed: 2, expert: 2 }, (m) => {
 *   const x = m.input("x", "token embed");
 *   const logits = dot(x, m.param("router", "expert embed"), "embed");
 *   const routing = route(logits, { over: "expert", topK: 1, preset: "mixtral" });
 *   const sent = dispatch(x, routing);
 *   console.assert(sent.axes === "expert slot embed");
 *   return { y: combine(sent, routing) };
 * });
 * trace(layer);
 * ```
 */
export function dispatch<
  A extends string,
  T extends string,
  E extends string,
  S extends string,
  D extends Float | "i32" | "u32",
>(
  x: CanDispatch<A, NoInfer<T>, Tensor<A, D>>,
  routing: Routing<T, E, S>,
): Tensor<Cat<`${E} ${S}`, Without<A, Axis<T>>>, D> {
  let value = x as unknown as Tensor;
  const trace = traceOf([value, routing], dispatch);
  const node = routeNode(routing, dispatch);
  const span = callSite(dispatch);
  const { tokens } = node.params;
  if (without(tokens, value.node.axes).length > 0) {
    throw new ModelError(say.dispatch(value.node.axes, tokens), span);
  }
  const order = [...tokens, ...without(value.node.axes, tokens)].join(" ");
  if (order !== value.axes) value = transpose(value, order);
  const sent = makeNode("dispatch", [value.node, node], {}, span);
  trace.dispatched.push(sent);
  return wrap(sent, trace);
}

/**
 * Bring the experts' results home: for each token the weighted sum over its choices, in their order; 0 for those
 * dropped.
 *
 * Axes: `y` starts with `expert slot`; the result is the routed token axes, then the others. Dtype: that of `y`.
 * Errors: other axes; when traced, a value that `routing` did not dispatch.
 *
 * @example
 * ```ts
 * const twice = model({ token: 1, embed: 1, expert: 2 }, (m) => {
 *   const logits = m.input("logits", "token expert");
 *   const routing = route(logits, { over: "expert", topK: 2, preset: "mixtral" });
 *   const sent = dispatch(m.input("x", "token embed"), routing);
 *   return { y: combine(mul(sent, 2), routing) };
 * });
 * const { outputs } = evaluate(trace(twice), { inputs: { logits: [0, 0], x: [3] } });
 * console.assert(outputs.y?.data[0] === 6);
 * ```
 */
export function combine<
  A extends string,
  T extends string,
  E extends string,
  S extends string,
  D extends Float,
>(
  y: CanCombine<A, NoInfer<E>, NoInfer<S>, Tensor<A, D>>,
  routing: Routing<T, E, S>,
): Tensor<Cat<T, Without<A, E | S>>, D> {
  const value = y as unknown as Tensor;
  const trace = traceOf([value, routing], combine);
  const node = routeNode(routing, combine);
  return wrap(
    makeNode("combine", [value.node, node], {}, callSite(combine)),
    trace,
  );
}
