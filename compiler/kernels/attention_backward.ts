/**
 * Attention backwards: weights are computed again from queries, keys and the logarithm of their sum. A query's cotangent
 * sums over the keys that it sees, a key's and a value's over the queries of this run that see them.
 */

import {
  add,
  and,
  binary,
  call,
  convert,
  div,
  f32,
  fma,
  for_,
  if_,
  let_,
  load,
  local,
  lt,
  max,
  min,
  mul,
  rem,
  set,
  store,
  sub,
  u32,
  var_,
} from "../../spec/kernel/build.ts";
import type { Expr, Kernel, Stmt } from "../../spec/kernel/tree.ts";
import { elementwise } from "./elementwise.ts";
import { reads, writes } from "./kernel.ts";
import { blockedSum } from "./sum.ts";

/**
 * What attention it is. Heads lie innermost, so that invocations side by side read what lies side by side: f32 `q`
 * [token, dim, head], `keys` [sequence, context, dim, kvHead], `values` [sequence, context, valueDim, kvHead] and `dy`
 * [token, valueDim, head]. `attentionSum` has i32 `sequence` [token] and `position` [token], and f32 `sinks` [head] if there
 * are any. The others have i32 `place` [token], sequence * context + position; and f32 `statistics` [token, 2 * head], the
 * logarithms of sums, then the products of cotangents and results.
 */
export interface BackwardOptions {
  readonly name: string;
  readonly heads: number;
  readonly kvHeads: number;
  readonly dim: number;
  readonly valueDim: number;
  /** Values are the first elements of the keys; there is no binding `values`. */
  readonly shared: boolean;
  readonly sinks: boolean;
  readonly context: number;
  readonly scale: number;
  readonly window?: number;
  readonly chunk?: number;
  readonly tokens: Expr;
}

function u(name: string): Expr {
  return local(name, "u32");
}

function f(name: string): Expr {
  return local(name, "f32");
}

function integer(binding: string, token: Expr): Expr {
  return convert("u32", load(binding, token, "i32"));
}

/** The first position that a token at `position` sees. */
function firstSeen(o: BackwardOptions, position: Expr): Expr {
  const end = add(position, u32(1));
  const starts = [
    ...o.window === undefined
      ? []
      : [sub(max(end, u32(o.window)), u32(o.window))],
    ...o.chunk === undefined
      ? []
      : [mul(div(position, u32(o.chunk)), u32(o.chunk))],
  ];
  return starts.reduce((a, b) => max(a, b), u32(0));
}

/** Where a vector of `length` elements begins among those of `heads` heads, which lie innermost; its elements are `heads` apart. */
function vector(of: Expr, head: Expr, length: number, heads: number): Expr {
  return add(mul(of, u32(length * heads)), head);
}

/** Element `d` of a vector. */
function element(binding: string, from: Expr, d: Expr, heads: number): Expr {
  return load(binding, add(from, mul(d, u32(heads))));
}

/** `score`: the product of the query of `token` and `head` and the key of `entry` and `kv`, scaled. */
function score(o: BackwardOptions): Stmt[] {
  return [
    let_("q_at", vector(u("token"), u("head"), o.dim, o.heads)),
    let_("key_at", vector(u("entry"), u("kv"), o.dim, o.kvHeads)),
    ...blockedSum({
      length: o.dim,
      totals: ["dot"],
      index: "d",
      step: (d, [block]) => ({
        values: [
          fma(
            element("q", u("q_at"), d, o.heads),
            element("keys", u("key_at"), d, o.kvHeads),
            block!,
          ),
        ],
      }),
    }),
    let_("score", mul(f("dot"), f32(o.scale))),
  ];
}

/** `weight`, and where the cotangent of the query's result starts. */
function weight(o: BackwardOptions): Stmt[] {
  return [
    let_("statistic", add(mul(u("token"), u32(2 * o.heads)), u("head"))),
    let_(
      "weight",
      call("exp", sub(f("score"), load("statistics", u("statistic")))),
    ),
    let_("dy_at", vector(u("token"), u("head"), o.valueDim, o.heads)),
  ];
}

/** `slope`: what the score's change changes the loss by. */
function slope(o: BackwardOptions): Stmt[] {
  const stride = o.shared ? o.dim : o.valueDim;
  return [
    let_("value_at", vector(u("entry"), u("kv"), stride, o.kvHeads)),
    ...blockedSum({
      length: o.valueDim,
      totals: ["change"],
      index: "v",
      step: (v, [block]) => ({
        values: [
          fma(
            element("dy", u("dy_at"), v, o.heads),
            element(
              o.shared ? "keys" : "values",
              u("value_at"),
              v,
              o.kvHeads,
            ),
            block!,
          ),
        ],
      }),
    }),
    let_(
      "slope",
      mul(
        mul(
          f("weight"),
          sub(
            f("change"),
            load("statistics", add(u("statistic"), u32(o.heads))),
          ),
        ),
        f32(o.scale),
      ),
    ),
  ];
}

function bindingsOf(o: BackwardOptions) {
  return [
    ...["q", "keys", ...o.shared ? [] : ["values"]].map((name) => reads(name)),
    reads("place", "i32"),
    reads("dy"),
    reads("statistics"),
    writes("y"),
  ];
}

/** Where a token stands. */
interface Place {
  sequence(token: Expr): Expr;
  position(token: Expr): Expr;
}

/** By two bindings, and by one. */
const APART: Place = {
  sequence: (token) => integer("sequence", token),
  position: (token) => integer("position", token),
};
function together({ context }: BackwardOptions): Place {
  return {
    sequence: (token) => div(integer("place", token), u32(context)),
    position: (token) => rem(integer("place", token), u32(context)),
  };
}

/** Each query, of `token` and `head`, and its keys, of `entry` and `kv`. */
function eachKey(
  o: BackwardOptions,
  place: Place,
  body: readonly Stmt[],
): Stmt[] {
  return [
    let_("token", div(u("query"), u32(o.heads))),
    let_("head", rem(u("query"), u32(o.heads))),
    let_("kv", div(u("head"), u32(o.heads / o.kvHeads))),
    let_("own_position", place.position(u("token"))),
    let_("own_sequence", place.sequence(u("token"))),
    for_(
      "at",
      firstSeen(o, u("own_position")),
      add(u("own_position"), u32(1)),
      [
        let_("entry", add(mul(u("own_sequence"), u32(o.context)), u("at"))),
        ...body,
      ],
    ),
  ];
}

/** y[token, head] = log(sum of exp(score)), with the score of a sink if there is one. Its grid is `elementwiseGrid(tokens * heads)`. */
export function attentionSum(o: BackwardOptions): Kernel {
  const head = rem(u("query"), u32(o.heads));
  return elementwise({
    name: o.name,
    count: mul(o.tokens, u32(o.heads)),
    bindings: [
      ...["q", "keys", ...o.sinks ? ["sinks"] : []].map((name) => reads(name)),
      reads("sequence", "i32"),
      reads("position", "i32"),
      writes("y"),
    ],
    // The running maximum, and the sum of exponentials less it.
    body: (i) => [
      let_("query", i),
      var_("top", o.sinks ? load("sinks", head) : f32(-3.4028234663852886e38)),
      var_("sum", f32(o.sinks ? 1 : 0)),
      ...eachKey(o, APART, [
        ...score(o),
        let_("new_top", max(f("top"), f("score"))),
        set(
          "sum",
          fma(
            f("sum"),
            call("exp", sub(f("top"), f("new_top"))),
            call("exp", sub(f("score"), f("new_top"))),
          ),
        ),
        set("top", f("new_top")),
      ]),
      store("y", i, add(f("top"), call("log", f("sum")))),
    ],
  });
}

/** The cotangent of queries, `y` f32 [token, head, dim]. Its grid is `elementwiseGrid(tokens * heads)`. */
export function queryGrad(o: BackwardOptions): Kernel {
  return elementwise({
    name: o.name,
    count: mul(o.tokens, u32(o.heads)),
    bindings: bindingsOf(o),
    body: (i) => [
      let_("query", i),
      ...elements(o.dim, (d) => [var_(`sum${d}`, f32(0))]),
      ...eachKey(o, together(o), [
        ...score(o),
        ...weight(o),
        ...slope(o),
        ...elements(o.dim, (d) => [
          set(
            `sum${d}`,
            fma(
              f("slope"),
              element("keys", u("key_at"), u32(d), o.kvHeads),
              f(`sum${d}`),
            ),
          ),
        ]),
      ]),
      ...elements(o.dim, (d) => [
        store("y", add(mul(i, u32(o.dim)), u32(d)), f(`sum${d}`)),
      ]),
    ],
  });
}

function elements(
  length: number,
  each: (d: number) => readonly Stmt[],
): Stmt[] {
  return Array.from({ length }, (_, d) => each(d)).flat();
}

/**
 * The cotangent of the keys or values that the tokens of this run wrote, `y` f32 in the layout of the cache. Entries that
 * no token wrote are left as they are. Its grid is `elementwiseGrid(tokens * kvHeads)`.
 */
export function keyGrad(o: BackwardOptions, of: "keys" | "values"): Kernel {
  const length = of === "keys" ? o.dim : o.valueDim;
  const group = o.heads / o.kvHeads;
  const added = (d: number): Expr => {
    const value = d < o.valueDim
      ? element("dy", u("dy_at"), u32(d), o.heads)
      : undefined;
    if (of === "values") return fma(f("weight"), value!, f(`sum${d}`));
    const key = fma(
      f("slope"),
      element("q", u("q_at"), u32(d), o.heads),
      f(`sum${d}`),
    );
    return o.shared && value ? fma(f("weight"), value, key) : key;
  };
  return elementwise({
    name: o.name,
    count: mul(o.tokens, u32(o.kvHeads)),
    bindings: bindingsOf(o),
    body: (i) => [
      let_("written", div(i, u32(o.kvHeads))),
      let_("kv", rem(i, u32(o.kvHeads))),
      let_("entry", integer("place", u("written"))),
      let_("end", lastSeeing(o, u("entry"))),
      ...elements(length, (d) => [var_(`sum${d}`, f32(0))]),
      for_("token", u32(0), o.tokens, [
        let_("seen_from", integer("place", u("token"))),
        if_(
          and(
            binary("le", u("entry"), u("seen_from")),
            lt(u("seen_from"), u("end")),
          ),
          [
            for_("h", u32(0), u32(group), [
              let_("head", add(mul(u("kv"), u32(group)), u("h"))),
              ...score(o),
              ...weight(o),
              ...of === "keys" ? slope(o) : [],
              ...elements(length, (d) => [set(`sum${d}`, added(d))]),
            ]),
          ],
        ),
      ]),
      ...elements(length, (d) => [
        store(
          "y",
          add(
            mul(
              add(mul(u("entry"), u32(o.kvHeads)), u("kv")),
              u32(length),
            ),
            u32(d),
          ),
          f(`sum${d}`),
        ),
      ]),
    ],
  });
}

/** The place after the last one, sequence * context + position, from which an entry is seen. */
function lastSeeing(o: BackwardOptions, entry: Expr): Expr {
  const whole = (part: number) =>
    mul(add(div(entry, u32(part)), u32(1)), u32(part));
  const ends = [
    ...o.window === undefined ? [] : [add(entry, u32(o.window))],
    ...o.chunk === undefined ? [] : [
      add(
        entry,
        sub(
          u32(o.chunk),
          rem(rem(entry, u32(o.context)), u32(o.chunk)),
        ),
      ),
    ],
  ];
  return ends.reduce((a, b) => min(a, b), whole(o.context));
}
