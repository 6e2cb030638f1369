/** Losses that keep routers balanced and their logits small. Formulas and sources are in spec/routing.md. */

import { shortAxis } from "../../spec/axis_name.ts";
import { ModelError, type Span } from "../../spec/errors.ts";
import { expr } from "../../spec/kernel/resolve.ts";
import type { Node, NodeOf } from "../graph/graph.ts";
import { messages as say, without, words } from "../graph/messages.ts";
import { builderContext, NodeBuilder } from "../graph/node_builder.ts";
import { sameAxes } from "../graph/operands.ts";
import {
  type BalancingFormula,
  balancingFormula,
  type BalancingRule,
} from "../graph/routing_losses.ts";
import { biasStep } from "../graph/selection_bias.ts";
import type { Routing } from "./route.ts";
import {
  axisOf,
  type Op,
  siteOf,
  type Tensor,
  traceOf,
  wrap,
} from "./tensor.ts";
import type { Axis, Without } from "./types.ts";

/** One thing, or one for each layer. */
type OneOrMore<T> = T | readonly T[];

/** Which tokens count, and what is kept apart. */
export interface TokenOptions<A extends string, E extends string, G> {
  /** The axis of experts. */
  readonly over: E;
  /**
   * The axis that stays, as for a loss of each sequence or routing group; take the mean over it afterwards. A token axis,
   * or with `group` any other.
   */
  readonly per?: G;
  /** Where along `per` each token belongs; a place without tokens has a loss of 0. */
  readonly group?: Tensor<Without<NoInfer<A>, NoInfer<E>>, "i32">;
  /** 0 for tokens that do not count at all. */
  readonly mask?: Tensor<Without<NoInfer<A>, NoInfer<E>>, "i32">;
}

/** Options of `balancingLoss`: what is not said is that of the routing's preset. */
export interface BalancingOptions<A extends string, E extends string, G>
  extends TokenOptions<A, E, G>, Partial<BalancingRule> {}

/** The axes of a loss. */
type Kept<G> = [G] extends [never] ? "" : G extends string ? G : "";

/** What all losses start with. */
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
        throw new ModelError(say.axis(op.name, node.axes, axis), span);
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

/** Why tokens cannot be distinguished by `group`, if so. */
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

/** How a loss adds up tokens. */
interface Sums {
  readonly b: NodeBuilder;
  readonly trace: Tensor["trace"];
  readonly span: Span | undefined;
  /** The axis of experts. */
  readonly over: string;
  /** Axes that are summed. */
  readonly tokens: readonly string[];
  /** 1 for tokens that count, if not all do, or not all together. */
  readonly counts: Node | undefined;
  /** Where each token is summed, if not all together. */
  readonly groups: { readonly ids: Node; readonly over: string } | undefined;
}

/** The sum of `x` over the tokens, or over those of each group. */
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

/** The mean of `x` over the tokens that count, and over layers. */
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

/** What experts score in the mean over tokens: shares of a softmax, or of the sigmoids of a token. */
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
 * How unevenly tokens go to experts: `factor · Σ_e f_e · P_e`, f being the share of tokens that went to an expert and P
 * its mean score, both over all tokens, or over those of each `per`. The routing's preset says which choices f counts,
 * what scores are and the factor. Several layers are one long batch, as in transformers: give arrays. Only scores are
 * differentiated. Tokens that the router's own mask excludes are in P only, as in DeepSpeed; with `mask` in neither.
 *
 * Axes: none, or `per`. Dtype: "f32". Errors: axes that the logits do not have; as many logits as routings are
 * needed; a `group` without `per`, of other tokens, or along an axis that the model does not have; when run, a group
 * that is no place along `per`. Gradient: by the logits; counts have none. Sharding: along the token axes: each rank
 * sums its tokens, and the sums are added up.
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
): Tensor<Kept<G>, "f32"> {
  const [layers, routings] = [list(logits), list(routing)];
  const sums = begin(balancingLoss, layers, options);
  const { b, trace, span, over } = sums;
  if (layers.length !== routings.length) {
    throw new ModelError(
      `Cannot balance ${routings.length} routings by the logits of ${layers.length}: give the logits of each`,
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
 * How large the logits of routers are: the mean of `logSumExp(logits)²` over tokens, and over layers where there are
 * several.
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
): Tensor<Kept<G>, "f32"> {
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
  /** Divide squares by one less than there are experts, as Tutel and FastMoE do; default false. */
  readonly unbiased?: boolean;
}

/**
 * How much experts differ in what they score over all tokens: the variance of the sums over the square of their mean
 * (plus 1e-10). `scores` are a softmax, or what a routing chose (`routing.chosen`) for a loss of load.
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
): Tensor<Kept<G>, "f32"> {
  const { unbiased = false } = options;
  const sums = begin(importanceLoss, [scores], options);
  const { b, trace, over } = sums;
  // Sums over tokens and their means are as different from each other, but for the 1e-10.
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
  /** How much a bias moves in a step. */
  readonly rate: number;
  /** Take the mean step from each, so that the mean of the biases stays, as torchtitan does; default false. */
  readonly centred?: boolean;
}

/**
 * The next selection bias, which balances without a loss: an expert that fewer than the mean of tokens chose goes up by
 * `rate`, one that more chose goes down.
 *
 * Axes: those of `bias`, the routing's experts. Dtype: "f32". Errors: a bias with other axes. Gradient: none.
 * Sharding: counts of tokens are added up over ranks; each rank has all of the bias.
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
