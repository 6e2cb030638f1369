/** Logarithms of sums of exponentials: one invocation for each. */

import { local } from "../../spec/kernel/build.ts";
import { expr } from "../../spec/kernel/parse.ts";
import { wgsl } from "../../spec/kernel/text.ts";
import type { Binding, Expr, Kernel, Stmt } from "../../spec/kernel/tree.ts";
import { elementwise, INDEX } from "./elementwise.ts";
import { blockedSum } from "./pieces/blocked_sum.ts";

/** Logarithms of sums of exponentials. Its grid is `elementwiseGrid(count)`. */
export interface LogSumExpOptions {
  readonly name: string;
  readonly count: Expr;
  readonly length: number | Expr;
  readonly bindings: readonly Binding[];
  /** Value k of result i, f32. */
  load(i: Expr, k: Expr): Expr;
  /** Uses a result. */
  epilogue(i: Expr, value: Expr): readonly Stmt[];
}

const [J, K] = [local("j", "u32"), local("k", "u32")];

/** max + log(sum of exp(x - max)) of every row. */
export function logSumExp(o: LogSumExpOptions): Kernel {
  const { length } = o;
  const first = o.load(INDEX, J);
  const powers = blockedSum(
    "sum",
    { length },
    wgsl`
    sum_block += exp(${o.load(INDEX, K)} - top);`,
  );
  const result = expr`${local("top", "f32")} + log(${local("sum", "f32")})`;
  return elementwise({
    name: o.name,
    count: o.count,
    bindings: o.bindings,
    body: wgsl`
      var top = ${-Infinity};
      for (var j = 0u; j < ${length}; j++) { top = max(top, ${first}); }
      ${powers}
      ${o.epilogue(INDEX, result)}`,
  });
}
