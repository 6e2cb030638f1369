/** Sums, means and maxima over an axis: one invocation for each result. */

import { local } from "../../spec/kernel/build.ts";
import { expr } from "../../spec/kernel/parse.ts";
import { wgsl } from "../../spec/kernel/text.ts";
import type { Binding, Expr, Kernel, Stmt } from "../../spec/kernel/tree.ts";
import { elementwise, INDEX } from "./elementwise.ts";
import { blockedSum } from "./pieces/blocked_sum.ts";

/** A reduction over one axis, one invocation for each result. Its grid is `elementwiseGrid(count)`. */
export interface ReduceOptions {
  readonly name: string;
  readonly kind: "sum" | "max" | "mean";
  /** How many results. */
  readonly count: Expr;
  /** How many values in each. */
  readonly length: number | Expr;
  readonly bindings: readonly Binding[];
  /** Value k of result i, f32. */
  load(i: Expr, k: Expr): Expr;
  /** Uses a result. */
  epilogue(i: Expr, value: Expr): readonly Stmt[];
}

const [K, VALUE] = [local("k", "u32"), local("value", "f32")];

/** Reduce load(i, 0), load(i, 1), … for every i. The maximum of nothing is minus infinity, its mean 0. */
export function reduce(o: ReduceOptions): Kernel {
  const { kind, length } = o;
  const loaded = o.load(INDEX, K);
  const values = kind === "max"
    ? wgsl`
      var value = ${-Infinity};
      for (var k = 0u; k < ${length}; k++) { value = max(value, ${loaded}); }`
    : blockedSum("value", { length }, wgsl`value_block += ${loaded};`);
  return elementwise({
    name: o.name,
    count: o.count,
    bindings: o.bindings,
    body: wgsl`
      ${values}
      ${o.epilogue(INDEX, kind === "mean" ? meanOf(length) : VALUE)}`,
  });
}

function meanOf(length: number | Expr): Expr {
  if (typeof length === "number") return expr`${VALUE} / f32(${length}u)`;
  return length.op === "const"
    ? expr`${VALUE} / f32(${length})`
    : expr`${VALUE} / max(f32(${length}), 1)`;
}
