/** Capacity: who gets the slots of an expert in a routing group, and what weights are left. */

import {
  add,
  and,
  barrier,
  binary,
  convert,
  div,
  eq,
  f32,
  for_,
  gt,
  i32,
  id,
  if_,
  let_,
  load,
  local,
  lt,
  min,
  mul,
  rem,
  select,
  set,
  shared,
  sharedStore,
  store,
  sub,
  u32,
  var_,
} from "../../spec/kernel/build.ts";
import type { Expr, Kernel, Stmt } from "../../spec/kernel/tree.ts";
import type { Size } from "../../spec/size.ts";
import type { CapacityRule, RoutingRule } from "../graph/graph.ts";
import { elementwise } from "./elementwise.ts";
import { type Grid, kernelOf, reads, writes } from "./kernel.ts";
import { orderKey } from "./order_tokens.ts";
import { divisorOf } from "./router.ts";

/** Invocations that share the choices of one expert in one routing group. */
const LANES = 64;

function u(name: string): Expr {
  return local(name, "u32");
}

function or(a: Expr, b: Expr): Expr {
  return binary("lor", a, b);
}

function increase(name: string, by: Expr = u32(1)): Stmt {
  return set(name, add(u(name), by));
}

/** What all kernels of a capacity are told. */
export interface CapacityOptions {
  readonly name: string;
  readonly experts: number;
  readonly rule: RoutingRule;
  readonly tokens: Expr;
}

/**
 * Which choice, if any, each token has of each expert. Bindings: `index` i32 [token, k], `mask` i32 [token] if masked;
 * written: `mark` u32 [expert, token], the choice plus 1, or 0; `slot` i32 [token, k], -1. Its grid is
 * `elementwiseGrid(tokens)`.
 */
export function mark(o: CapacityOptions & { masked: boolean }): Kernel {
  const k = o.rule.topK;
  const at = add(mul(u("i"), u32(k)), u("j"));
  const chosen = convert("u32", load("index", at, "i32"));
  // From the last choice to the first: of an expert that is given twice, the first counts.
  const marked = for_("n", u32(0), u32(k), [
    let_("j", sub(u32(k - 1), u("n"))),
    store("mark", add(mul(chosen, o.tokens), u("i")), add(u("j"), u32(1))),
  ]);
  const active = binary("ne", load("mask", u("i"), "i32"), i32(0));
  return elementwise({
    name: o.name,
    count: o.tokens,
    bindings: [
      ...[reads("index", "i32"), reads("mask", "i32")],
      ...[writes("mark", "u32"), writes("slot", "i32")],
    ],
    body: (token) => [
      for_("e", u32(0), u32(o.experts), [
        store("mark", add(mul(u("e"), o.tokens), token), u32(0)),
      ]),
      for_("j", u32(0), u32(k), [store("slot", at, i32(-1))]),
      o.masked ? if_(active, [marked]) : marked,
    ],
  });
}

/** Where routing groups lie: contiguous ones of a length, or as an i32 says, when tokens are ordered by it. */
export type GroupsBy = Expr | "tensor";

/**
 * The slots. Bindings: `mark` u32 [expert, token]; `order` u32 [token] if tokens are ordered; `group` i32 [token] if
 * groups are a tensor; `weight` f32 [token, k] or `random` f32 [token, expert] where they decide; `room` u32, the slots
 * by the number of tokens in a group, where `room` is "table"; written: `slot` i32 [token, k]. Its grid is
 * `slotsGrid`.
 */
export interface SlotsOptions extends CapacityOptions {
  readonly group: GroupsBy;
  readonly ordered: boolean;
  /** Slots of an expert: a number, by a table, or as many as there are choices. */
  readonly room: number | "table" | "largest";
}

/** One workgroup for each expert in each contiguous group, or for each expert in all groups. */
export function slotsGrid(experts: number, groups: Size): Grid {
  return [experts, groups, 1];
}

/** Every choice that finds room gets its slot: counted, cut where choices compete by value, and numbered. */
export function slots(o: SlotsOptions): Kernel {
  const { group } = o;
  const last = (q: Expr) => load("group", load("order", q, "u32"), "i32");
  const body: Stmt[] = group === "tensor"
    ? [
      for_("start", u32(0), o.tokens, [
        let_(
          "before",
          select(gt(u("start"), u32(0)), sub(u("start"), u32(1)), u32(0)),
        ),
        let_(
          "begins",
          or(
            eq(u("start"), u32(0)),
            binary("ne", last(u("start")), last(u("before"))),
          ),
        ),
        if_(local("begins", "bool"), [
          ...groupEnd(o.tokens, last),
          let_("size", sub(u("end"), u("start"))),
          ...slotsOfGroup(o),
          barrier(),
        ]),
      ]),
    ]
    : [
      let_("start", mul(id("group.y"), group)),
      let_("size", sub(min(add(u("start"), group), o.tokens), u("start"))),
      ...slotsOfGroup(o),
    ];
  return kernelOf({
    name: o.name,
    workgroupSize: LANES,
    bindings: [
      ...[reads("mark", "u32"), reads("order", "u32"), reads("room", "u32")],
      ...[reads("group", "i32"), reads("weight"), reads("random")],
      writes("slot", "i32"),
    ],
    shared: [
      { name: "counts", type: "u32", length: LANES },
      { name: "ties", type: "u32", length: LANES },
    ],
    body,
  });
}

/** `end` becomes the first place after `start` whose group is another: tokens are ordered by group. */
function groupEnd(tokens: Expr, at: (q: Expr) => Expr): Stmt[] {
  return [
    var_("end", add(u("start"), u32(1))),
    var_("after", tokens),
    for_("bit", u32(0), u32(32), [
      if_(lt(u("end"), u("after")), [
        let_("middle", div(add(u("end"), u("after")), u32(2))),
        if_(eq(at(u("middle")), at(u("start"))), [
          set("end", add(u("middle"), u32(1))),
        ], [set("after", u("middle"))]),
      ]),
    ]),
  ];
}

/** For each place of this lane's share that has a choice of the expert: `at` is the choice, `token` its token. */
function eachChoice(o: SlotsOptions, body: readonly Stmt[]): Stmt {
  const k = u32(o.rule.topK);
  const byToken = o.rule.capacity!.order === "token";
  const place = add(u("start"), byToken ? u("p") : rem(u("p"), u("size")));
  const marked = byToken
    ? gt(u("found"), u32(0))
    : eq(u("found"), add(div(u("p"), u("size")), u32(1)));
  return for_("p", u("from"), u("to"), [
    let_("token", o.ordered ? load("order", place, "u32") : place),
    let_("found", load("mark", add(u("row"), u("token")), "u32")),
    if_(marked, [
      let_("at", add(mul(u("token"), k), sub(u("found"), u32(1)))),
      ...body,
    ]),
  ]);
}

/** The slots of the group of `size` places from `start`. */
function slotsOfGroup(o: SlotsOptions): Stmt[] {
  const rule = o.rule.capacity!;
  const places = rule.order === "token"
    ? u("size")
    : mul(u("size"), u32(o.rule.topK));
  const room = o.room === "table"
    ? load("room", u("size"), "u32")
    : o.room === "largest"
    ? u("places")
    : u32(o.room);
  const cut = rule.drop !== "position" && o.room !== "largest";
  return [
    let_("row", mul(id("group.x"), o.tokens)),
    let_("places", places),
    let_("share", div(add(u("places"), u32(LANES - 1)), u32(LANES))),
    let_("from", min(mul(id("local"), u("share")), u("places"))),
    let_("to", min(add(u("from"), u("share")), u("places"))),
    let_("slots", room),
    ...cut ? cutByValue(o, rule) : cutByPlace(o),
  ];
}

/** `name` becomes the sum of what lanes have in `array`, those below `to` only. */
function sumOfLanes(name: string, array: string, to: Expr): Stmt[] {
  return [
    var_(name, u32(0)),
    for_("l", u32(0), to, [increase(name, shared(array, u("l"), "u32"))]),
  ];
}

/** Slots in the order of places, as long as there are any. */
function cutByPlace(o: SlotsOptions): Stmt[] {
  return [
    var_("mine", u32(0)),
    eachChoice(o, [increase("mine")]),
    sharedStore("counts", id("local"), u("mine")),
    barrier(),
    ...sumOfLanes("next", "counts", id("local")),
    eachChoice(o, [
      if_(lt(u("next"), u("slots")), [
        store("slot", u("at"), convert("i32", u("next"))),
      ]),
      increase("next"),
    ]),
  ];
}

/** What a choice competes with. */
function keyOf(o: SlotsOptions, rule: CapacityRule): Stmt[] {
  const at = add(mul(u("token"), u32(o.experts)), id("group.x"));
  return [
    let_(
      "value",
      rule.drop === "score" ? load("weight", u("at")) : load("random", at),
    ),
    let_("key", orderKey(local("value", "f32"))),
  ];
}

/**
 * The slots go to those with the largest keys, in the order of places; of equal ones to the first. The least key that
 * has a slot is found bit by bit: the largest that at least as many choices reach as there are slots.
 */
function cutByValue(o: SlotsOptions, rule: CapacityRule): Stmt[] {
  const key = keyOf(o, rule);
  const reached = binary("ge", u("key"), u("candidate"));
  const above = gt(u("key"), u("least"));
  const same = eq(u("key"), u("least"));
  return [
    var_("least", u32(0)),
    for_("bit", u32(0), u32(32), [
      let_(
        "candidate",
        binary(
          "or",
          u("least"),
          binary("shl", u32(1), sub(u32(31), u("bit"))),
        ),
      ),
      var_("mine", u32(0)),
      eachChoice(o, [...key, if_(reached, [increase("mine")])]),
      sharedStore("counts", id("local"), u("mine")),
      barrier(),
      ...sumOfLanes("all", "counts", u32(LANES)),
      if_(binary("ge", u("all"), u("slots")), [set("least", u("candidate"))]),
      barrier(),
    ]),
    var_("larger", u32(0)),
    var_("equal", u32(0)),
    eachChoice(o, [
      ...key,
      if_(above, [increase("larger")]),
      if_(same, [increase("equal")]),
    ]),
    sharedStore("counts", id("local"), u("larger")),
    sharedStore("ties", id("local"), u("equal")),
    barrier(),
    ...sumOfLanes("winners", "counts", u32(LANES)),
    ...sumOfLanes("next", "counts", id("local")),
    ...sumOfLanes("tied", "ties", id("local")),
    // Where there are no slots at all, none is left for ties either.
    let_("left", sub(u("slots"), min(u("winners"), u("slots")))),
    increase("next", min(u("tied"), u("left"))),
    eachChoice(o, [
      ...key,
      let_("wins", or(above, and(same, lt(u("tied"), u("left"))))),
      if_(same, [increase("tied")]),
      if_(and(local("wins", "bool"), lt(u("next"), u("slots"))), [
        store("slot", u("at"), convert("i32", u("next"))),
        increase("next"),
      ]),
    ]),
  ];
}

/**
 * The weights after dropping. Bindings: `slot` i32 and `weight` f32 [token, k]; written: `kept` f32 [token, k]. Its
 * grid is `elementwiseGrid(tokens)`.
 */
export function keep(o: CapacityOptions): Kernel {
  const { rule } = o;
  const at = add(u("choices"), u("j"));
  const left = select(
    lt(load("slot", at, "i32"), i32(0)),
    f32(0),
    load("weight", at),
  );
  const total = local("total", "f32");
  const share = div(local("left", "f32"), local("divisor", "f32"));
  const each = (body: readonly Stmt[]) =>
    for_("j", u32(0), u32(rule.topK), [let_("left", left), ...body]);
  const scaled = rule.scale === undefined ? share : mul(share, f32(rule.scale));
  return elementwise({
    name: o.name,
    count: o.tokens,
    bindings: [reads("slot", "i32"), reads("weight"), writes("kept")],
    body: (token) => [
      let_("choices", mul(token, u32(rule.topK))),
      ...rule.normalize === "kept"
        ? [
          var_("total", f32(0)),
          each([set("total", add(total, local("left", "f32")))]),
          let_("divisor", divisorOf(rule, total)),
          each([
            store(
              "kept",
              at,
              select(
                eq(local("left", "f32"), f32(0)),
                f32(0),
                scaled,
              ),
            ),
          ]),
        ]
        : [each([store("kept", at, local("left", "f32"))])],
    ],
  });
}

/**
 * How often each token chose each expert. Bindings: `index` i32 [token, k]; `slot` i32 [token, k] if `dropped` matters;
 * `mask` i32 [token] if masked; written: `marks` f32 [token, expert]. Its grid is `elementwiseGrid(tokens)`.
 */
export interface MarksOptions extends CapacityOptions {
  /** How many of the choices count. */
  readonly choices: number;
  /** What dropped choices count as: nothing, expert 0, or as the others do. */
  readonly dropped: "nothing" | "expert 0" | "others";
  readonly masked: boolean;
}

/** 1 where a token chose an expert, else 0; for choices that are given, how often. */
export function marks(o: MarksOptions): Kernel {
  const at = add(mul(u("i"), u32(o.rule.topK)), u("j"));
  const chosen = convert("u32", load("index", at, "i32"));
  const kept = binary("ge", load("slot", at, "i32"), i32(0));
  const settled = o.dropped === "expert 0"
    ? select(kept, chosen, u32(0))
    : chosen;
  const hits = and(
    eq(settled, u("e")),
    ...o.dropped === "nothing" ? [kept] : [],
    ...o.masked ? [binary("ne", load("mask", u("i"), "i32"), i32(0))] : [],
  );
  const hit = local("hit", "f32");
  return elementwise({
    name: o.name,
    count: o.tokens,
    bindings: [
      ...[reads("index", "i32"), reads("slot", "i32"), reads("mask", "i32")],
      writes("marks"),
    ],
    body: (token) => [
      for_("e", u32(0), u32(o.experts), [
        var_("hit", f32(0)),
        for_("j", u32(0), u32(o.choices), [
          if_(hits, [set("hit", add(hit, f32(1)))]),
        ]),
        store("marks", add(mul(token, u32(o.experts)), u("e")), hit),
      ]),
    ],
  });
}
