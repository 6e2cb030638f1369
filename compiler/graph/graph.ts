/** The traced program: immutable nodes that know where they were written. Built by the language, read by the passes. */

import type { DType } from "../../spec/dtype.ts";
import type { Span } from "../../spec/errors.ts";
import type { Expr, ScalarType } from "../../spec/kernel/tree.ts";

/** A scalar function in kernel terms: parameters are locals `p0`, `p1`, …; `lets` bind in order; pure. */
export interface ScalarFunction {
  readonly parameters: readonly ScalarType[];
  readonly lets: readonly { readonly name: string; readonly value: Expr }[];
  readonly result: Expr;
}

/** A scalar function of the model: the JavaScript (its own oracle) and where it was written, or its lowering if already known. */
export interface Lambda {
  readonly js: (...xs: number[]) => number;
  readonly span: Span | undefined;
  /** Known for built-in functions (add, mul, …); found by `source/` for the user's lambdas. */
  readonly lowered?: ScalarFunction;
}

/**
 * How a router chooses, weighs and drops: independent choices. The presets are rows of `routing.ts`.
 *
 * Experts are chosen by score + bias where there is a bias or groups are scored by sums, else by their logits, which
 * softmax and sigmoid keep in order.
 */
export interface RoutingRule {
  readonly preset: string;
  readonly topK: number;
  /** What an expert scores: its share of the softmax over all, or over the chosen only; its sigmoid; its logit. */
  readonly score: "softmax" | "chosenSoftmax" | "sigmoid" | "none";
  /** Of `count` groups of neighbouring experts, only the `keep` best can be chosen from. */
  readonly expertGroups?: {
    readonly count: number;
    readonly keep: number;
    readonly score: "max" | "top2Sum";
  };
  /** `none`: the score; `chosen`: divided by the sum over the chosen; `kept`: divided by the sum over those kept after dropping. */
  readonly normalize: "none" | "chosen" | "kept";
  /** Added to the sum that weights are divided by; default 0. */
  readonly epsilon?: number;
  /** Multiplies the weights; default 1. */
  readonly scale?: number;
  /** What a weight multiplies: the expert's result (the default), or the row that it is given. */
  readonly weighs?: "input" | "output";
  /** fairscale: floor(2 * tokens of the group / experts) slots, first choices before second ones. Absent: dropless. */
  readonly capacity?: "fairscale.top2";
}

/** Parameters of each primitive. Inputs are named in the comment, in order. */
export interface PrimitiveParams {
  /** A tensor given at run time. */
  input: { readonly name: string };
  /** A tensor of the checkpoint. `stack`: the axis whose `{axis}` in the name makes one source tensor per index. */
  param: { readonly name: string; readonly stack?: string };
  /** A tensor kept between runs, zero at first. */
  state: { readonly name: string };
  /** Elementwise, operands broadcast by axis name; node.axes is the union in the order of the operand that has them all. */
  map: { readonly lambda: Lambda; readonly verb: string };
  /** a, b: contract over axes that both have; other shared axes are batch axes. */
  dot: { readonly over: readonly string[] };
  /** x */
  reduce: { readonly kind: "sum" | "max" | "mean"; readonly over: string };
  /** x */
  softmax: { readonly over: string };
  /** x, gain: gain * x / sqrt(mean(x^2) + epsilon) */
  rmsNorm: { readonly over: string; readonly epsilon: number };
  /** x, position: rotate pairs (j, j + d/2), or (2j, 2j + 1) if interleaved, by position * inverseFrequencies[j]. `positions` bounds position. */
  rope: {
    readonly over: string;
    readonly inverseFrequencies: readonly number[];
    readonly scale: number;
    readonly interleaved: boolean;
    readonly positions: number;
  };
  /** table, ids: the row of table along `over` for each id */
  embedding: { readonly over: string };
  /** x */
  rename: { readonly from: string; readonly to: string };
  /** x: axis becomes the axes `into`, row-major */
  split: { readonly axis: string; readonly into: readonly string[] };
  /** x: adjacent axes become one */
  merge: { readonly axes: readonly string[]; readonly to: string };
  /** x: positions start, start + step, … of axis, as axis `to` */
  slice: {
    readonly axis: string;
    readonly start: number;
    readonly step: number;
    readonly to: string;
  };
  /** xs: along `axis` of each (may differ in name: given by `axes`), into `to` */
  concat: { readonly axes: readonly string[]; readonly to: string };
  /** x: node.axes is the new order */
  transpose: Record<never, never>;
  /** x: node.dtype is the new type */
  cast: Record<never, never>;
  /** x: read by `part` as values and indices, axis `over` replaced by `axis` at the end */
  topK: { readonly over: string; readonly k: number; readonly axis: string };
  /** logits, then group (i32 over the token axes) if `grouped`, noise if `noisy`, the experts' bias if `biased`. `tokens`: the routed axes; `leadingGroup`: the axis among them that is the routing group. */
  route: {
    readonly rule: RoutingRule;
    readonly expert: string;
    readonly slot: string;
    readonly choice: string;
    readonly tokens: readonly string[];
    readonly leadingGroup?: string;
    readonly grouped: boolean;
    readonly noisy: boolean;
    readonly biased: boolean;
  };
  /** index i32, weight f32, then slot i32 (-1: dropped) if `slotted`, each [tokens…, choice]: a routing that is given. Of its rule, how many choices there are and what weights multiply matter. */
  choices: {
    readonly rule: RoutingRule;
    readonly expert: string;
    readonly slot: string;
    readonly choice: string;
    readonly tokens: readonly string[];
    readonly slotted: boolean;
  };
  /** topK, route or choices: one of its results. route: index i32, weight f32, slot i32 (-1: dropped), each [tokens…, choice] */
  part: { readonly field: "values" | "indices" | "index" | "weight" | "slot" };
  /** x, routing: [tokens…, rest…] -> [expert, slot, rest…] */
  dispatch: Record<never, never>;
  /** y, routing: [expert, slot, rest…] -> [tokens…, rest…], the weighted sum in the order of choices */
  combine: Record<never, never>;
  /** x: all of `axis`, which the ranks hold in parts, on each of them, in global order, as axis `to`. Only placement makes it. */
  gather: { readonly axis: string; readonly to: string };
  /** x: of axis `whole`, which gathering made, the rank's own part, as axis `to`. Only placement makes it. */
  take: { readonly whole: string; readonly to: string };
  /** state [sequence, context, …], value [token, …], sequence, position: the state with value at (sequence, position) of each token */
  cacheWrite: Record<never, never>;
  /**
   * q [token, head, dim]; keys [sequence, context, kvHead, dim] and values [sequence, context, kvHead, valueDim] after
   * writing; sequence, position, then sinks [head] if `sinks` -> [token, head, valueDim]. Without `kvHead` all heads
   * read one key, [sequence, context, dim]. `shared`: values are the first elements of the keys.
   */
  attention: {
    readonly scale: number;
    readonly window?: number;
    /** Tokens see positions of their own block of so many only. */
    readonly chunk?: number;
    readonly token: string;
    readonly head: string;
    readonly dim: string;
    readonly valueDim: string;
    readonly kvHead?: string;
    readonly context: string;
    readonly sinks: boolean;
    readonly shared: boolean;
  };
}

/** Names of the primitives. */
export type Primitive = keyof PrimitiveParams;

/** One value of the program. */
export type Node = { readonly [P in Primitive]: NodeOf<P> }[Primitive];

/** A node of a given primitive. `axes` and `dtype` are its type; a `route` or `topK` node is only read through `part`, `dispatch`, `combine`. */
export interface NodeOf<P extends Primitive> {
  readonly primitive: P;
  readonly inputs: readonly Node[];
  readonly params: PrimitiveParams[P];
  readonly axes: readonly string[];
  readonly dtype: DType;
  readonly span: Span | undefined;
}

/** What dispatch and combine go by: a router's choices, or given ones. */
export type RoutingNode = NodeOf<"route"> | NodeOf<"choices">;

/** Whether a node is what dispatch and combine go by. */
export function isRouting(node: Node | undefined): node is RoutingNode {
  return node?.primitive === "route" || node?.primitive === "choices";
}

/** Length of an axis: fixed, or bounded and known at run time. */
export interface AxisSize {
  readonly size: number;
  readonly dynamic: boolean;
}

/** A traced model. */
export interface Graph {
  readonly axes: { readonly [name: string]: AxisSize };
  /** Every node that an output needs, inputs before users. */
  readonly nodes: readonly Node[];
  /** Named outputs. An output that updates a state is in `states` instead. */
  readonly outputs: { readonly [name: string]: Node };
  /** State name -> the node that is its next value. */
  readonly states: { readonly [name: string]: Node };
}
