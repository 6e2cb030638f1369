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
  neg,
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

/** Below every logit; the lowest f32. */
const LOWEST = -3.4028234663852886e38;

function u(name: string): Expr {
  return local(name, "u32");
}

function f(name: string): Expr {
  return local(name, "f32");
}

/** What is chosen from: `count` values; `prepare` are the statements that a value needs. */
interface Candidates {
  readonly count: number;
  readonly value: (e: Expr) => Expr;
  readonly prepare?: (e: Expr) => readonly Stmt[];
  readonly allowed?: (e: Expr) => Expr;
}

/** `name` becomes the allowed index with the largest value, the lowest of equals; `name`_value its value. */
function largest(
  name: string,
  { count, value, prepare, allowed = () => bool(true) }: Candidates,
): Stmt[] {
  const better = or(
    eq(u(name), u32(count)),
    gt(f("candidate"), f(`${name}_value`)),
  );
  return [
    var_(name, u32(count)),
    var_(`${name}_value`, f32(0)),
    for_("e", u32(0), u32(count), [
      ...prepare?.(u("e")) ?? [],
      let_("candidate", value(u("e"))),
      if_(and(allowed(u("e")), better), [
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
 * Choices j = 0 .. k - 1 in `name`, by value descending, index ascending. Nothing is marked as taken: what comes after
 * the last choice in that order has not been chosen yet.
 */
function eachChoice(
  name: string,
  k: number,
  from: Candidates,
  then: readonly Stmt[],
): Stmt[] {
  const [last, lastValue] = [`last_${name}`, `last_${name}_value`];
  const afterLast = or(
    lt(f("candidate"), f(lastValue)),
    and(eq(f("candidate"), f(lastValue)), gt(u("e"), u(last))),
  );
  const next = or(eq(u("j"), u32(0)), afterLast);
  return [
    var_(last, u32(0)),
    var_(lastValue, f32(0)),
    for_("j", u32(0), u32(k), [
      ...largest(name, {
        ...from,
        allowed: (e) => from.allowed ? and(from.allowed(e), next) : next,
      }),
      set(last, u(name)),
      set(lastValue, f(`${name}_value`)),
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
      ...eachChoice("best", o.k, {
        count: o.count,
        value: (e) => load("x", add(u("row"), e)),
      }, [
        let_("at", add(mul(row, u32(o.k)), u("j"))),
        store("values", u("at"), f("best_value")),
        store("indices", u("at"), convert("i32", u("best"))),
      ]),
    ],
  });
}

/**
 * A router. Bindings: `logits` f32 [token, expert], `noise` f32 [token, expert] if noisy, `bias` f32 [expert] if biased,
 * `index` i32 [token, k] and `weight` f32 [token, k], written. Its grid is `elementwiseGrid(tokens)`.
 */
export interface RouterOptions {
  readonly name: string;
  readonly experts: number;
  readonly rule: RoutingRule;
  readonly tokens: Expr;
  /** fairscale: the second choice is by logits + noise. */
  readonly noisy: boolean;
  /** Experts are chosen by score + bias. */
  readonly biased?: boolean;
}

/** Chosen experts and their weights; where a capacity follows (`kept`), weights are the scores. */
export function router(o: RouterOptions): Kernel {
  const { experts, rule, biased = false } = o;
  const k = rule.topK;
  invariant(k <= experts, "no more choices than experts");
  invariant(!o.noisy || k === 2, "noise is for the second of two choices");
  const { normalize, epsilon = 0, scale = 1 } = rule;
  const logit = (e: Expr) => load("logits", add(u("row"), e));
  const score = (e: Expr) => scoreOf(rule, logit(e));
  const scored = biased || rule.expertGroups?.score === "top2Sum";
  const worth = (e: Expr) =>
    biased ? add(score(e), load("bias", e)) : scored ? score(e) : logit(e);
  const divided = normalize === "chosen" || rule.score === "chosenSoftmax";
  const scaled = (w: Expr) => scale === 1 ? w : mul(w, f32(scale));
  const write = (j: Expr, e: Expr, suffix = ""): Stmt[] => [
    let_(`at${suffix}`, add(u("choices"), j)),
    store("index", u(`at${suffix}`), convert("i32", e)),
    let_(`score${suffix}`, score(e)),
    set("chosen", add(f("chosen"), f(`score${suffix}`))),
    store(
      "weight",
      u(`at${suffix}`),
      divided ? f(`score${suffix}`) : scaled(f(`score${suffix}`)),
    ),
  ];
  const noisy = (e: Expr) => add(logit(e), load("noise", add(u("row"), e)));
  const choices = o.noisy
    ? [
      ...largest("first", { count: experts, value: logit }),
      ...largest("second", {
        count: experts,
        value: noisy,
        allowed: (e) => binary("ne", e, u("first")),
      }),
      ...write(u32(0), u("first"), "0"),
      ...write(u32(1), u("second"), "1"),
    ]
    : eachChoice("best", k, {
      count: experts,
      value: worth,
      ...rule.expertGroups
        ? { allowed: inKeptGroup(experts / rule.expertGroups.count) }
        : {},
    }, write(u("j"), u("best")));
  const at = add(u("choices"), u("j"));
  const sum = epsilon === 0 ? f("chosen") : add(f("chosen"), f32(epsilon));
  return elementwise({
    name: o.name,
    count: o.tokens,
    bindings: [
      reads("logits"),
      reads("noise"),
      reads("bias"),
      writes("index", "i32"),
      {
        name: "weight",
        type: "f32",
        access: divided ? "read_write" : "write",
      },
    ],
    body: (token) => [
      let_("row", mul(token, u32(experts))),
      let_("choices", mul(token, u32(k))),
      ...prepareScores(rule, experts, logit),
      var_("chosen", f32(0)),
      ...keepGroups(rule, experts, worth),
      ...choices,
      ...divided
        ? [
          ...rule.score === "chosenSoftmax" ? powersOfChosen(k, at) : [],
          for_("j", u32(0), u32(k), [
            store("weight", at, scaled(div(load("weight", at), sum))),
          ]),
        ]
        : [],
    ],
  });
}

/** The chosen logits in `weight` become their powers, and `chosen` the sum of those. */
function powersOfChosen(k: number, at: Expr): Stmt[] {
  return [
    var_("top", load("weight", u("choices"))),
    for_("j", u32(1), u32(k), [set("top", max(f("top"), load("weight", at)))]),
    set("chosen", f32(0)),
    for_("j", u32(0), u32(k), [
      let_("power", call("exp", sub(load("weight", at), f("top")))),
      store("weight", at, f("power")),
      set("chosen", add(f("chosen"), f("power"))),
    ]),
  ];
}

/** What a softmax over all experts needs to know of a row: `top` and `total`. */
function prepareScores(
  rule: RoutingRule,
  experts: number,
  logit: (e: Expr) => Expr,
): Stmt[] {
  if (rule.score !== "softmax") return [];
  return [
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
  ];
}

/** The score of a logit; a softmax over the chosen is taken when they are known. */
function scoreOf(rule: RoutingRule, logit: Expr): Expr {
  switch (rule.score) {
    case "softmax":
      return div(call("exp", sub(logit, f("top"))), f("total"));
    case "sigmoid":
      return div(f32(1), add(f32(1), call("exp", neg(logit))));
    case "chosenSoftmax":
    case "none":
      return logit;
  }
}

/** Bit g of `groups` becomes 1 for each group of experts that is kept. */
function keepGroups(
  rule: RoutingRule,
  experts: number,
  worth: (e: Expr) => Expr,
): Stmt[] {
  if (rule.expertGroups === undefined) return [];
  const { count, keep, score } = rule.expertGroups;
  const size = experts / count;
  const first = set("first_best", max(f("first_best"), f("member")));
  const second = set(
    "second_best",
    max(f("second_best"), min(f("first_best"), f("member"))),
  );
  const prepare = (group: Expr): Stmt[] => [
    let_("start", mul(group, u32(size))),
    var_("first_best", f32(LOWEST)),
    ...score === "max" ? [] : [var_("second_best", f32(LOWEST))],
    for_("m", u("start"), add(u("start"), u32(size)), [
      let_("member", worth(u("m"))),
      ...score === "max" ? [first] : [second, first],
    ]),
  ];
  const value = () =>
    score === "max" ? f("first_best") : add(f("first_best"), f("second_best"));
  return [
    var_("groups", u32(0)),
    ...eachChoice("group", keep, { count, value, prepare }, [
      set(
        "groups",
        binary("or", u("groups"), binary("shl", u32(1), u("group"))),
      ),
    ]),
  ];
}

/** Whether an expert's group is kept; groups have `size` experts. */
function inKeptGroup(size: number): (e: Expr) => Expr {
  return (e) =>
    eq(
      binary("and", binary("shr", u("groups"), div(e, u32(size))), u32(1)),
      u32(1),
    );
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
