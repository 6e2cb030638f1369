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
import type { Binding, Expr, Kernel, Stmt } from "../../spec/kernel/tree.ts";
import type { RouteOperand, RoutingRule } from "../graph/graph.ts";
import { elementwise } from "./elementwise.ts";
import { reads, writes } from "./kernel.ts";
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

/** What a router reads besides its logits. */
export type RouterOperand = Exclude<RouteOperand, "group" | "random">;

/**
 * A router. Bindings: `logits` and `noise` f32 [token, expert], `bias` f32 [expert], `mask` i32 [token], `choices` i32
 * and `weights` f32 [token, k], those of them that `operands` names; written: `index` i32 and `weight` f32 [token, k];
 * `first` f32 [token] if tokens are prioritised; `slot` i32 [token, k], 0 or -1, where padding is all that is dropped.
 * Its grid is `elementwiseGrid(tokens)`.
 */
export interface RouterOptions {
  readonly name: string;
  readonly experts: number;
  readonly rule: RoutingRule;
  readonly tokens: Expr;
  /** Tokens of a routing group, which balanced choices count; default all. */
  readonly group?: Expr;
  readonly operands?: readonly RouterOperand[];
}

/** Chosen experts and their weights; where weights are divided by those kept, they are the scores. */
export function router(o: RouterOptions): Kernel {
  const { experts, rule, operands = [] } = o;
  const has = (name: RouterOperand) => operands.includes(name);
  invariant(rule.topK <= experts, "no more choices than experts");
  const score = (e: Expr) => scoreOf(rule, logit(e));
  const chosenSoftmax = rule.score === "chosenSoftmax" && !has("weights");
  const divided = chosenSoftmax || rule.normalize === "chosen";
  const scaled = (w: Expr) =>
    rule.scale === undefined || rule.normalize === "kept"
      ? w
      : mul(w, f32(rule.scale));
  const write = (j: Expr, e: Expr): Stmt[] => [
    let_("at", add(u("choices_at"), j)),
    store("index", u("at"), convert("i32", e)),
    let_("raw", has("weights") ? load("weights", u("at")) : score(e)),
    set("chosen", add(f("chosen"), f("raw"))),
    store("weight", u("at"), divided ? f("raw") : scaled(f("raw"))),
  ];
  const padding = has("mask") && rule.capacity === undefined;
  return elementwise({
    name: o.name,
    count: o.tokens,
    bindings: [
      ...[reads("logits"), reads("noise"), reads("bias"), reads("weights")],
      ...[reads("mask", "i32"), reads("choices", "i32")],
      ...[writes("slot", "i32"), writes("first")],
      access("index", "i32", rule.capacity?.prioritised === true),
      access("weight", "f32", divided || padding),
    ],
    body: (token) => [
      let_("row", mul(token, u32(experts))),
      let_("choices_at", mul(token, u32(rule.topK))),
      ...prepareScores(rule, experts, logit),
      var_("chosen", f32(0)),
      ...choose(o, token, { score, write, has }),
      ...chosenSoftmax ? softmaxOfChosen(rule, scaled) : [],
      ...rule.normalize === "chosen" ? divideChosen(rule, scaled) : [],
      ...rule.capacity?.prioritised
        ? [
          let_("best_first", load("index", u("choices_at"), "i32")),
          store(
            "first",
            token,
            score(convert("u32", local("best_first", "i32"))),
          ),
        ]
        : [],
      ...padding ? dropPadding(rule.topK, token) : [],
    ],
  });
}

/** A binding that is written, and perhaps read again. */
function access(name: string, type: Binding["type"], again: boolean): Binding {
  return { name, type, access: again ? "read_write" : "write" };
}

/** The logit of an expert of the row at hand. */
function logit(e: Expr): Expr {
  return load("logits", add(u("row"), e));
}

interface Choosing {
  readonly score: (e: Expr) => Expr;
  readonly write: (j: Expr, e: Expr) => Stmt[];
  readonly has: (name: RouterOperand) => boolean;
}

/** Write the choices of a token: those given, one expert after the other, or the best. */
function choose(
  { experts, rule, tokens, group }: RouterOptions,
  token: Expr,
  { score, write, has }: Choosing,
): Stmt[] {
  const k = rule.topK;
  if (rule.choose !== undefined) {
    const given = convert(
      "u32",
      load("choices", add(u("choices_at"), u("j")), "i32"),
    );
    const turn = add(mul(rem(token, group ?? tokens), u32(k)), u("j"));
    return [
      for_("j", u32(0), u32(k), [
        let_(
          "best",
          rule.choose === "given"
            ? min(given, u32(experts - 1))
            : rem(turn, u32(experts)),
        ),
        ...write(u("j"), u("best")),
      ]),
    ];
  }
  const biased = has("bias");
  const scored = biased || (rule.expertGroups?.best ?? 1) > 1;
  const worth = (e: Expr) =>
    biased ? add(score(e), load("bias", e)) : scored ? score(e) : logit(e);
  const noisy = (e: Expr) => add(worth(e), load("noise", add(u("row"), e)));
  const allowed = rule.expertGroups
    ? inKeptGroup(experts / rule.expertGroups.count)
    : undefined;
  const from = (value: (e: Expr) => Expr) => ({
    count: experts,
    value,
    ...allowed ? { allowed } : {},
  });
  const groups = keepGroups(rule, experts, worth);
  if (!has("noise") || rule.noisy !== "second") {
    const all = from(has("noise") ? noisy : worth);
    return [...groups, ...eachChoice("best", k, all, write(u("j"), u("best")))];
  }
  const other = (e: Expr) => binary("ne", e, u("best_one"));
  const others: Candidates = {
    ...from(noisy),
    allowed: (e) => allowed ? and(allowed(e), other(e)) : other(e),
  };
  const next = write(add(u("j"), u32(1)), u("best"));
  return [
    ...groups,
    ...largest("best_one", from(worth)),
    // A scope of its own: the names that `write` binds come again.
    if_(bool(true), write(u32(0), u("best_one"))),
    ...k > 1 ? eachChoice("best", k - 1, others, next) : [],
  ];
}

/** Where the weight of the choice `j` is. */
function weightAt(): Expr {
  return add(u("choices_at"), u("j"));
}

/** The softmax over the chosen, of the logits in `weight`; `chosen` becomes the sum of the weights. */
function softmaxOfChosen(
  rule: RoutingRule,
  scaled: (w: Expr) => Expr,
): Stmt[] {
  const k = u32(rule.topK);
  const last = rule.normalize !== "chosen";
  return [
    ...powersOfChosen(rule.topK, weightAt()),
    var_("shares", f32(0)),
    for_("j", u32(0), k, [
      let_("share", div(load("weight", weightAt()), f("chosen"))),
      store("weight", weightAt(), last ? scaled(f("share")) : f("share")),
      set("shares", add(f("shares"), f("share"))),
    ]),
    set("chosen", f("shares")),
  ];
}

/** What weights are divided by, from their sum. */
export function divisorOf(rule: RoutingRule, sum: Expr): Expr {
  const { epsilon = 0, least } = rule;
  const all = epsilon === 0 ? sum : add(sum, f32(epsilon));
  return least === undefined ? all : max(all, f32(least));
}

/** Weights divided by their sum. */
function divideChosen(rule: RoutingRule, scaled: (w: Expr) => Expr): Stmt[] {
  return [
    let_("divisor", divisorOf(rule, f("chosen"))),
    for_("j", u32(0), u32(rule.topK), [
      store(
        "weight",
        weightAt(),
        scaled(div(load("weight", weightAt()), f("divisor"))),
      ),
    ]),
  ];
}

/** The choices of padding have no slot and no weight. */
function dropPadding(k: number, token: Expr): Stmt[] {
  return [
    let_("is_padding", eq(load("mask", token, "i32"), i32(0))),
    for_("j", u32(0), u32(k), [
      store("slot", weightAt(), select(isPadding(), i32(-1), i32(0))),
      if_(isPadding(), [store("weight", weightAt(), f32(0))]),
    ]),
  ];
}

function isPadding(): Expr {
  return local("is_padding", "bool");
}

/** The chosen logits in `weight` become their powers, and `chosen` the sum of those. */
function powersOfChosen(k: number, at: Expr): Stmt[] {
  return [
    var_("top", load("weight", u("choices_at"))),
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
  const { count, keep, best } = rule.expertGroups;
  const size = experts / count;
  const names = Array.from({ length: best }, (_, i) => `member_${i}`);
  // Each of the best so far takes what falls off the one before it; the last first.
  const insert = names.map((name, i) =>
    set(
      name,
      max(f(name), i === 0 ? f("member") : min(f(names[i - 1]!), f("member"))),
    )
  ).reverse();
  const prepare = (group: Expr): Stmt[] => [
    let_("start", mul(group, u32(size))),
    ...names.map((name) => var_(name, f32(LOWEST))),
    for_("m", u("start"), add(u("start"), u32(size)), [
      let_("member", worth(u("m"))),
      ...insert,
    ]),
  ];
  const value = () => {
    const [first, ...others] = names.map(f);
    return add(first!, ...others);
  };
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
