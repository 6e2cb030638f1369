/** Sums over ranges of grouped rows: the contraction of a grouped matmul's weight gradient, one invocation for each result. */

import { local } from "../../spec/kernel/build.ts";
import { expr } from "../../spec/kernel/parse.ts";
import { wgsl } from "../../spec/kernel/text.ts";
import type { Binding, Expr, Kernel, Stmt } from "../../spec/kernel/tree.ts";
import { elementwise, INDEX } from "./elementwise.ts";
import { blockedSum } from "./pieces/blocked_sum.ts";

/** Sums over rows. Its grid is `elementwiseGrid(count)`. */
export interface SumRowsOptions {
  readonly name: string;
  /** How many results. */
  readonly count: Expr;
  readonly bindings: readonly Binding[];
  /** The first of the grouped rows that result i sums, and the one after the last. */
  range(i: Expr): readonly [from: Expr, to: Expr];
  /** What result i adds of a row: a value, or two to multiply. */
  terms(i: Expr, row: Expr): readonly Expr[];
  /** Uses a result. */
  epilogue(i: Expr, sum: Expr): readonly Stmt[];
}

const ROW = expr`${local("from", "u32")} + ${local("k", "u32")}`;

/** Sum rows in grouped order, in the blocks of every sum. */
export function sumRows(o: SumRowsOptions): Kernel {
  const [from, to] = o.range(INDEX);
  const [a, b] = o.terms(INDEX, ROW);
  const sum = blockedSum(
    "sum",
    { length: wgsl`${to} - from` },
    b
      ? wgsl`sum_block = fma(${a}, ${b}, sum_block);`
      : wgsl`sum_block += ${a};`,
  );
  return elementwise({
    name: o.name,
    count: o.count,
    bindings: o.bindings,
    body: wgsl`
      let from = ${from};
      ${sum}
      ${o.epilogue(INDEX, local("sum", "f32"))}`,
  });
}
