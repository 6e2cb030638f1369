/** Gives every routed token its row in the send buffer, and counts the rows for each expert. */

import {
  add,
  barrier,
  binary,
  convert,
  div,
  for_,
  i32,
  id,
  if_,
  let_,
  load,
  local,
  min,
  mul,
  set,
  shared,
  sharedStore,
  store,
  u32,
  var_,
} from "../../spec/kernel/build.ts";
import type { Expr, Kernel, Stmt } from "../../spec/kernel/tree.ts";
import { kernelOf, reads, SHARED_WORDS, writes } from "./kernel.ts";

/** The send row of a choice that was dropped. */
export const DROPPED = 0xffffffff;

/**
 * An assignment. Bindings: `index` i32 [token, k]; `slot` i32 [token, k] if dropping (-1: dropped); `order` u32 [expert]
 * if `ordered`: the column of each expert in send order; written: `counts` u32 [column], `sendRow` u32 [token, k].
 * Its grid is one workgroup.
 */
export interface AssignOptions {
  readonly name: string;
  readonly experts: number;
  readonly k: number;
  readonly tokens: Expr;
  readonly dropping: boolean;
  /** Send order is not the order of expert numbers. */
  readonly ordered: boolean;
}

/** Rows by column, then token: a counting sort in which every lane takes consecutive choices. */
export function assign(o: AssignOptions): Kernel {
  const u = (name: string) => local(name, "u32");
  const { experts } = o;
  let lanes = 64;
  while (lanes > 1 && (lanes + 1) * experts > SHARED_WORDS) lanes /= 2;
  const lane = id("local");
  const mine = mul(lane, u32(experts));

  /** For each of this lane's choices that is not dropped: `column`, then `body`. */
  const eachChoice = (
    body: readonly Stmt[],
    dropped: readonly Stmt[],
  ): Stmt => {
    const expert = convert("u32", load("index", u("a"), "i32"));
    const kept: Stmt[] = [
      let_("column", o.ordered ? load("order", expert, "u32") : expert),
      ...body,
    ];
    const isKept = binary("ge", load("slot", u("a"), "i32"), i32(0));
    return for_(
      "a",
      u("from"),
      u("to"),
      o.dropping ? [if_(isKept, kept, dropped)] : kept,
    );
  };
  const cell = add(mine, u("column"));
  const above = add(mul(u("l"), u32(experts)), u("e"));
  return kernelOf({
    name: o.name,
    workgroupSize: lanes,
    bindings: [
      reads("index", "i32"),
      reads("slot", "i32"),
      reads("order", "u32"),
      writes("counts", "u32"),
      writes("sendRow", "u32"),
    ],
    shared: [
      { name: "cells", type: "u32", length: lanes * experts },
      { name: "columns", type: "u32", length: experts },
    ],
    body: [
      let_("choices", mul(o.tokens, u32(o.k))),
      let_("share", div(add(u("choices"), u32(lanes - 1)), u32(lanes))),
      let_("from", min(mul(lane, u("share")), u("choices"))),
      let_("to", min(add(u("from"), u("share")), u("choices"))),
      for_("e", u32(0), u32(experts), [
        sharedStore("cells", add(mine, u("e")), u32(0)),
      ]),
      eachChoice([
        sharedStore("cells", cell, add(shared("cells", cell, "u32"), u32(1))),
      ], []),
      barrier(),
      // Within a column: how many choices earlier lanes have.
      for_("e", lane, u32(experts), [
        var_("count", u32(0)),
        for_("l", u32(0), u32(lanes), [
          let_("here", shared("cells", above, "u32")),
          sharedStore("cells", above, u("count")),
          set("count", add(u("count"), u("here"))),
        ]),
        store("counts", u("e"), u("count")),
        sharedStore("columns", u("e"), u("count")),
      ], u32(lanes)),
      barrier(),
      // Across columns: each lane adds up to its own cells.
      var_("start", u32(0)),
      for_("e", u32(0), u32(experts), [
        let_("own", add(mine, u("e"))),
        sharedStore(
          "cells",
          u("own"),
          add(shared("cells", u("own"), "u32"), u("start")),
        ),
        set("start", add(u("start"), shared("columns", u("e"), "u32"))),
      ]),
      eachChoice([
        let_("next", shared("cells", cell, "u32")),
        store("sendRow", u("a"), u("next")),
        sharedStore("cells", cell, add(u("next"), u32(1))),
      ], [store("sendRow", u("a"), u32(DROPPED))]),
    ],
  });
}
