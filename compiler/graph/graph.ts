/** The traced program: immutable nodes with source positions. The language builds it; passes read it. */

import type { DType, HalfDType } from "../../spec/dtype.ts";
import type { Span } from "../../spec/errors.ts";
import type {
  AxisCount,
  AxisLength,
  AxisName,
  AxisNames,
  AxisSet,
  Few,
  ShortText,
} from "../../spec/values.ts";
import type { AttentionParams, AttentionPart } from "./attention_params.ts";
import type { CollectiveParams } from "./collectives.ts";
import type { DefinedParams } from "./primitives/mod.ts";
import type { Sharding } from "./sharding.ts";
import type { Expr, ScalarType } from "../../spec/kernel/tree.ts";

/** A pure scalar function in kernel terms: parameters are locals `p0`, `p1`, …; `lets` bind in order. */
export interface ScalarFunction {
  /** @maxItems 64 */
  readonly parameters: readonly ScalarType[];
  /** @maxItems 1024 */
  readonly lets: readonly { readonly name: ShortText; readonly value: Expr }[];
  readonly result: Expr;
}

/**
 * A scalar function of the model: the JavaScript function (its own oracle) with its source position, or its lowering if
 * known.
 */
export interface Lambda {
  readonly js: (...xs: number[]) => number;
  readonly span: Span | undefined;
  /** Known for built-in functions (add, mul, …); `source/` finds it for the user's lambdas. */
  readonly lowered?: ScalarFunction;
}

/**
 * Selection, weights and dropping of a router as independent options. `routing/presets.ts` lists the presets, spec/routing.md
 * the formulas.
 *
 * With a bias, or groups worth several experts, experts are chosen by score + bias; otherwise by their logits, which
 * softmax, sigmoid and softplus keep in order.
 */
export interface RoutingRule {
  readonly preset: ShortText;
  readonly topK: Few;
  /** Instead of the best experts: the operand `choices`, or one expert after another. */
  readonly choose?: "given" | "balanced";
  /** Score of an expert: softmax over all experts, softmax over the chosen ones, sigmoid, root of softplus, or logit. */
  readonly score:
    | "softmax"
    | "chosenSoftmax"
    | "sigmoid"
    | "sqrtSoftplus"
    | "none";
  /**
   * Of `count` groups of adjacent experts, only the `keep` best can be chosen from. A group is worth the sum of its
   * `best` best experts.
   */
  readonly expertGroups?: {
    readonly count: Few;
    readonly keep: Few;
    readonly best: Few;
  };
  /** Choices that use the noise. Default: "all". */
  readonly noisy?: "all" | "second";
  /**
   * `none`: the score; `chosen`: divided by the sum over the chosen experts; `kept`: divided by the sum over the kept
   * choices.
   */
  readonly normalize: "none" | "chosen" | "kept";
  /** Added to the divisor of weights. Default: 0. */
  readonly epsilon?: number;
  /** Minimum of the divisor. */
  readonly minSum?: number;
  /** Multiplies the weights. Default: 1. */
  readonly scale?: number;
  /** Operand of the weight: the output (default) or the input of the expert. */
  readonly weighs?: "input" | "output";
  /** Absent: dropless. */
  readonly capacity?: CapacityRule;
}

/** Number of slots of an expert in a routing group, and their assignment. */
export interface CapacityRule {
  /** A number, the load of the fullest expert, or a formula of `routing/presets.ts`. */
  readonly slots:
    | AxisLength
    | "largest"
    | "floor"
    | "ceil"
    | "ceilF32"
    | "floorOfCeil";
  /** Factor of the even share in a formula. Default: 1. */
  readonly factor?: number;
  /** The quantity that is balanced: the choices (default) or the tokens of a group. */
  readonly per?: "choice" | "token";
  readonly minimum?: AxisLength;
  /** Multiple that C is rounded up to. */
  readonly alignment?: AxisLength;
  /**
   * Dropped choices beyond capacity: the last in order, those of the lowest weights, or those of the lowest random
   * numbers.
   */
  readonly drop: "position" | "score" | "random";
  /** Slot order: all first choices, then all second ones, …; or token by token. */
  readonly order: "choice" | "token";
  /** Orders tokens by the score of their first choice, descending, instead of by index. */
  readonly prioritised?: boolean;
}

/** Operands of a router besides logits. */
export type RouteOperand =
  | "group"
  | "noise"
  | "bias"
  | "mask"
  | "random"
  | "choices"
  | "weights";

/** Parameters of each primitive. The comment names its operands in order. */
export interface PrimitiveParams extends DefinedParams, CollectiveParams {
  /** A tensor given at run time. */
  input: { readonly name: ShortText };
  /** A tensor of the checkpoint. `stack`: the axis of the `{axis}` in the name; each index is a source tensor. */
  param: { readonly name: ShortText; readonly stack?: AxisName };
  /** A persistent tensor, initially zero. `stored`: 16-bit dtype of a cache, rounded on write. */
  state: { readonly name: ShortText; readonly stored?: HalfDType };
  /**
   * Elementwise, with operands broadcast by axis name. node.axes is the union, in the order of the operand with all
   * axes.
   */
  map: { readonly lambda: Lambda; readonly op: ShortText };
  /**
   * a, b: contracts shared axes; other shared axes are batch axes. `segments`: number of segments of a rank with a part
   * of the terms, if it differs from that of the length (`segmentsOf`). Only placement sets it.
   */
  dot: { readonly over: AxisSet; readonly segments?: number };
  /** x */
  reduce: { readonly kind: "sum" | "max" | "mean"; readonly over: AxisName };
  /**
   * x, or x and y: the sum over axes of x, or of their products as in `dot`. Only differentiation creates it, over
   * tokens or slots: a rank's result is a partial sum.
   */
  reduceSum: { readonly over: AxisSet };
  /**
   * x, position: rotates pairs (j, j + n), or (2j, 2j + 1) if interleaved, by position * inverseFrequencies[j], j < n.
   * Elements from 2n on are copied. `positions`: upper bound of position.
   */
  rope: {
    readonly over: AxisName;
    /** @maxItems 4096 */
    readonly inverseFrequencies: readonly number[];
    readonly scale: number;
    readonly interleaved: boolean;
    readonly positions: AxisLength;
  };
  /** table, ids: the row of table along `over` for each id; shared axes are batch axes */
  embedding: { readonly over: AxisName };
  /**
   * rows, ids: the transpose of `embedding`: rows summed by id along `over`, in the order of ids. Axes that the result
   * lacks are summed. `replicated`: every rank has all rows, so that bits do not depend on the mesh; otherwise a rank's
   * result is a partial sum.
   */
  scatterAdd: { readonly over: AxisName; readonly replicated?: true };
  /** x */
  rename: { readonly from: AxisName; readonly to: AxisName };
  /** x: axis becomes the axes `into`, row-major */
  split: { readonly axis: AxisName; readonly into: AxisSet };
  /** x: adjacent axes become one */
  merge: { readonly axes: AxisSet; readonly to: AxisName };
  /** x: elements start, start + step, … of axis, as axis `to` */
  slice: {
    readonly axis: AxisName;
    readonly start: AxisLength;
    readonly step: AxisCount;
    readonly to: AxisName;
  };
  /** xs: along `axis` of each (may differ in name: given by `axes`), into `to` */
  concat: { readonly axes: AxisNames; readonly to: AxisName };
  /** x: the transpose of `slice`: x at elements start, start + step, … of axis `to`, which is 0 elsewhere */
  dilate: {
    readonly axis: AxisName;
    readonly start: AxisLength;
    readonly step: AxisCount;
    readonly to: AxisName;
  };
  /** x: node.axes is the new order */
  transpose: Record<never, never>;
  /** x: node.dtype is the new type */
  cast: Record<never, never>;
  /** x: read by `tupleElement` as values and indices, with axis `over` replaced by `axis` at the end */
  topK: {
    readonly over: AxisName;
    readonly k: Few;
    readonly axis: AxisName;
  };
  /**
   * logits, then the operands of `operands` in its order: group and mask (0: padding) i32 over the token axes, noise
   * and random like the logits, bias over the experts, choices i32 and weights [tokens…, choice]. `tokens`: the routed
   * axes; `leadingGroup`: the token axis that is the routing group.
   */
  route: {
    readonly rule: RoutingRule;
    readonly expert: AxisName;
    readonly slot: AxisName;
    readonly choice: AxisName;
    readonly tokens: AxisSet;
    readonly leadingGroup?: AxisName;
    /**
     * @maxItems 64
     * @uniqueItems
     */
    readonly operands: readonly RouteOperand[];
  };
  /**
   * index i32, weight f32, then slot i32 (-1: dropped) if `slotted`, each [tokens…, choice]: a given routing. Only the
   * number of choices and the weighted operand of its rule are used.
   */
  choices: {
    readonly rule: RoutingRule;
    readonly expert: AxisName;
    readonly slot: AxisName;
    readonly choice: AxisName;
    readonly tokens: AxisSet;
    readonly slotted: boolean;
  };
  /**
   * topK, route or choices: one of its results. route: index i32, weight f32, slot i32 (-1: dropped), each [tokens…,
   * choice]; and f32 [tokens…, expert]: 1 if the expert was chosen, chosen first, kept, or kept with dropped choices
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
  /** x, routing: [tokens…, rest…] -> [expert, slot, rest…]; `weighted`: overrides whether the weight is applied */
  dispatch: { readonly weighted?: boolean };
  /**
   * y, routing: [expert, slot, rest…] -> [tokens…, rest…], the sum in the order of choices; `weighted`: overrides
   * whether weights are applied; `once`, after expansion: ranks have pre-summed the rows of a token
   */
  combine: { readonly weighted?: boolean; readonly once?: boolean };
  /** y, routing: [expert, slot, rest…] -> [tokens…, choice, rest…], 0 where dropped */
  combineTranspose: Record<never, never>;
  /**
   * x: the same value at the start (`in`) or end (`out`) of a block that is recomputed for gradients. The recomputation
   * starts with the value taken after `after`: x, after.
   */
  optimizationBarrier: {
    /**
     * @integer
     * @minimum 0
     * @maximum MAX_NODES
     */
    readonly block: number;
    readonly end: "in" | "out";
  };
  /**
   * Nodes that expanding a dispatch inserts (see passes/expand.ts), each on [expert, slot, rest…]. routing: the row of
   * each choice, by owner, expert and token, and counts of rows; `once`: also for deduplicated tokens; `sums`: tokens
   * whose rows are pre-summed before they return; `over` and `splits`: mesh axes of the exchange, and the experts of each
   * group rank; `localOnly`: only choices of local experts; `local`: rows stay on this rank and are grouped at once.
   */
  assign: {
    readonly expert: string;
    readonly slot: string;
    readonly over: readonly string[];
    readonly splits: readonly number[];
    readonly chunks: number;
    readonly once: boolean;
    readonly sums: boolean;
    readonly localOnly: boolean;
    readonly local: boolean;
  };
  /** assign: its counts on every rank of the group */
  gatherCounts: { readonly over: readonly string[] };
  /**
   * gatherCounts: the counts of a round in which each rank receives at most `rows` of at most `maxRows` rows; starts the
   * rounds
   */
  rounds: {
    readonly over: readonly string[];
    readonly rows: number;
    readonly maxRows: number;
  };
  /** gatherCounts over nodes: rows that this rank forwards to the experts of its node, divided over `over` by `splits` */
  nodeCounts: {
    readonly over: readonly string[];
    readonly splits: readonly number[];
  };
  /**
   * rows, group of rows received from nodes, nodeCounts: the rows ordered by the experts of the node (forward), or at the
   * offsets where they were received (back); `once`: of deduplicated tokens
   */
  moveRows: {
    readonly direction: "forward" | "back";
    readonly once: boolean;
  };
  /** counts (gatherCounts, rounds, or assign on one rank): the received rows of each expert, or of the experts of a chunk */
  group: {
    readonly expert: string;
    readonly slot: string;
    readonly chunk: number;
  };
  /** x, assign: [tokens…, rest…] in the order of send rows; `once`: of tokens */
  permute: { readonly weighted: boolean; readonly once: boolean };
  /**
   * rows, gatherCounts or rounds, then the rows of earlier chunks, which are preserved: sends rows to the ranks of their experts,
   * or back
   */
  allToAll: {
    readonly direction: "forward" | "back";
    readonly chunk: number;
    readonly once: boolean;
  };
  /** rows, group: received rows by expert; `inPlace`: the tokens themselves, read once per choice */
  received: { readonly once: boolean; readonly inPlace: boolean };
  /** rows, group: the sum of the rows of each deduplicated token, in the order of choices */
  localCombine: { readonly weighted: boolean };
  /**
   * The index of each block of keys in gathered memory, [sequence, block]. Its axes in the plan: see `KeysAxis`; ranks
   * along `over` share the positions.
   */
  keyTable: {
    readonly past: string;
    readonly gathered: string;
    readonly relayed: string;
    readonly over: readonly string[];
  };
  /** cache after writing, keyTable, the page table of a paged cache: the earlier blocks of all ranks, [block, key, …] */
  gatherKeys: Record<never, never>;
  /** assign, groups: ids of choices, sent to the experts and back, and compared */
  checkIds: Record<never, never>;
  /**
   * state [sequence, context, …], value [token, …], sequence, position: the state with value at (sequence, position) of
   * each token. With `paginate`: state [page, within, …], and a last operand: the page table [sequence, block]
   */
  cacheWrite: {
    /** Tokens with a negative position write nothing. */
    readonly sparse?: true;
  };
  /**
   * q [token, head, dim]; keys [sequence, context, kvHead, dim] and values [sequence, context, kvHead, valueDim] after
   * writing; sequence, position, then sinks [head] if `sinks`, then positions to attend to [token, selected] if
   * `selected` ([token, kvHead, selected] if `selectedPerHead`), then `entries` [sequence, entries, dim] and, without `selected`, the last entry [token] -> [token, head,
   * valueDim]. Without `kvHead` all heads read one key, [sequence, context, dim]. `shared`: values are the first elements
   * of the keys. With `paginate`: keys and values start with [page, within], and the page table [sequence, block] is last.
   * With `addGatheredForm`: then gathered keys, gathered values, and the keyTable.
   */
  attention: AttentionParams;
  /**
   * q, keys, sequence, position, then sinks if `sinks` and selected positions: the log-sum-exp of each query's scores,
   * [token, head]
   */
  attentionSum: AttentionPart;
  /**
   * q, keys, values, index (sequence * context + position; if `sparse`, sequence * (context + 1) + visible keys), the
   * cotangent of the result [token, head, valueDim], and [token, heads twice]: `attentionSum`, then the product of
   * cotangent and result summed over valueDim; then selected positions. Returns the cotangent of one of the first three;
   * for shared keys it includes that of the values.
   */
  attentionGrad: AttentionPart & {
    readonly of: "query" | "keys" | "values";
  };
}

/** Names of the primitives. */
export type Primitive = keyof PrimitiveParams;

const EXPANDED = [
  "assign",
  "gatherCounts",
  "rounds",
  "nodeCounts",
  "moveRows",
  "group",
  "permute",
  "allToAll",
  "received",
  "localCombine",
  "checkIds",
  "keyTable",
  "gatherKeys",
] as const satisfies readonly Primitive[];

/** Parts of an expanded dispatch, combine and attention. They exist only in graphs over local axes. */
export type Expanded = typeof EXPANDED[number];

/** One table entry for all of them. */
export function ofExpanded<T>(entry: T): { readonly [P in Expanded]: T } {
  return Object.fromEntries(
    EXPANDED.map((primitive) => [primitive, entry]),
  ) as { [P in Expanded]: T };
}

/** One value of the program. */
export type Node = { readonly [P in Primitive]: NodeOf<P> }[Primitive];

/**
 * A node of a given primitive. `axes` and `dtype` are its type. A `route` or `topK` node is read only through
 * `tupleElement`, `dispatch` and `combine`.
 */
export interface NodeOf<P extends Primitive> {
  readonly primitive: P;
  readonly inputs: readonly Node[];
  readonly params: PrimitiveParams[P];
  readonly axes: readonly string[];
  readonly dtype: DType;
  readonly span: Span | undefined;
  /** Block of the node, such as `layers.3.moe`. Absent: none. */
  readonly block?: string;
  /** Phase of a training step. Absent: the forward pass. */
  readonly phase?: Phase;
  /** Micro-batch of the training step, if its graph has several. */
  readonly micro?: number;
  /** `chunk 1 of 2`, if the node is repeated for each chunk of a dispatch. */
  readonly chunk?: string;
  /** Sharding over the ranks, set by `shard`. */
  readonly sharding?: Sharding;
}

/** Source position, block, phase and micro-batch of a node. */
export type Origin = Pick<Node, "span" | "block" | "phase" | "micro">;

/** The origin of a node, for nodes derived from it. */
export function originOf({ span, block, phase, micro }: Origin): Origin {
  return {
    span,
    ...micro === undefined ? {} : { micro },
    ...block === undefined ? {} : { block },
    ...phase === undefined ? {} : { phase },
  };
}

/** Phases after the forward pass: gradients, then next values of parameters. */
export type Phase = "backward" | "update";

/** The routing of a dispatch or combine: a router's choices, or given ones. */
export type RoutingNode = NodeOf<"route"> | NodeOf<"choices">;

/** The operands that determine a value, without the one that the recomputation of a block waits for. */
export function valueInputs({ primitive, inputs }: Node): readonly Node[] {
  return primitive === "optimizationBarrier" ? inputs.slice(0, 1) : inputs;
}

/** Whether a node is a routing. */
export function isRouting(node: Node | undefined): node is RoutingNode {
  return node?.primitive === "route" || node?.primitive === "choices";
}

/** Whether choices may have no row: choices beyond a capacity, and padding. */
export function dropsChoices({ primitive, params }: RoutingNode): boolean {
  if (primitive === "choices") return params.slotted;
  return params.rule.capacity !== undefined || params.operands.includes("mask");
}

/** Whether weights are applied here: at dispatch or, by default, at combine. */
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

/** Length of an axis: fixed, or dynamic with a bound. */
export interface AxisSize {
  readonly size: AxisCount;
  readonly dynamic: boolean;
}

/** A traced model. */
export interface Graph {
  readonly axes: { readonly [name: string]: AxisSize };
  /** Every node that an output needs, inputs before users. */
  readonly nodes: readonly Node[];
  /** Named outputs. An output that updates a state is in `states`. */
  readonly outputs: { readonly [name: string]: Node };
  /** Next value of each state by name; in training, of parameters too. */
  readonly states: { readonly [name: string]: Node };
}
