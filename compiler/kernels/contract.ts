/** Contractions of any shape, one invocation for each result: the fallback where `matmul` does not fit. */

import { local } from "../../spec/kernel/build.ts";
import { wgsl } from "../../spec/kernel/text.ts";
import type { Binding, Expr, Kernel, Stmt } from "../../spec/kernel/tree.ts";
import { elementwise } from "./elementwise.ts";
import { blockedSum } from "./pieces/blocked_sum.ts";

/** A contraction. Its grid is `elementwiseGrid(count)`. */
export interface ContractOptions {
  readonly name: string;
  /** How many results. */
  readonly count: Expr;
  /** How many products in each. */
  readonly length: number | Expr;
  /** Equal segments of it, whose sums are added as a balanced tree; see `blockedSum`. Default: 1. */
  readonly segments?: number;
  readonly bindings: readonly Binding[];
  left(i: Expr, k: Expr): Expr;
  right(i: Expr, k: Expr): Expr;
  epilogue(i: Expr, sum: Expr): readonly Stmt[];
}

/** sum over k of left(i, k) * right(i, k), for every i. */
export function contract(o: ContractOptions): Kernel {
  const k = local("k", "u32");
  return elementwise({
    ...o,
    body: (i) =>
      wgsl`
        ${
        blockedSum(
          "sum",
          o,
          wgsl`sum_block = fma(${o.left(i, k)}, ${o.right(i, k)}, sum_block);`,
        )
      }
        ${o.epilogue(i, local("sum", "f32"))}`,
  });
}
