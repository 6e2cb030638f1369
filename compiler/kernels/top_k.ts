/** The largest of long rows, such as logits of a vocabulary: a workgroup for each row. Short ones: `topK` in router.ts. */

import {
  add,
  and,
  barrier,
  binary,
  convert,
  eq,
  f32,
  for_,
  gt,
  id,
  if_,
  let_,
  load,
  local,
  lt,
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
import { groupXY, kernelOf, reads, writes } from "./kernel.ts";
import type { TopKOptions } from "./router.ts";

const LANES = 64;

/** Rows of at least this length are worth a workgroup each. */
export const LONG_ROW = 256;

function u(name: string): Expr {
  return local(name, "u32");
}

function f(name: string): Expr {
  return local(name, "f32");
}

function or(a: Expr, b: Expr): Expr {
  return binary("lor", a, b);
}

/**
 * As `topK`, with the same bindings and results. Each lane knows the best of its own part of the row; the best of these is
 * taken, and only the lane that had it looks for its next. Its grid is `rowsGrid(rows)`.
 */
export function topKOfLong({ name, rows, count, k }: TopKOptions): Kernel {
  return kernelOf({
    name,
    workgroupSize: LANES,
    bindings: [reads("x"), writes("values"), writes("indices", "i32")],
    shared: [
      { name: "tops", type: "f32", length: LANES },
      { name: "places", type: "u32", length: LANES },
      { name: "taken", type: "u32", length: 1 },
    ],
    body: [
      let_("row", groupXY()),
      if_(lt(u("row"), rows), [
        let_("first", mul(u("row"), u32(count))),
        // `count` stands for nothing.
        var_("last", u32(count)),
        var_("last_value", f32(0)),
        var_("own", u32(count)),
        var_("own_value", f32(0)),
        var_("look", u32(1)),
        for_("j", u32(0), u32(k), [
          if_(eq(u("look"), u32(1)), lookForOwn(count)),
          sharedStore("tops", id("local"), f("own_value")),
          sharedStore("places", id("local"), u("own")),
          barrier(),
          if_(eq(id("local"), u32(0)), [
            ...bestOfLanes(count),
            sharedStore("taken", u32(0), u("best")),
            let_("at", add(mul(u("row"), u32(k)), u("j"))),
            store("values", u("at"), f("best_value")),
            // Only values that are not numbers leave nothing to choose; the index stays legal.
            store(
              "indices",
              u("at"),
              convert("i32", min(u("best"), u32(count - 1))),
            ),
          ]),
          barrier(),
          set("look", u32(0)),
          if_(eq(shared("taken", u32(0), "u32"), u("own")), [
            set("last", u("own")),
            set("last_value", f("own_value")),
            set("look", u32(1)),
          ]),
        ]),
      ]),
    ],
  });
}

/** The best of the lane's part that comes after the one it had last. */
function lookForOwn(count: number): Stmt[] {
  const value = f("candidate");
  const after = or(
    eq(u("last"), u32(count)),
    or(
      lt(value, f("last_value")),
      and(eq(value, f("last_value")), gt(u("e"), u("last"))),
    ),
  );
  const better = or(eq(u("own"), u32(count)), gt(value, f("own_value")));
  return [
    set("own", u32(count)),
    set("own_value", f32(0)),
    for_("e", id("local"), u32(count), [
      let_("candidate", load("x", add(u("first"), u("e")))),
      if_(and(after, better), [
        set("own", u("e")),
        set("own_value", value),
      ]),
    ], u32(LANES)),
  ];
}

/** `best` and `best_value`: the best that a lane has, the lowest index among equals. */
function bestOfLanes(count: number): Stmt[] {
  const [value, place] = [f("top"), u("place")];
  const better = or(
    eq(u("best"), u32(count)),
    or(
      gt(value, f("best_value")),
      and(eq(value, f("best_value")), lt(place, u("best"))),
    ),
  );
  return [
    var_("best", u32(count)),
    var_("best_value", f32(0)),
    for_("lane", u32(0), u32(LANES), [
      let_("top", shared("tops", u("lane"))),
      let_("place", shared("places", u("lane"), "u32")),
      if_(and(lt(place, u32(count)), better), [
        set("best", place),
        set("best_value", value),
      ]),
    ]),
  ];
}
