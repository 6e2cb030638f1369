/** Brings the experts' results back to their tokens. */

import {
  add,
  binary,
  div,
  f32,
  fma,
  for_,
  if_,
  let_,
  load,
  local,
  mul,
  rem,
  set,
  store,
  u32,
  var_,
} from "../../spec/kernel/build.ts";
import type { Binding, Expr, Kernel, Stmt } from "../../spec/kernel/tree.ts";
import { DROPPED } from "./assign.ts";
import { elementwise } from "./elementwise.ts";
import { reads, writes } from "./kernel.ts";

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
  const row = u32(o.row);
  const u = (name: string) => local(name, "u32");
  const sum = local("sum", "f32");
  return elementwise({
    name: o.name,
    count: mul(o.tokens, row),
    bindings: o.bindings ??
      [
        reads("returned"),
        reads("sendRow", "u32"),
        reads("weight"),
        writes("y"),
      ],
    body: (i) => [
      let_("choices", mul(div(i, row), u32(o.k))),
      let_("element", rem(i, row)),
      var_("sum", f32(0)),
      for_("j", u32(0), u32(o.k), [
        let_("choice", add(u("choices"), u("j"))),
        let_("from", load("sendRow", u("choice"), "u32")),
        if_(binary("ne", u("from"), u32(DROPPED)), [
          let_(
            "result",
            load("returned", add(mul(u("from"), row), u("element"))),
          ),
          set(
            "sum",
            o.weighed ?? true
              ? fma(load("weight", u("choice")), local("result", "f32"), sum)
              : add(sum, local("result", "f32")),
          ),
        ]),
      ]),
      ...o.epilogue?.(i, sum) ?? [store("y", i, sum)],
    ],
  });
}
