/** Balancing losses and z-loss of routers. spec/routing.md lists formulas and sources. */

import { shortAxis } from "../../spec/axis_name.ts";
import { ModelError, type Span } from "../../spec/errors.ts";
import { expr } from "../../spec/kernel/text/resolve.ts";
import type { Node, NodeOf } from "../graph/graph.ts";
import { messages as say, without, words } from "../graph/messages.ts";
import {
  builderContext,
  NodeBuilder,
} from "../graph/gradients/node_builder.ts";
import { sameAxes } from "../graph/operands.ts";
import {
  type BalancingFormula,
  balancingFormula,
  type BalancingRule,
} from "../graph/routing/losses.ts";
import { biasStep } from "../graph/selection_bias.ts";
import type { Routing } from "./route.ts";
import {
  axisOf,
  type Op,
  opName,
  siteOf,
  type Tensor,
  traceOf,
  wrap,
} from "./tensor.ts";
import type { Axis, Without } from "./types.ts";

/** One value, or one per layer. */
type OneOrMore<T> = T | readonly T[];

/** Tokens that count, and axes that the loss keeps. */
export interface TokenOptions<A extends string, E extends string, G> {
  /** The axis of experts. */
  readonly over: E;
  /**
   * Axis of the result, for a loss per sequence or routing group; take the mean over it afterwards. A token axis, or
   * with `group` any other.
   */
  readonly per?: G;
  /** Index of each token along `per`. An index without tokens has a loss of 0. */
  readonly group?: Tensor<Without<NoInfer<A>, NoInfer<E>>, "i32">;
  /** 0 for ignored tokens. */
  readonly mask?: Tensor<Without<NoInfer<A>, NoInfer<E>>, "i32">;
}

/** Options of `balancingLoss`. Defaults: those of the routing's preset. */
export interface BalancingOptions<A extends string, E extends string, G>
  extends TokenOptions<A, E, G>, Partial<BalancingRule> {}

/** Axes of a loss. */
type Grouped<G> = [G] extends [never] ? "" : G extends string ? G : "";

/** Checks and nodes common to all losses. */
function begin(
  op: Op,
  logits: readonly Tensor[],
  { group, mask, ...names }: {
    readonly over: string;
    readonly per?: string | undefined;
    readonly group?: Tensor | undefined;
    readonly mask?: Tensor | undefined;
  },
): Sums {
  const given = [group, mask].filter((x) => x !== undefined);
  const trace = traceOf([...logits, ...given], op);
  const site = siteOf(trace, op);
  const { span } = site;
  const over = axisOf(names.over, logits, trace);
  const per = names.per === undefined
    ? undefined
    : axisOf(names.per, logits, trace);
  const remaining = per === undefined || group ? [over] : [over, per];
  for (const { node } of logits) {
    for (const axis of remaining) {
      if (!node.axes.includes(axis)) {
        throw new ModelError(say.axis(opName(op), node.axes, axis), span);
      }
    }
  }
  const { axes } = logits[0]!.node;
  const tokens = without(axes, remaining);
  const wrong = group &&
    groupProblem({ axes, tokens, group: group.node, per, trace });
  if (wrong !== undefined) throw new ModelError(wrong, span);
  const b = new NodeBuilder(builderContext(trace.axes, []), site);
  const counted = mask ? mask.node : group && b.constant(1, group.node);
  const counts = counted && b.cast(counted, "f32");
  return {
    b,
    trace,
    span,
    over,
    tokens,
    counts,
    groups: group && { ids: group.node, over: per! },
  };
}

/** The error if tokens cannot be grouped by `group`. */
function groupProblem({ axes, tokens, group, per, trace }: {
  readonly axes: readonly string[];
  readonly tokens: readonly string[];
  readonly group: Node;
  readonly per: string | undefined;
  readonly trace: Tensor["trace"];
}): string | undefined {
  const cannot = `Cannot group the tokens of '${words(axes)}'`;
  if (per === undefined) {
    return `${cannot}: no axis is named for the groups. Give 'per'`;
  }
  if (!Object.hasOwn(trace.axes, per)) {
    return `${cannot} along '${
      shortAxis(per)
    }': the model has no such axis. Declare it, as long as there are groups`;
  }
  if (axes.includes(per)) {
    return `${cannot} along '${
      shortAxis(per)
    }': they have that axis already. Leave 'group' out, or name another axis`;
  }
  if (!sameAxes(group.axes, tokens) || group.dtype !== "i32") {
    return `${cannot} by ${group.dtype}[${words(group.axes)}]: expected i32[${
      words(tokens)
    }]`;
  }
  return undefined;
}

/** Summation over the tokens of a loss. */
interface Sums {
  readonly b: NodeBuilder;
  readonly trace: Tensor["trace"];
  readonly span: Span | undefined;
  /** The axis of experts. */
  readonly over: string;
  /** Summed axes. */
  readonly tokens: readonly string[];
  /** 1 for counted tokens. Absent: all tokens count, in one group. */
  readonly counts: Node | undefined;
  /** Group of each token. Absent: all tokens are one group. */
  readonly groups: { readonly ids: Node; readonly over: string } | undefined;
}

/** The sum of `x` over all tokens, or over the tokens of each group. */
function sumOf({ b, tokens, groups }: Sums, x: Node): Node {
  if (groups) {
    const { ids, over } = groups;
    const axes = [over, ...without(x.axes, tokens)];
    return b.make("scatterAdd", [x, ids], { over, replicated: true }, {
      axes,
      dtype: "f32",
    });
  }
  return tokens.reduceRight(
    (sum, over) => b.make("reduce", [sum], { kind: "sum", over }),
    x,
  );
}

/** The mean of `x` over the counted tokens, and over layers. */
function meanOf(sums: Sums, layers: readonly Node[]): Node {
  const { b, tokens, counts } = sums;
  const means = layers.map((x) => {
    if (counts === undefined) {
      return tokens.reduceRight(
        (mean, over) => b.make("reduce", [mean], { kind: "mean", over }),
        x,
      );
    }
    const real = b.map((v, n) => expr`${v} * ${n}`, x, counts);
    return b.map(
      (v, n) => expr`${v} / max(${n}, 1)`,
      sumOf(sums, real),
      sumOf(sums, counts),
    );
  });
  const total = means.reduce((a, x) => b.add(a, x));
  return means.length === 1
    ? total
    : b.map((v) => expr`${v} / ${means.length}`, total);
}

/** Scores of the experts, averaged over tokens later: softmax, or the sigmoids divided by the sum of the token. */
function shares(
  b: NodeBuilder,
  logits: Node,
  over: string,
  score: BalancingFormula["score"],
): Node {
  if (score === "softmax") return b.make("softmax", [logits], { over });
  const sigmoid = b.map(
    (x) => expr`1.0 / (1.0 + exp(-${x}))`,
    logits,
  );
  const sum = b.make("reduce", [sigmoid], { kind: "sum", over });
  return b.map((x, all) => expr`${x} / (${all} + 1e-20)`, sigmoid, sum);
}

function list<T>(x: OneOrMore<T>): readonly T[] {
  return Array.isArray(x) ? x as readonly T[] : [x as T];
}

/**
 * Balancing loss of a router: `factor · Σ_e f_e · P_e`. f is the fraction of tokens that chose an expert and P its
 * mean score, both over all tokens or per item of `per`. The routing's preset determines the counted choices, the
 * scores and the factor. Several layers count as one long batch, as in transformers: pass arrays. Only scores are
 * differentiated. Tokens excluded by the router's own mask count in P only, as in DeepSpeed; tokens excluded by `mask`
 * count in neither.
 *
 * Axes: none, or `per`. Dtype: "f32". Errors: axes that the logits do not have; different numbers of logits and
 * routings; a `group` without `per`, of other tokens, or along an axis that the model does not have; at run time, a
 * group that is out of range along `per`. Gradient: by the logits; counts have none. Sharding: along the token axes:
 * each rank sums its tokens, and the sums are reduced.
 *
 * @example
 * ```ts
 * const layer = model({ token: 4, expert: 2 }, (m) => {
 *   const logits = m.input("logits", "token expert");
 *   const routing = route(logits, { over: "expert", topK: 1, preset: "mixtral" });
 *   return { loss: balancingLoss(logits, routing, { over: "expert" }) };
 * });
 * const { outputs } = evaluate(trace(layer), { inputs: { logits: [1, 0, 0, 1, 1, 0, 0, 1] } });
 * console.assert(Math.abs(outputs.loss!.data[0]! - 1) < 1e-6);
 * ```
 */
export function balancingLoss<
  A extends string,
  const E extends Axis<A>,
  const G extends string = never,
>(
  logits: OneOrMore<Tensor<A, "f32">>,
  routing: OneOrMore<Routing>,
  options: BalancingOptions<A, E, G>,
): Tensor<Grouped<G>, "f32"> {
  const [layers, routings] = [list(logits), list(routing)];
  const sums = begin(balancingLoss, layers, options);
  const { b, trace, span, over } = sums;
  if (layers.length !== routings.length) {
    throw new ModelError(
      `Cannot balance ${routings.length} routings by the logits of ${layers.length}: the numbers differ. Give the logits of each`,
      span,
    );
  }
  traceOf([...layers, ...routings], balancingLoss);
  const routes = routings.map(({ node }) => node as NodeOf<"route">);
  const { rule } = routes[0]!.params;
  const formula = balancingFormula(rule.preset, options);
  const f = meanOf(
    sums,
    routes.map((node) =>
      b.make("tupleElement", [node], { field: formula.fraction })
    ),
  );
  const p = meanOf(
    sums,
    layers.map(({ node }) => shares(b, node, over, formula.score)),
  );
  const product = b.make("dot", [f, p], { over: [over] });
  const factor = formula.factor(trace.axes[over]!.size, rule.topK);
  return wrap(b.map((x) => expr`${x} * ${factor}`, product), trace);
}

/**
 * Router z-loss: the mean of `logSumExp(logits)²` over tokens, and over layers if there are several.
 *
 * Axes: none, or `per`. Dtype: "f32". Errors: axes that the logits do not have; a `group` as for `balancingLoss`.
 * Gradient: by the logits. Sharding: as `balancingLoss`.
 *
 * @example
 * ```ts
 * const layer = model({ token: 1, expert: 1 }, (m) => ({
 *   loss: zLoss(m.input("logits", "token expert"), { over: "expert" }),
 * }));
 * const { outputs } = evaluate(trace(layer), { inputs: { logits: [3] } });
 * console.assert(outputs.loss?.data[0] === 9);
 * ```
 */
export function zLoss<
  A extends string,
  const E extends Axis<A>,
  const G extends string = never,
>(
  logits: OneOrMore<Tensor<A, "f32">>,
  options: TokenOptions<A, E, G>,
): Tensor<Grouped<G>, "f32"> {
  const layers = list(logits);
  const sums = begin(zLoss, layers, options);
  const { b, over } = sums;
  const squares = layers.map(({ node }) =>
    b.map(
      (z) => expr`${z} * ${z}`,
      b.make("logSumExp", [node], { over }),
    )
  );
  return wrap(meanOf(sums, squares), sums.trace);
}

/** Options of `importanceLoss`. */
export interface ImportanceOptions<A extends string, E extends string, G>
  extends TokenOptions<A, E, G> {
  /** Divides squares by the number of experts minus one, like Tutel and FastMoE. Default: false. */
  readonly unbiased?: boolean;
}

/**
 * Importance loss: the variance over experts of the scores summed over tokens, divided by their squared mean (plus
 * 1e-10). `scores` are usually a softmax of the logits. With `routing.chosen` as the scores, the result is a load loss.
 *
 * Axes: none, or `per`. Dtype: "f32". Errors: axes that the scores do not have; a `group` as for `balancingLoss`.
 * Gradient: by the scores. Sharding: as `balancingLoss`.
 *
 * @example
 * ```ts
 * const layer = model({ token: 1, expert: 2 }, (m) => ({
 *   loss: importanceLoss(m.input("scores", "token expert"), { over: "expert" }),
 * }));
 * const { outputs } = evaluate(trace(layer), { inputs: { scores: [1, 3] } });
 * console.assert(outputs.loss?.data[0] === 0.25);
 * ```
 */
export function importanceLoss<
  A extends string,
  const E extends Axis<A>,
  const G extends string = never,
>(
  scores: Tensor<A, "f32">,
  options: ImportanceOptions<A, E, G>,
): Tensor<Grouped<G>, "f32"> {
  const { unbiased = false } = options;
  const sums = begin(importanceLoss, [scores], options);
  const { b, trace, over } = sums;
  // Sums over tokens and means over tokens have the same relative variance, except for the 1e-10.
  const tokens = sums.counts
    ? b.map((v, n) => expr`${v} * ${n}`, scores.node, sums.counts)
    : scores.node;
  const total = sumOf(sums, tokens);
  const mean = b.make("reduce", [total], { kind: "mean", over });
  const squares = b.map(
    (x, m) => {
      const distance = expr`${x} - ${m}`;
      return expr`${distance} * ${distance}`;
    },
    total,
    mean,
  );
  const variance = b.make("reduce", [squares], { kind: "mean", over });
  const experts = trace.axes[over]!.size;
  const scale = unbiased ? experts / (experts - 1) : 1;
  return wrap(
    b.map(
      (v, m) => expr`${v} * ${scale} / (${m} * ${m} + 1e-10)`,
      variance,
      mean,
    ),
    trace,
  );
}

/** Options of `biasUpdate`. */
export interface BiasUpdateOptions {
  /** Step size of the bias. */
  readonly rate: number;
  /** Subtracts the mean step from each, so that the mean of the biases is constant, like torchtitan. Default: false. */
  readonly centred?: boolean;
}

/**
 * The next selection bias, for balancing without a loss. The bias of an expert rises by `rate` if fewer tokens than the
 * mean chose it, and falls by `rate` if more did.
 *
 * Axes: those of `bias`, the routing's experts. Dtype: "f32". Errors: a bias with other axes. Gradient: none. Sharding:
 * token counts are reduced over ranks; the bias is replicated.
 *
 * @example
 * ```ts
 * const layer = model({ token: 1, expert: 2 }, (m) => {
 *   const bias = m.input("bias", "expert");
 *   const logits = m.input("logits", "token expert");
 *   const routing = route(logits, { over: "expert", topK: 1, preset: "deepseekV3", bias });
 *   return { bias: biasUpdate(bias, routing, { rate: 0.5 }) };
 * });
 * const { outputs } = evaluate(trace(layer), { inputs: { bias: [0, 0], logits: [1, 0] } });
 * console.assert(String(outputs.bias?.data) === "-0.5,0.5");
 * ```
 */
export function biasUpdate<E extends string>(
  bias: Tensor<E, "f32">,
  routing: Routing<string, NoInfer<E>>,
  options: BiasUpdateOptions,
): Tensor<E, "f32"> {
  const trace = traceOf([bias, routing], biasUpdate);
  const site = siteOf(trace, biasUpdate);
  const { expert, tokens } = routing.node.params;
  if (!sameAxes(bias.node.axes, [expert])) {
    throw new ModelError(
      `Cannot update bias '${bias.axes}': expected '${shortAxis(expert)}'`,
      site.span,
    );
  }
  const b = new NodeBuilder(builderContext(trace.axes, []), site);
  const load = tokens.reduceRight<Node>(
    (sum, over) => b.make("reduce", [sum], { kind: "sum", over }),
    b.make("tupleElement", [routing.node], { field: "chosen" }),
  );
  const meanOver = (x: Node) =>
    b.make("reduce", [x], { kind: "mean", over: expert });
  const step = biasStep(b, load, options.rate);
  const next = options.centred
    ? b.map(
      (old, s, mean) => expr`${old} + (${s} - ${mean})`,
      bias.node,
      step,
      meanOver(step),
    )
    : b.add(bias.node, step);
  return wrap(next, trace);
}
