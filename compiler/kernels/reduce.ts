/**
 * Sums with one invocation per result: reductions over axes, contractions of any shape (the fallback if `matmul` does
 * not apply), and sums over ranges of grouped rows. `pieces/blocked_sum.ts` contains the sum of the contract.
 */

import type {
  Binding,
  Expr,
  Hole,
  Kernel,
  KernelText,
  Stmt,
} from "./kernel.ts";
import { elementwise, expr, INDEX, local, wgsl } from "./kernel.ts";
import { blockedSum, SUM_BLOCK } from "./pieces/blocked_sum.ts";
import { range } from "../../spec/range.ts";

/** A kernel with one invocation per result. Its grid is `elementwiseGrid(count)`. */
export interface ResultOptions {
  readonly name: string;
  /** Number of results. */
  readonly count: Expr;
  readonly bindings: readonly Binding[];
  /** Consumes a result. */
  epilogue(i: Expr, value: Expr): readonly Stmt[];
}

/** A reduction. The maximum of nothing is minus infinity, the mean 0. */
export interface ReduceOptions extends ResultOptions {
  /** `logSumExp`: max + log(sum of exp(x - max)). */
  readonly kind: "sum" | "mean" | "max" | "logSumExp";
  /** Number of terms per result; or the first term of result i and the end. */
  readonly length:
    | number
    | Expr
    | ((i: Expr) => readonly [from: Expr, to: Expr]);
  /** Number of equal segments of a sum, whose totals are added as a balanced tree; see `blockedSum`. Default: 1. */
  readonly segments?: number;
  /** Terms that are loaded before the first is added, if blocks of a sum of products have so many. Default: 1. */
  readonly atOnce?: number | undefined;
  /** Indices that are not reductions, and the code for them. Default: none. */
  readonly others?: {
    isResult(i: Expr): Expr;
    store(i: Expr): readonly Stmt[];
  };
  /** Term k of result i, f32: a value, or for sums two factors. */
  terms(i: Expr, k: Expr): readonly Expr[];
}

const [K, SUM, TOP] = [
  local("k", "u32"),
  local("sum", "f32"),
  local("top", "f32"),
];

/** Reduces the terms 0, 1, … of every i, in this order. */
export function reduce(o: ReduceOptions): Kernel {
  const [from, to] = typeof o.length === "function" ? o.length(INDEX) : [];
  const length = typeof o.length === "function" ? wgsl`${to} - from` : o.length;
  const first = from && local("from", "u32");
  const [a, b] = o.terms(INDEX, first ? expr`${first} + ${K}` : K);
  const largest = wgsl`
    var top = ${-Infinity};
    for (var k = 0u; k < ${length}; k++) { top = max(top, ${a}); }`;
  const total = (add: KernelText, terms = 1) =>
    blockedSum("sum", { length, segments: o.segments, terms }, add);
  const products = b && productsAtOnce(o, first ? { first } : {});
  const sum = products
    ? total(products.add, products.terms)
    : total(wgsl`sum_block += ${a};`);
  const [text, result] = {
    sum: () => [sum, SUM] as const,
    mean: () => [sum, meanOf(o.length as number | Expr)] as const,
    max: () => [largest, TOP] as const,
    logSumExp: () => {
      const powers = total(wgsl`sum_block += exp(${a} - top);`);
      return [wgsl`${largest} ${powers}`, expr`${TOP} + log(${SUM})`] as const;
    },
  }[o.kind]();
  const body = wgsl`
      ${from && wgsl`let from = ${from};`}
      ${text}
      ${o.epilogue(INDEX, result)}`;
  return elementwise({
    name: o.name,
    count: o.count,
    bindings: o.bindings,
    body: o.others
      ? wgsl`
      if (${o.others.isResult(INDEX)}) { ${body} } else { ${
        o.others.store(INDEX)
      } }`
      : body,
  });
}

/** `o.atOnce`, if all blocks of the sum are multiples of it; else 1. */
function termsAtOnce(
  { atOnce = 1, length, segments = 1 }: ReduceOptions,
): number {
  return typeof length === "number" && length / segments % atOnce === 0 &&
      SUM_BLOCK % atOnce === 0
    ? atOnce
    : 1;
}

/** The products of an iteration of a blocked sum: `add` adds `terms` of them, from `first` + `terms` * k on. */
export function productsAtOnce(
  o: ReduceOptions,
  { sum = "sum", first }: {
    /** The variable of the sum. */
    readonly sum?: string;
    /** The first term. Default: 0. */
    readonly first?: Expr;
  } = {},
): { readonly terms: number; readonly add: KernelText } {
  const count = termsAtOnce(o);
  const factors = range(count).map((n) => {
    const k = count > 1 ? expr`${K} * ${count} + ${n}` : K;
    return o.terms(INDEX, first ? expr`${first} + ${k}` : k);
  });
  const block = `${sum}_block`;
  const add = (a: Hole, b: Hole) => wgsl`${block} = fma(${a}, ${b}, ${block});`;
  const [[a, b]] = factors as [readonly Expr[]];
  return {
    terms: count,
    add: count === 1 ? add(a!, b!) : wgsl`
    ${factors.map(([a, b], n) => wgsl`let a_${n} = ${a}; let b_${n} = ${b};`)}
    ${factors.map((_, n) => add(wgsl`a_${n}`, wgsl`b_${n}`))}`,
  };
}

function meanOf(length: number | Expr): Expr {
  if (typeof length === "number") return expr`${SUM} / f32(${length}u)`;
  return length.op === "const"
    ? expr`${SUM} / f32(${length})`
    : expr`${SUM} / max(f32(${length}), 1)`;
}
