/** The traced program: immutable nodes that know where they were written. Built by the language, read by the passes. */

import type { DType, HalfDType } from "../../spec/dtype.ts";
import type { Span } from "../../spec/errors.ts";
import type { CollectiveParams } from "./collectives.ts";
import type { DefinedParams } from "./primitives/mod.ts";
import type { Sharding } from "./sharding.ts";
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
 * How a router chooses, weighs and drops: independent choices. The presets are rows of `routing.ts`; formulas are in
 * spec/routing.md.
 *
 * Experts are chosen by score + bias where there is a bias or groups are worth several experts, else by their logits,
 * which softmax and sigmoid keep in order.
 */
export interface RoutingRule {
  readonly preset: string;
  readonly topK: number;
  /** Instead of the best: the operand `choices`, or one expert after the other. */
  readonly choose?: "given" | "balanced";
  /** What an expert scores: its share of the softmax over all, or over the chosen only; its sigmoid; its logit. */
  readonly score: "softmax" | "chosenSoftmax" | "sigmoid" | "none";
  /** Of `count` groups of neighbouring experts, only the `keep` best can be chosen from; a group is worth its `best` best experts together. */
  readonly expertGroups?: {
    readonly count: number;
    readonly keep: number;
    readonly best: number;
  };
  /** Which choices look at the noise; default "all". */
  readonly noisy?: "all" | "second";
  /** `none`: the score; `chosen`: divided by the sum over the chosen; `kept`: divided by the sum over those kept after dropping. */
  readonly normalize: "none" | "chosen" | "kept";
  /** Added to the sum that weights are divided by; default 0. */
  readonly epsilon?: number;
  /** That sum is at least this. */
  readonly minSum?: number;
  /** Multiplies the weights; default 1. */
  readonly scale?: number;
  /** What a weight multiplies: the expert's result (the default), or the row that it is given. */
  readonly weighs?: "input" | "output";
  /** Absent: dropless. */
  readonly capacity?: CapacityRule;
}

/** How many slots an expert has in a routing group, and who gets them. */
export interface CapacityRule {
  /** A number; as many as the fullest expert needs; or a formula of `routing.ts`. */
  readonly slots:
    | number
    | "largest"
    | "floor"
    | "ceil"
    | "ceilF32"
    | "floorOfCeil";
  /** Of a formula: multiplies the even share; default 1. */
  readonly factor?: number;
  /** What is shared evenly: the choices of a group (the default) or its tokens. */
  readonly per?: "choice" | "token";
  readonly minimum?: number;
  /** Rounded up to a multiple of this. */
  readonly alignment?: number;
  /** Which choices are dropped where there are too many: the last in order, those of the lowest weights, those of the lowest random numbers. */
  readonly drop: "position" | "score" | "random";
  /** Slots go to all first choices, then to all second ones, …; or token by token. */
  readonly order: "choice" | "token";
  /** Tokens in order of the score of their first choice, best first, instead of their own order. */
  readonly prioritised?: boolean;
}

/** What a router may be given besides logits. */
export type RouteOperand =
  | "group"
  | "noise"
  | "bias"
  | "mask"
  | "random"
  | "choices"
  | "weights";

/** Parameters of each primitive. Inputs are named in the comment, in order. */
export interface PrimitiveParams extends DefinedParams, CollectiveParams {
  /** A tensor given at run time. */
  input: { readonly name: string };
  /** A tensor of the checkpoint. `stack`: the axis whose `{axis}` in the name makes one source tensor per index. */
  param: { readonly name: string; readonly stack?: string };
  /** A tensor kept between runs, zero at first. `stored`: of a cache, rounded to 16 bits as it is written. */
  state: { readonly name: string; readonly stored?: HalfDType };
  /** Elementwise, operands broadcast by axis name; node.axes is the union in the order of the operand that has them all. */
  map: { readonly lambda: Lambda; readonly op: string };
  /**
   * a, b: contract over axes that both have; other shared axes are batch axes. `segments`, where it is not that of the length
   * (`segmentsOf`): of a rank that has a part of the terms. Only placement says it.
   */
  dot: { readonly over: readonly string[]; readonly segments?: number };
  /** x */
  reduce: { readonly kind: "sum" | "max" | "mean"; readonly over: string };
  /** x, or x and y: the sum over axes of x, or of their products as in `dot`, where only differentiation makes it: over tokens or slots, so that what a rank has is a part of the sum. */
  reduceSum: { readonly over: readonly string[] };
  /**
   * x, position: rotate pairs (j, j + n), or (2j, 2j + 1) if interleaved, by position * inverseFrequencies[j], j < n. Elements
   * from 2n on are copied. `positions` bounds position.
   */
  rope: {
    readonly over: string;
    readonly inverseFrequencies: readonly number[];
    readonly scale: number;
    readonly interleaved: boolean;
    readonly positions: number;
  };
  /** table, ids: the row of table along `over` for each id; axes that both have go together */
  embedding: { readonly over: string };
  /**
   * rows, ids: the transpose of `embedding`: rows summed where their id is along `over`, in the order of ids. Axes that
   * the result lacks are summed over. `replicated`: every rank has all rows, so that bits do not depend on the mesh;
   * otherwise what a rank has is a part of the sum.
   */
  scatterAdd: { readonly over: string; readonly replicated?: true };
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
  /** x: the transpose of `slice`: x as positions start, start + step, … of axis `to`, which is 0 elsewhere */
  dilate: {
    readonly axis: string;
    readonly start: number;
    readonly step: number;
    readonly to: string;
  };
  /** x: node.axes is the new order */
  transpose: Record<never, never>;
  /** x: node.dtype is the new type */
  cast: Record<never, never>;
  /** x: read by `part` as values and indices, axis `over` replaced by `axis` at the end */
  topK: { readonly over: string; readonly k: number; readonly axis: string };
  /**
   * logits, then the operands that `operands` names, in its order: group and mask (0: padding) i32 over the token axes,
   * noise and random as the logits, bias over the experts, choices i32 and weights [tokens…, choice]. `tokens`: the
   * routed axes; `leadingGroup`: the axis among them that is the routing group.
   */
  route: {
    readonly rule: RoutingRule;
    readonly expert: string;
    readonly slot: string;
    readonly choice: string;
    readonly tokens: readonly string[];
    readonly leadingGroup?: string;
    readonly operands: readonly RouteOperand[];
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
  /**
   * topK, route or choices: one of its results. route: index i32, weight f32, slot i32 (-1: dropped), each [tokens…,
   * choice]; and f32 [tokens…, expert]: how often the expert was chosen, chosen first, kept, or kept with dropped choices
   * counted for expert 0.
   */
  tupleElement: {
    readonly field:
      | "values"
      | "indices"
      | "index"
      | "weight"
      | "slot"
      | "chosen"
      | "first"
      | "kept"
      | "settled";
  };
  /** x, routing: [tokens…, rest…] -> [expert, slot, rest…]; `weighted`: times the weight, instead of what the rule says */
  dispatch: { readonly weighted?: boolean };
  /** y, routing: [expert, slot, rest…] -> [tokens…, rest…], the sum in the order of choices; `weighted`: by the weights, instead of what the rule says; `once`, where it is expanded: ranks have added up the rows of a token */
  combine: { readonly weighted?: boolean; readonly once?: boolean };
  /** y, routing: [expert, slot, rest…] -> [tokens…, choice, rest…], 0 where dropped */
  combineTranspose: Record<never, never>;
  /**
   * x: the same value, where a block begins (`in`) or ends (`out`) that is computed again for gradients. There, what the
   * second computation begins with, it takes after `after`: x, after.
   */
  optimizationBarrier: { readonly block: number; readonly end: "in" | "out" };
  /**
   * What expanding a dispatch inserts (see passes/expand.ts), each on [expert, slot, rest…]. routing: the row that each
   * choice is sent in, by owner, expert and token, and counts of rows; `once`: for tokens that are sent once too; `sums`:
   * whose rows are added up before they return; `localOnly`: only of choices whose experts this rank has; `local`:
   * rows stay on this rank, and are grouped at once.
   */
  assign: {
    readonly expert: string;
    readonly slot: string;
    readonly chunks: number;
    readonly once: boolean;
    readonly sums: boolean;
    readonly localOnly: boolean;
    readonly local: boolean;
  };
  /** assign: its counts on every rank of the group */
  gatherCounts: { readonly over: readonly string[] };
  /** counts (gatherCounts, or assign on one rank): the received rows of each expert, of those of a chunk */
  group: {
    readonly expert: string;
    readonly slot: string;
    readonly chunk: number;
  };
  /** x, assign: [tokens…, rest…] in the order of send rows; `once`: of tokens */
  permute: { readonly weighted: boolean; readonly once: boolean };
  /** rows, gatherCounts, then the rows of earlier chunks, which are kept: rows to the ranks that own their experts, or back */
  allToAll: {
    readonly direction: "forward" | "back";
    readonly chunk: number;
    readonly once: boolean;
  };
  /** rows, group: received rows by expert; `inPlace`: the tokens themselves, each read for every one of its choices */
  received: { readonly once: boolean; readonly inPlace: boolean };
  /** rows, group: the sum of the rows of each token that was received once, in the order of choices */
  localCombine: { readonly weighted: boolean };
  /** assign, groups: ids of choices, sent there and back and compared */
  checkIds: Record<never, never>;
  /** state [sequence, context, …], value [token, …], sequence, position: the state with value at (sequence, position) of each token. Of `paginate`: state [page, within, …], and a table [sequence, block] last */
  cacheWrite: Record<never, never>;
  /**
   * q [token, head, dim]; keys [sequence, context, kvHead, dim] and values [sequence, context, kvHead, valueDim] after
   * writing; sequence, position, then sinks [head] if `sinks` -> [token, head, valueDim]. Without `kvHead` all heads
   * read one key, [sequence, context, dim]. `shared`: values are the first elements of the keys. Of `paginate`: keys and
   * values begin with [page, within], and a table [sequence, block] is last.
   */
  attention: AttentionParams;
  /** q, keys, sequence, position, then sinks if `sinks`: the logarithm of the sum of exponentials of each query's scores, [token, head] */
  attentionSum: AttentionParams;
  /**
   * q, keys, values, place (sequence * context + position), the cotangent of the result [token, head, valueDim], and
   * [token, heads twice]: `attentionSum`, then the product of cotangent and result summed over valueDim. Gives the
   * cotangent of one of the first three; that of shared keys is one with that of their values.
   */
  attentionGrad: AttentionParams & {
    readonly of: "query" | "keys" | "values";
  };
}

/** How queries attend. */
export interface AttentionParams {
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
}

/** Names of the primitives. */
export type Primitive = keyof PrimitiveParams;

const EXPANDED = [
  "assign",
  "gatherCounts",
  "group",
  "permute",
  "allToAll",
  "received",
  "localCombine",
  "checkIds",
] as const satisfies readonly Primitive[];

/** What dispatch and combine are made of: only in graphs over local axes. */
export type Expanded = typeof EXPANDED[number];

/** One entry of a table for all of them. */
export function ofExpanded<T>(entry: T): { readonly [P in Expanded]: T } {
  return Object.fromEntries(
    EXPANDED.map((primitive) => [primitive, entry]),
  ) as { [P in Expanded]: T };
}

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
  /** The block that it is written in, such as `layers.3.moe`; absent: in none. */
  readonly block?: string;
  /** Of a step of training: what it is for, if not for the forward pass. */
  readonly phase?: Phase;
  /** `chunk 1 of 2`, where a node is there once for each chunk of a dispatch. */
  readonly chunk?: string;
  /** How its elements are divided among ranks; `shard` says so. */
  readonly sharding?: Sharding;
}

/** Where a node is written, and what it is for. */
export type Origin = Pick<Node, "span" | "block" | "phase">;

/** The origin of a node, for those that are made because of it. */
export function originOf({ span, block, phase }: Origin): Origin {
  return {
    span,
    ...block === undefined ? {} : { block },
    ...phase === undefined ? {} : { phase },
  };
}

/** What follows the forward pass: gradients, and then next values of parameters. */
export type Phase = "backward" | "update";

/** What dispatch and combine go by: a router's choices, or given ones. */
export type RoutingNode = NodeOf<"route"> | NodeOf<"choices">;

/** The operands that a value is made of: what else the second computation of a block waits for is not in it. */
export function valueInputs({ primitive, inputs }: Node): readonly Node[] {
  return primitive === "optimizationBarrier" ? inputs.slice(0, 1) : inputs;
}

/** Whether a node is what dispatch and combine go by. */
export function isRouting(node: Node | undefined): node is RoutingNode {
  return node?.primitive === "route" || node?.primitive === "choices";
}

/** Whether choices may have no row: those beyond a capacity, and those of padding. */
export function dropsChoices({ primitive, params }: RoutingNode): boolean {
  if (primitive === "choices") return params.slotted;
  return params.rule.capacity !== undefined || params.operands.includes("mask");
}

/** Whether weights are multiplied here: at dispatch or, by default, at combine. */
export function isWeighted(
  { primitive, params, inputs }:
    | Pick<NodeOf<"dispatch">, "primitive" | "params" | "inputs">
    | Pick<NodeOf<"combine">, "primitive" | "params" | "inputs">,
): boolean {
  if (params.weighted !== undefined) return params.weighted;
  const route = inputs[1];
  const input = isRouting(route) && route.params.rule.weighs === "input";
  return input === (primitive === "dispatch");
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
  /** State name -> the node that is its next value; in training, names of parameters too. */
  readonly states: { readonly [name: string]: Node };
}
