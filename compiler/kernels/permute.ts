/** Moves token rows into send order. */

import type { Binding, Expr, Kernel } from "./kernel.ts";
import { elementwise, local, reads, wgsl, writes } from "./kernel.ts";
import { DROPPED } from "./assign.ts";

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

const [SOURCE, CHOICE] = [local("source", "u32"), local("choice", "u32")];

/** send[sendRow[t, j]] = x[t] */
export function permute(o: PermuteOptions): Kernel {
  const { row, k, type = "f32" } = o;
  return elementwise({
    name: o.name,
    count: wgsl`${o.tokens} * ${k * row}`,
    bindings: [
      ...o.value ? [] : [reads("x", type)],
      reads("sendRow", "u32"),
      ...o.bindings ?? [],
      writes("send", type),
    ],
    body: wgsl`
      let choice = i / ${row};
      let element = i % ${row};
      let to = sendRow[choice];
      if (to != ${DROPPED}) {
        let source = choice / ${k} * ${row} + element;
        send[to * ${row} + element] = ${
      o.value?.(SOURCE, CHOICE) ?? wgsl`x[source]`
    };
      }`,
  });
}
