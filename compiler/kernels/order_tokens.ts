/** The order of tokens where it is not their own: by routing group, by the score of their first choice, then as they are. */

import {
  add,
  and,
  binary,
  bitcast,
  div,
  eq,
  f32,
  for_,
  gt,
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
  store,
  sub,
  u32,
  var_,
} from "../../spec/kernel/build.ts";
import type { Expr, Kernel, Stmt } from "../../spec/kernel/tree.ts";
import type { GroupsBy } from "./capacity.ts";
import { elementwise } from "./elementwise.ts";
import { reads, writes } from "./kernel.ts";

/** Tokens in a run that is sorted at once. */
export const SORTED_RUN = 64;

/**
 * An ordering. Bindings: `group` i32 [token] if groups are a tensor, `first` f32 [token] if prioritised; `order` u32
 * [token] is written by `sortRuns`, read by `mergeRuns`, which writes `next`. Grids are `elementwiseGrid(tokens)`.
 */
export interface OrderOptions {
  readonly name: string;
  readonly tokens: Expr;
  readonly group: GroupsBy;
  readonly prioritised: boolean;
}

function u(name: string): Expr {
  return local(name, "u32");
}

function or(a: Expr, b: Expr): Expr {
  return binary("lor", a, b);
}

/** A u32 that orders as an f32 does, whatever its bits; -0 as 0. */
export function orderKey(value: Expr): Expr {
  const bits = bitcast("u32", select(eq(value, f32(0)), f32(0), value));
  return select(
    gt(binary("shr", bits, u32(31)), u32(0)),
    binary("xor", bits, u32(0xffffffff)),
    binary("or", bits, u32(0x80000000)),
  );
}

/** Whether token `a` comes before token `b`: a total order, so that runs merge without ties. */
function before(o: OrderOptions, a: Expr, b: Expr): Expr {
  const index = lt(a, b);
  const [x, y] = [load("first", a), load("first", b)].map(orderKey) as [
    Expr,
    Expr,
  ];
  const inGroup = o.prioritised ? or(gt(x, y), and(eq(x, y), index)) : index;
  const [g, h] = [a, b].map((t) =>
    o.group === "tensor" ? load("group", t, "i32") : div(t, o.group)
  );
  return or(lt(g!, h!), and(eq(g!, h!), inGroup));
}

/** Each run of `SORTED_RUN` tokens in order: a token's place is how many of its run come before it. */
export function sortRuns(o: OrderOptions): Kernel {
  return elementwise({
    name: o.name,
    count: o.tokens,
    bindings: [reads("group", "i32"), reads("first"), writes("order", "u32")],
    body: (token) => [
      let_("start", sub(token, rem(token, u32(SORTED_RUN)))),
      let_("end", min(add(u("start"), u32(SORTED_RUN)), o.tokens)),
      var_("place", u("start")),
      for_("other", u("start"), u("end"), [
        if_(before(o, u("other"), token), [
          set("place", add(u("place"), u32(1))),
        ]),
      ]),
      store("order", u("place"), token),
    ],
  });
}

/** Runs of `run` tokens become runs of twice as many: each token looks up how many of the other run come before it. */
export function mergeRuns(o: OrderOptions & { run: number }): Kernel {
  const run = u32(o.run);
  const search: Stmt[] = [
    var_("low", u("start")),
    var_("high", u("end")),
    for_("step", u32(0), u32(Math.ceil(Math.log2(o.run)) + 1), [
      if_(lt(u("low"), u("high")), [
        let_("middle", div(add(u("low"), u("high")), u32(2))),
        let_("other", load("order", u("middle"), "u32")),
        if_(before(o, u("other"), u("token")), [
          set("low", add(u("middle"), u32(1))),
        ], [set("high", u("middle"))]),
      ]),
    ]),
  ];
  return elementwise({
    name: o.name,
    count: o.tokens,
    bindings: [
      ...[reads("group", "i32"), reads("first"), reads("order", "u32")],
      writes("next", "u32"),
    ],
    body: (place) => [
      let_("token", load("order", place, "u32")),
      let_("left", eq(rem(div(place, run), u32(2)), u32(0))),
      let_("pair", mul(div(place, mul(run, u32(2))), mul(run, u32(2)))),
      let_(
        "start",
        min(
          select(local("left", "bool"), add(u("pair"), run), u("pair")),
          o.tokens,
        ),
      ),
      let_("end", min(add(u("start"), run), o.tokens)),
      ...search,
      // Its place in its own run, and those of the other run that come before it.
      let_("own", rem(place, run)),
      store(
        "next",
        add(u("pair"), u("own"), sub(u("low"), u("start"))),
        u("token"),
      ),
    ],
  });
}
