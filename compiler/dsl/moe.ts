/** Mixture of experts: selects experts, dispatches tokens, combines results. */

import { ModelError } from "../../spec/errors.ts";
import { isRouting, type RoutingNode } from "../graph/graph.ts";
import { makeNode } from "../graph/make_node.ts";
import { messages as say, without, words } from "../graph/messages.ts";
import type { Routing } from "./route.ts";
import { callSite } from "../../spec/call_site.ts";
import {
  axisOf,
  opName,
  refuse,
  siteOf,
  type Tensor,
  traceOf,
  wrap,
} from "./tensor.ts";
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
  /** The axis of candidates. */
  readonly over: E;
  /** How many. */
  readonly k: number;
  /** The name of the axis of choices, of size `k`; default "choice". */
  readonly axis?: C;
}

/** The largest values along an axis and their indices. A type, so that a model can return it. */
export type TopK<A extends string, D extends Float> = {
  readonly values: Tensor<A, D>;
  readonly indices: Tensor<A, "i32">;
};

/**
 * The `k` largest values of `x` along an axis, by value descending, then index ascending.
 *
 * Axes: those of `x` without `over`, then `axis`. Dtype: "f32" or "f16"; indices are "i32". Errors: an axis that `x`
 * does not have; a `k` that is not an integer from 1 to its length; an axis of choices of another size. Gradient: that
 * of `values` for the chosen elements; `indices` have none. Sharding: along all axes except `over`, which is
 * replicated.
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
  const trace = traceOf([x], topK);
  const site = siteOf(trace, topK);
  const tuple = makeNode("topK", [x.node], {
    over: axisOf(options.over, [x], trace),
    k: options.k,
    axis: axisOf(options.axis ?? "choice", [x], trace),
  }, site);
  const read = (field: "values" | "indices") =>
    makeNode("tupleElement", [tuple], { field }, site);
  return {
    values: wrap(read("values"), trace),
    indices: wrap(read("indices"), trace),
  };
}

/** The node of the routing. Throws an error for untyped callers. */
function routeNode(
  routing: Routing | undefined,
  op: typeof dispatch | typeof combine,
): RoutingNode {
  if (routing === undefined || !isRouting(routing.node)) {
    throw new ModelError(
      `Cannot ${opName(op)}: the second operand is not a routing`,
      callSite(op),
    );
  }
  return routing.node;
}

/**
 * Dispatches each token to its experts. Ops on the result must keep rows separate until `combine`.
 *
 * Axes: `x` has the routed token axes; the result is `expert slot`, then the others. Dtype: that of `x`. Errors: `x`
 * without a routed axis; at tracing, a result that never reaches `combine`, or whose rows are mixed. Gradient:
 * `combine` with weights of 1. Sharding: rows are on the ranks of their experts. If experts are sharded, an all-to-all
 * sends them.
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
  const site = siteOf(trace, dispatch);
  const { tokens } = node.params;
  if (without(tokens, value.node.axes).length > 0) {
    const { expert, slot } = node.params;
    return refuse(
      new ModelError(say.dispatch(value.node.axes, tokens), site.span),
      [value],
      [expert, slot, ...without(value.node.axes, tokens)],
    );
  }
  const order = words([...tokens, ...without(value.node.axes, tokens)]);
  if (order !== value.axes) value = transpose(value, order);
  const sent = makeNode("dispatch", [value.node, node], {}, site);
  trace.dispatched.push(sent);
  return wrap(sent, trace);
}

/**
 * Combines the experts' results: the weighted sum over the choices of each token, in order. Dropped choices add 0.
 *
 * Axes: `y` starts with `expert slot`; the result is the routed token axes, then the others. Dtype: that of `y`.
 * Errors: other axes; at tracing, a value that `routing` did not dispatch. Gradient: by `y`, `dispatch` times the
 * weights; by the weights, the product with the rows. Sharding: an all-to-all returns rows to the ranks of their
 * tokens.
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
  const site = siteOf(trace, combine);
  return wrap(makeNode("combine", [value.node, node], {}, site), trace);
}
