/** Contractions of any shape, one invocation for each result: the fallback where `matmul` does not fit. */

import { fma, local } from "../../spec/kernel/build.ts";
import type { Binding, Expr, Kernel, Stmt } from "../../spec/kernel/tree.ts";
import { elementwise } from "./elementwise.ts";
import { blockedSum } from "./sum.ts";

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
  /** Statements before the loop, such as coordinates of `i`. */
  prepare?(i: Expr): readonly Stmt[];
  left(i: Expr, k: Expr): Expr;
  right(i: Expr, k: Expr): Expr;
  epilogue(i: Expr, sum: Expr): readonly Stmt[];
}

/** sum over k of left(i, k) * right(i, k), for every i. */
export function contract(o: ContractOptions): Kernel {
  return elementwise({
    ...o,
    body: (i) => [
      ...o.prepare?.(i) ?? [],
      ...blockedSum({
        length: o.length,
        ...o.segments === undefined ? {} : { segments: o.segments },
        totals: ["sum"],
        step: (k, [block]) => ({
          values: [fma(o.left(i, k), o.right(i, k), block!)],
        }),
      }),
      ...o.epilogue(i, local("sum", "f32")),
    ],
  });
}
