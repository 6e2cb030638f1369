/** Finds, from the counts, which received rows belong to which local expert. No data moves. */

import {
  add,
  and,
  binary,
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
  set,
  store,
  sub,
  u32,
  var_,
} from "../../spec/kernel/build.ts";
import { columnsOf } from "../../spec/bytes.ts";
import type { Expr, Kernel, Stmt } from "../../spec/kernel/tree.ts";
import type { Size } from "../../spec/size.ts";
import { pick } from "../../spec/kernel/pick.ts";
import {
  foldGrid,
  type Grid,
  groupXY,
  kernelOf,
  reads,
  writes,
} from "./kernel.ts";

const LANES = 64;

/**
 * A regroup. Bindings: `counts` u32 [position, column] of the whole group, `position` u32 [1] (absent with one position);
 * written: `tiles` u32 [1 + 3 * tile bound], `rowOf` u32 [row], `expertOf` u32 [row], `rowCount` u32 [1].
 * Its grid is `regroupGrid(rows)`.
 */
export interface RegroupOptions {
  readonly name: string;
  /** Columns splits[p] to splits[p + 1] belong to position p. */
  readonly splits: readonly number[];
  /** Only these columns of each position have arrived; default all. Rows are numbered within them, experts within the rank. */
  readonly columns?: readonly (readonly [first: number, end: number])[];
  /** Rows of a tile: `matmulShape(…).rows` of the matmuls that use the list. */
  readonly tileRows: number;
}

/** The grid of `regroup` when at most `rows` rows have arrived. There is always a workgroup, to write the tile count. */
export function regroupGrid(rows: Size): Grid {
  return [...foldGrid({ ceilDiv: [{ add: [rows, 1] }, LANES] }), 1];
}

/** How many tiles there can be: every expert may have one that is not full, and no tile is empty. */
export function tileBound(
  rows: Size,
  localExperts: number,
  tileRows: number,
): Size {
  return {
    min: [rows, { add: [{ ceilDiv: [rows, tileRows] }, localExperts] }],
  };
}

/**
 * tiles = [count, then (local expert, first grouped row, rows) of each tile]; rowOf[g] = the received row of grouped row
 * g, expertOf[g] = its local expert. Received rows are ordered by source, local expert, token; grouped ones by local
 * expert, source, token.
 */
export function regroup(o: RegroupOptions): Kernel {
  const u = (name: string) => local(name, "u32");
  const positions = o.splits.length - 1;
  const columns = o.splits.at(-1)!;
  const parts = columnsOf(o);
  const skipped = parts.map(([first], p) => first - o.splits[p]!);
  const skips = skipped.some((n) => n > 0);
  const expert = (e: Expr) => skips ? add(u("skipped"), e) : e;
  const count = (s: Expr, e: Expr) =>
    load("counts", add(mul(s, u32(columns)), u("first"), e), "u32");
  const eachSource = (body: readonly Stmt[]) =>
    for_("s", u32(0), u32(positions), body);
  const me = positions === 1 ? u32(0) : load("position", u32(0), "u32");

  /** Walk the grouped order until the block (expert, source) that holds row g. */
  const rows: Stmt[] = [
    var_("before", u32(0)),
    for_("e", u32(0), u("experts"), [
      eachSource([
        let_("here", count(u("s"), u("e"))),
        if_(
          and(
            binary("ge", u("g"), u("before")),
            lt(u("g"), add(u("before"), u("here"))),
          ),
          [
            var_("row", sub(u("g"), u("before"))),
            // In received order: all rows of earlier sources, then this source's rows for earlier experts.
            for_("s2", u32(0), u("s"), [
              for_("e2", u32(0), u("experts"), [
                set("row", add(u("row"), count(u("s2"), u("e2")))),
              ]),
            ]),
            for_("e2", u32(0), u("e"), [
              set("row", add(u("row"), count(u("s"), u("e2")))),
            ]),
            store("rowOf", u("g"), u("row")),
            store("expertOf", u("g"), expert(u("e"))),
          ],
        ),
        set("before", add(u("before"), u("here"))),
      ]),
    ]),
  ];

  /** One invocation for each expert lists its tiles after those of earlier experts. */
  const tileRows = u32(o.tileRows);
  const tilesOf = (n: Expr) => div(add(n, u32(o.tileRows - 1)), tileRows);
  const tiles: Stmt[] = [
    var_("tile", u32(0)),
    var_("first_row", u32(0)),
    for_("e", u32(0), u("experts"), [
      var_("of_expert", u32(0)),
      eachSource([
        set("of_expert", add(u("of_expert"), count(u("s"), u("e")))),
      ]),
      if_(eq(binary("rem", u("e"), u32(LANES)), id("local")), [
        for_("t", u32(0), tilesOf(u("of_expert")), [
          let_("word", add(mul(add(u("tile"), u("t")), u32(3)), u32(1))),
          let_("done", mul(u("t"), tileRows)),
          store("tiles", u("word"), expert(u("e"))),
          store(
            "tiles",
            add(u("word"), u32(1)),
            add(u("first_row"), u("done")),
          ),
          store(
            "tiles",
            add(u("word"), u32(2)),
            min(tileRows, sub(u("of_expert"), u("done"))),
          ),
        ]),
      ]),
      set("tile", add(u("tile"), tilesOf(u("of_expert")))),
      set("first_row", add(u("first_row"), u("of_expert"))),
    ]),
    if_(eq(id("local"), u32(0)), [store("tiles", u32(0), u("tile"))]),
  ];
  return kernelOf({
    name: o.name,
    workgroupSize: LANES,
    bindings: [
      reads("counts", "u32"),
      reads("position", "u32"),
      writes("tiles", "u32"),
      writes("rowOf", "u32"),
      writes("expertOf", "u32"),
      writes("rowCount", "u32"),
    ],
    body: [
      let_("group_number", groupXY()),
      let_("g", add(mul(u("group_number"), u32(LANES)), id("local"))),
      let_("me", me),
      let_("first", pick(parts.map(([first]) => first), u("me"))),
      let_(
        "experts",
        sub(pick(parts.map(([, end]) => end), u("me")), u("first")),
      ),
      ...skips ? [let_("skipped", pick(skipped, u("me")))] : [],
      ...rows,
      if_(eq(u("g"), u32(0)), [store("rowCount", u32(0), u("before"))]),
      if_(eq(u("group_number"), u32(0)), tiles),
    ],
  });
}
