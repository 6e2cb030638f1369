/** Moves token rows into send order. */

import {
  add,
  binary,
  div,
  if_,
  let_,
  load,
  local,
  mul,
  rem,
  store,
  u32,
} from "../../spec/kernel/build.ts";
import type { Binding, Expr, Kernel } from "../../spec/kernel/tree.ts";
import { DROPPED } from "./assign.ts";
import { elementwise } from "./elementwise.ts";
import { reads, writes } from "./kernel.ts";

/**
 * A permute. Bindings: `x` f32 [token, row] (unless `value` computes it), `sendRow` u32 [token, k], `send` f32
 * [token * k, row], written. Its grid is `elementwiseGrid(tokens * k * row)`.
 */
export interface PermuteOptions {
  readonly name: string;
  /** Elements of one token. */
  readonly row: number;
  readonly k: number;
  readonly tokens: Expr;
  /** Type of the elements. Default f32. */
  readonly type?: Binding["type"];
  /** Element i of [token, row], sent for a choice of [token, k]; by default the binding `x`. */
  value?(i: Expr, choice: Expr): Expr;
  /** More bindings, for `value`. */
  readonly bindings?: readonly Binding[];
}

/** send[sendRow[t, j]] = x[t] */
export function permute(o: PermuteOptions): Kernel {
  const type = o.type ?? "f32";
  const row = u32(o.row);
  const u = (name: string) => local(name, "u32");
  return elementwise({
    name: o.name,
    count: mul(o.tokens, u32(o.k * o.row)),
    bindings: [
      ...o.value ? [] : [reads("x", type)],
      reads("sendRow", "u32"),
      ...o.bindings ?? [],
      writes("send", type),
    ],
    body: (i) => {
      const source = add(mul(div(u("choice"), u32(o.k)), row), u("element"));
      return [
        let_("choice", div(i, row)),
        let_("element", rem(i, row)),
        let_("to", load("sendRow", u("choice"), "u32")),
        if_(binary("ne", u("to"), u32(DROPPED)), [
          let_("source", source),
          store(
            "send",
            add(mul(u("to"), row), u("element")),
            o.value?.(u("source"), u("choice")) ?? load("x", u("source"), type),
          ),
        ]),
      ];
    },
  });
}
