/** Which ranks a token goes to, whatever the number of its experts there: rows to send once, and where choices find them. */

import {
  add,
  barrier,
  binary,
  convert,
  div,
  eq,
  for_,
  id,
  if_,
  let_,
  load,
  local,
  lt,
  min,
  mul,
  select,
  set,
  shared,
  sharedStore,
  store,
  sub,
  u32,
  var_,
} from "../../spec/kernel/build.ts";
import { pick } from "../../spec/kernel/pick.ts";
import type { Expr, Kernel, Stmt } from "../../spec/kernel/tree.ts";
import { DROPPED } from "./assign.ts";
import { elementwise } from "./elementwise.ts";
import { kernelOf, reads, SHARED_WORDS, writes } from "./kernel.ts";

function u(name: string): Expr {
  return local(name, "u32");
}

/**
 * What a token reaches. Bindings: `index` i32 and `sendRow` u32 [token, k]; `order` u32 [expert] if `ordered`: the column
 * of each expert; written: `reach` u32 [position]: tokens for each; `tokenRow` u32 [token, k]: the row in which the token
 * is sent to the position of this choice, at its first choice there, else DROPPED; `places` u32 [row]: for the choice of
 * a send row, its token among those sent to the same position. Its grid is one workgroup.
 */
export interface ReachOptions {
  readonly name: string;
  /** Columns splits[p] to splits[p + 1] belong to position p. */
  readonly splits: readonly number[];
  readonly k: number;
  readonly tokens: Expr;
  readonly ordered: boolean;
}

/** Rows by position, then token: a counting sort in which every lane takes consecutive tokens. */
export function reach(o: ReachOptions): Kernel {
  const positions = o.splits.length - 1;
  let lanes = 64;
  while (lanes > 1 && (lanes + 2) * positions > SHARED_WORDS) lanes /= 2;
  const lane = id("local");
  const mine = mul(lane, u32(positions));
  const kept = (a: Expr) =>
    binary("ne", load("sendRow", a, "u32"), u32(DROPPED));
  const column = (a: Expr) => {
    const expert = convert("u32", load("index", a, "i32"));
    return o.ordered ? load("order", expert, "u32") : expert;
  };
  /** The position of a column: how many positions end before it. */
  const positionOf = (column: Expr) =>
    o.splits.slice(1, -1).reduce<Expr>(
      (p, end) => add(p, select(lt(column, u32(end)), u32(0), u32(1))),
      u32(0),
    );
  /** For each choice of this lane that is not dropped: `p`, its position, and `fresh`, 1 if no choice before it goes there. */
  const eachChoice = (then: readonly Stmt[], dropped: readonly Stmt[]): Stmt =>
    for_("t", u("from"), u("to"), [
      for_("j", u32(0), u32(o.k), [
        let_("a", add(mul(u("t"), u32(o.k)), u("j"))),
        if_(kept(u("a")), [
          let_("column", column(u("a"))),
          let_("p", positionOf(u("column"))),
          var_("fresh", u32(1)),
          for_("i", u32(0), u("j"), [
            let_("b", add(mul(u("t"), u32(o.k)), u("i"))),
            if_(kept(u("b")), [
              let_("other", column(u("b"))),
              if_(eq(positionOf(u("other")), u("p")), [set("fresh", u32(0))]),
            ]),
          ]),
          ...then,
        ], dropped),
      ]),
    ]);
  const cell = add(mine, u("p"));
  const above = add(mul(u("l"), u32(positions)), u("q"));
  const isFresh = eq(u("fresh"), u32(1));
  return kernelOf({
    name: o.name,
    workgroupSize: lanes,
    bindings: [
      reads("index", "i32"),
      reads("sendRow", "u32"),
      reads("order", "u32"),
      writes("reach", "u32"),
      writes("tokenRow", "u32"),
      writes("places", "u32"),
    ],
    shared: [
      { name: "cells", type: "u32", length: lanes * positions },
      { name: "totals", type: "u32", length: positions },
    ],
    body: [
      let_("tokens", o.tokens),
      let_("share", div(add(u("tokens"), u32(lanes - 1)), u32(lanes))),
      let_("from", min(mul(lane, u("share")), u("tokens"))),
      let_("to", min(add(u("from"), u("share")), u("tokens"))),
      for_("q", u32(0), u32(positions), [
        sharedStore("cells", add(mine, u("q")), u32(0)),
      ]),
      eachChoice([
        if_(isFresh, [
          sharedStore("cells", cell, add(shared("cells", cell, "u32"), u32(1))),
        ]),
      ], []),
      barrier(),
      // Within a position: how many tokens earlier lanes have.
      for_("q", lane, u32(positions), [
        var_("count", u32(0)),
        for_("l", u32(0), u32(lanes), [
          let_("here", shared("cells", above, "u32")),
          sharedStore("cells", above, u("count")),
          set("count", add(u("count"), u("here"))),
        ]),
        store("reach", u("q"), u("count")),
        sharedStore("totals", u("q"), u("count")),
      ], u32(lanes)),
      barrier(),
      eachChoice([
        var_("start", u32(0)),
        for_("q", u32(0), u("p"), [
          set("start", add(u("start"), shared("totals", u("q"), "u32"))),
        ]),
        if_(isFresh, [
          let_("next", shared("cells", cell, "u32")),
          sharedStore("cells", cell, add(u("next"), u32(1))),
          store("tokenRow", u("a"), add(u("start"), u("next"))),
        ], [store("tokenRow", u("a"), u32(DROPPED))]),
        // The last of the position so far is this token.
        store(
          "places",
          load("sendRow", u("a"), "u32"),
          sub(shared("cells", cell, "u32"), u32(1)),
        ),
      ], [store("tokenRow", u("a"), u32(DROPPED))]),
    ],
  });
}

/**
 * Where grouped rows find their tokens. Bindings: `counts` u32 [position, column] and `reach` u32 [position, position] of
 * the whole group, `position` u32 [1], `rowOf` u32 [row] and `rowCount` u32 [1] of a regroup, `places` u32 [row] as they
 * were received; written: `tokenOf` u32 [row]. Its grid is `elementwiseGrid(rows)`.
 */
export interface LocateOptions {
  readonly name: string;
  readonly splits: readonly number[];
}

/** tokenOf[g] = the tokens of earlier sources, then the place of its choice among those of its own. */
export function locate({ name, splits }: LocateOptions): Kernel {
  const positions = splits.length - 1;
  const columns = splits.at(-1)!;
  const count = load("counts", add(mul(u("s"), u32(columns)), u("c")), "u32");
  const tokens = load(
    "reach",
    add(mul(u("s"), u32(positions)), u("me")),
    "u32",
  );
  return elementwise({
    name,
    count: load("rowCount", u32(0), "u32"),
    bindings: [
      ...["counts", "reach", "position", "rowOf", "rowCount", "places"]
        .map((name) => reads(name, "u32")),
      writes("tokenOf", "u32"),
    ],
    body: (g) => [
      let_("me", load("position", u32(0), "u32")),
      let_("row", load("rowOf", g, "u32")),
      let_("my_first", pick(splits.slice(0, -1), u("me"))),
      let_("my_end", pick(splits.slice(1), u("me"))),
      // Rows and tokens of the sources before the one that the row is of.
      var_("rows", u32(0)),
      var_("before", u32(0)),
      var_("open", u32(1)),
      for_("s", u32(0), u32(positions), [
        var_("here", u32(0)),
        for_("c", u("my_first"), u("my_end"), [
          set("here", add(u("here"), count)),
        ]),
        set("rows", add(u("rows"), u("here"))),
        if_(lt(u("row"), u("rows")), [set("open", u32(0))]),
        if_(eq(u("open"), u32(1)), [
          set("before", add(u("before"), tokens)),
        ]),
      ]),
      store("tokenOf", g, add(u("before"), load("places", u("row"), "u32"))),
    ],
  });
}
