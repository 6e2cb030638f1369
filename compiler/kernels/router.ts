/** Routers: which experts a token goes to, with which weights, and which slots it gets. */

import { invariant } from "../../spec/errors.ts";
import {
  add,
  and,
  binary,
  bool,
  call,
  convert,
  div,
  eq,
  f32,
  for_,
  gt,
  i32,
  if_,
  let_,
  load,
  local,
  lt,
  max,
  min,
  mul,
  rem,
  select,
  set,
  store,
  sub,
  u32,
  var_,
} from "../../spec/kernel/build.ts";
import type { Expr, Kernel, Stmt } from "../../spec/kernel/tree.ts";
import type { RoutingRule } from "../graph/graph.ts";
import { elementwise } from "./elementwise.ts";
import { lengthOf, reads, writes } from "./kernel.ts";
import { blockedSum } from "./sum.ts";

function u(name: string): Expr {
  return local(name, "u32");
}

function f(name: string): Expr {
  return local(name, "f32");
}

/** `name` becomes the allowed index with the largest value, the lowest of equals; `name`_value its value. */
function largest(
  name: string,
  count: number,
  value: (e: Expr) => Expr,
  allowed: Expr = bool(true),
): Stmt[] {
  const better = or(
    eq(u(name), u32(count)),
    gt(f("candidate"), f(`${name}_value`)),
  );
  return [
    var_(name, u32(count)),
    var_(`${name}_value`, f32(0)),
    for_("e", u32(0), u32(count), [
      let_("candidate", value(u("e"))),
      if_(and(allowed, better), [
        set(name, u("e")),
        set(`${name}_value`, f("candidate")),
      ]),
    ]),
    // Only values that are not numbers leave nothing to choose; the index stays legal.
    set(name, min(u(name), u32(count - 1))),
  ];
}

function or(a: Expr, b: Expr): Expr {
  return binary("lor", a, b);
}

/**
 * Choices j = 0 .. k - 1 in `best`, by value descending, index ascending. Nothing is marked as taken: what comes after
 * the last choice in that order has not been chosen yet.
 */
function eachChoice(
  k: number,
  count: number,
  value: (e: Expr) => Expr,
  then: readonly Stmt[],
): Stmt[] {
  const afterLast = or(
    lt(f("candidate"), f("last_value")),
    and(eq(f("candidate"), f("last_value")), gt(u("e"), u("last"))),
  );
  return [
    var_("last", u32(0)),
    var_("last_value", f32(0)),
    for_("j", u32(0), u32(k), [
      ...largest("best", count, value, or(eq(u("j"), u32(0)), afterLast)),
      set("last", u("best")),
      set("last_value", f("best_value")),
      ...then,
    ]),
  ];
}

/**
 * The k largest of each row. Bindings: `x` f32 [row, count], `values` f32 and `indices` i32 [row, k], written.
 * Its grid is `elementwiseGrid(rows)`.
 */
export interface TopKOptions {
  readonly name: string;
  readonly rows: Expr;
  readonly count: number;
  readonly k: number;
}

/** Values and indices of the k largest, by value descending, index ascending. */
export function topK(o: TopKOptions): Kernel {
  return elementwise({
    name: o.name,
    count: o.rows,
    bindings: [reads("x"), writes("values"), writes("indices", "i32")],
    body: (row) => [
      let_("row", mul(row, u32(o.count))),
      ...eachChoice(o.k, o.count, (e) => load("x", add(u("row"), e)), [
        let_("at", add(mul(row, u32(o.k)), u("j"))),
        store("values", u("at"), f("best_value")),
        store("indices", u("at"), convert("i32", u("best"))),
      ]),
    ],
  });
}

/**
 * A router. Bindings: `logits` f32 [token, expert], `noise` f32 [token, expert] if noisy, `index` i32 [token, k] and
 * `weight` f32 [token, k], written. Its grid is `elementwiseGrid(tokens)`.
 */
export interface RouterOptions {
  readonly name: string;
  readonly experts: number;
  readonly rule: RoutingRule;
  readonly tokens: Expr;
  /** fairscale: the second choice is by logits + noise. */
  readonly noisy: boolean;
}

/** Chosen experts and their weights; where a capacity follows (`kept`), weights are the scores. */
export function router(o: RouterOptions): Kernel {
  const { experts, rule } = o;
  const k = rule.topK;
  invariant(k <= experts, "no more choices than experts");
  invariant(!o.noisy || k === 2, "noise is for the second of two choices");
  const logit = (e: Expr) => load("logits", add(u("row"), e));
  const score = (e: Expr) =>
    div(call("exp", sub(logit(e), f("top"))), f("total"));
  const write = (j: Expr, e: Expr, suffix = ""): Stmt[] => [
    let_(`at${suffix}`, add(u("choices"), j)),
    store("index", u(`at${suffix}`), convert("i32", e)),
    let_(`score${suffix}`, score(e)),
    set("chosen", add(f("chosen"), f(`score${suffix}`))),
    store("weight", u(`at${suffix}`), f(`score${suffix}`)),
  ];
  const noisy = (e: Expr) => add(logit(e), load("noise", add(u("row"), e)));
  const choices = o.noisy
    ? [
      ...largest("first", experts, logit),
      ...largest("second", experts, noisy, binary("ne", u("e"), u("first"))),
      ...write(u32(0), u("first"), "0"),
      ...write(u32(1), u("second"), "1"),
    ]
    : eachChoice(k, experts, logit, write(u("j"), u("best")));
  const at = add(u("choices"), u("j"));
  const normalize: Stmt[] = rule.normalize === "chosen"
    ? [
      for_("j", u32(0), u32(k), [
        store("weight", at, div(load("weight", at), f("chosen"))),
      ]),
    ]
    : [];
  return elementwise({
    name: o.name,
    count: o.tokens,
    bindings: [
      reads("logits"),
      reads("noise"),
      writes("index", "i32"),
      {
        name: "weight",
        type: "f32",
        access: rule.normalize === "chosen" ? "read_write" : "write",
      },
    ],
    body: (token) => [
      let_("row", mul(token, u32(experts))),
      let_("choices", mul(token, u32(k))),
      var_("top", logit(u32(0))),
      for_("e", u32(1), u32(experts), [
        set("top", max(f("top"), logit(u("e")))),
      ]),
      ...blockedSum({
        length: experts,
        totals: ["total"],
        step: (e, [block]) => ({
          values: [add(block!, call("exp", sub(logit(e), f("top"))))],
        }),
      }),
      var_("chosen", f32(0)),
      ...choices,
      ...normalize,
    ],
  });
}

/**
 * Capacity by fairscale's rule. Bindings: `index` i32 and `score` f32 [token, 2], `group` i32 [token] where groups are
 * `"tensor"`; written: `slot` i32 and `weight` f32 [token, 2]. Its grid is `elementwiseGrid(tokens)`.
 */
export interface CapacityOptions {
  readonly name: string;
  readonly experts: number;
  readonly tokens: Expr;
  /** Tokens in each contiguous group, or `"tensor"`: equal values of the binding `group`. */
  readonly group: number | Expr | "tensor";
}

/**
 * Slots in the expert's buffer of a group: first choices in token order, then second ones after all first choices of
 * that expert, dropped ones counted. A slot of floor(2 S / E) or more drops the choice (-1). Weights are divided by
 * the sum of those kept.
 */
export function capacity(o: CapacityOptions): Kernel {
  const byTensor = o.group === "tensor";
  const length = o.group === "tensor" ? o.tokens : lengthOf(o.group);
  const index = (token: Expr, j: number) =>
    load("index", add(mul(token, u32(2)), u32(j)), "i32");
  const i = (name: string) => local(name, "i32");
  const one = (condition: Expr) => select(condition, u32(1), u32(0));
  const count = (name: string, condition: Expr) =>
    set(name, add(u(name), one(condition)));
  const counted: Stmt[] = [
    let_("first", index(u("other"), 0)),
    let_("second", index(u("other"), 1)),
    let_("before", lt(u("other"), u("i"))),
    count("slot0", and(local("before", "bool"), eq(i("first"), i("mine0")))),
    count("slot1", eq(i("first"), i("mine1"))),
    count("slot1", and(local("before", "bool"), eq(i("second"), i("mine1")))),
    ...byTensor ? [set("size", add(u("size"), u32(1)))] : [],
  ];
  const sameGroup = eq(
    load("group", u("other"), "i32"),
    load("group", u("i"), "i32"),
  );
  const pair = [0, 1] as const;
  return elementwise({
    name: o.name,
    count: o.tokens,
    bindings: [
      reads("index", "i32"),
      reads("score"),
      reads("group", "i32"),
      writes("slot", "i32"),
      writes("weight"),
    ],
    body: (token) => [
      let_("start", byTensor ? u32(0) : sub(token, rem(token, length))),
      let_("end", min(add(u("start"), length), o.tokens)),
      var_("size", byTensor ? u32(0) : sub(u("end"), u("start"))),
      ...pair.flatMap((j) => [
        let_(`mine${j}`, index(token, j)),
        var_(`slot${j}`, u32(0)),
      ]),
      for_(
        "other",
        u("start"),
        u("end"),
        byTensor ? [if_(sameGroup, counted)] : counted,
      ),
      let_("capacity", div(mul(u32(2), u("size")), u32(o.experts))),
      ...pair.flatMap((j) => [
        let_(`at${j}`, add(mul(token, u32(2)), u32(j))),
        let_(`kept${j}`, lt(u(`slot${j}`), u("capacity"))),
        let_(
          `weight${j}`,
          select(local(`kept${j}`, "bool"), load("score", u(`at${j}`)), f32(0)),
        ),
        store(
          "slot",
          u(`at${j}`),
          select(
            local(`kept${j}`, "bool"),
            convert("i32", u(`slot${j}`)),
            i32(-1),
          ),
        ),
      ]),
      let_(
        "kept",
        max(add(f("weight0"), f("weight1")), f32(1.1920928955078125e-7)),
      ),
      ...pair.map((j) =>
        store("weight", u(`at${j}`), div(f(`weight${j}`), f("kept")))
      ),
    ],
  });
}
