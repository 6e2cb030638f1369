/** Brings the experts' results back to their tokens. */

import type { Binding, Expr, Kernel, Stmt } from "./kernel.ts";
import { bindings, elementwise, INDEX, local, wgsl } from "./kernel.ts";
import { DROPPED } from "./assign.ts";

/**
 * A combine. Bindings: `returned` f32 [token * k, row] in send order, `sendRow` u32 and `weight` f32 [token, k], and `y`
 * f32 [token, row], written (unless `epilogue` does). Its grid is `elementwiseGrid(tokens * row)`.
 */
export interface CombineOptions {
  readonly name: string;
  /** Elements of one token. */
  readonly row: number;
  readonly k: number;
  readonly tokens: Expr;
  /** Results are multiplied by `weight`; default true. Else they are only added, and there is no such binding. */
  readonly weighed?: boolean;
  /** Uses the result at element i of [token, row]; by default the binding `y` receives it. */
  epilogue?(i: Expr, value: Expr): readonly Stmt[];
  /** With `epilogue`: every binding, the three that are read included. */
  readonly bindings?: readonly Binding[];
}

/** y[t] = sum over j, in order, of weight[t, j] * returned[sendRow[t, j]]; dropped choices are left out. */
export function combine(o: CombineOptions): Kernel {
  const { row, weighed = true } = o;
  return elementwise({
    name: o.name,
    count: wgsl`${o.tokens} * ${row}`,
    bindings: o.bindings ?? bindings(
      { returned: "f32", sendRow: "u32", weight: "f32" },
      { y: "f32" },
    ),
    body: wgsl`
      let choices = i / ${row} * ${o.k};
      let element = i % ${row};
      var sum = 0.0;
      for (var j = 0u; j < ${o.k}; j++) {
        let choice = choices + j;
        let from = sendRow[choice];
        if (from != ${DROPPED}) {
          let result = returned[from * ${row} + element];
          sum = ${
      weighed ? wgsl`fma(weight[choice], result, sum)` : wgsl`sum + result`
    };
        }
      }
      ${o.epilogue?.(INDEX, local("sum", "f32")) ?? wgsl`y[i] = sum;`}`,
  });
}
