/** Puts each token's keys or values at its place in the cache. */

import {
  add,
  convert,
  div,
  let_,
  load,
  local,
  mul,
  rem,
  store,
  u32,
} from "../../spec/kernel/build.ts";
import type { Binding, Expr, Kernel } from "../../spec/kernel/tree.ts";
import { elementwise } from "./elementwise.ts";
import { reads, writes } from "./kernel.ts";

/**
 * A cache write. Bindings: `value` f32 [token, row] (unless `value` computes it), `sequence` and `position` i32 [token],
 * `state` f32 [sequence, context, row], written. Its grid is `elementwiseGrid(tokens * row)`.
 */
export interface CacheWriteOptions {
  readonly name: string;
  /** Elements of one token. */
  readonly row: number;
  /** Positions of the cache. */
  readonly context: number;
  readonly tokens: Expr;
  /** Element i of [token, row]; by default the binding `value`. */
  value?(i: Expr): Expr;
  /** More bindings, for `value`. */
  readonly bindings?: readonly Binding[];
}

/** state[sequence[t], position[t]] = value[t] */
export function cacheWrite(o: CacheWriteOptions): Kernel {
  const at = (binding: string) =>
    convert("u32", load(binding, local("token", "u32"), "i32"));
  return elementwise({
    name: o.name,
    count: mul(o.tokens, u32(o.row)),
    bindings: [
      ...o.value ? [] : [reads("value")],
      reads("sequence", "i32"),
      reads("position", "i32"),
      ...o.bindings ?? [],
      writes("state"),
    ],
    body: (i) => [
      let_("token", div(i, u32(o.row))),
      let_("entry", add(mul(at("sequence"), u32(o.context)), at("position"))),
      store(
        "state",
        add(mul(local("entry", "u32"), u32(o.row)), rem(i, u32(o.row))),
        o.value?.(i) ?? load("value", i),
      ),
    ],
  });
}
