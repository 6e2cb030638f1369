/** The left operand of a matrix multiplication: loaded by each lane, or once for all in workgroup memory. */

import { invariant } from "../../spec/errors.ts";
import {
  add,
  barrier,
  div,
  for_,
  id,
  if_,
  let_,
  local,
  lt,
  min,
  mul,
  rem,
  shared,
  sharedStore,
  sub,
  u32,
} from "../../spec/kernel/build.ts";
import type { Expr, SharedArray, Stmt } from "../../spec/kernel/tree.ts";
import { equalBlocks, isStaged, type MatmulOptions } from "./matmul_tile.ts";

/** Rows of the left operand that a part of a kernel takes. */
export interface LeftRows {
  /** Rows of one lane, which are its team's. */
  readonly rows: number;
  /** Rows of all teams together. */
  readonly ofGroup: number;
  /** The first row of the workgroup, and of this lane. */
  readonly first: Expr;
  readonly own: Expr;
  /** The first of a team's rows among the workgroup's. */
  readonly place: Expr;
  /** Indices along k that are there at a time, from a multiple of that on. */
  readonly stretch: number;
  /** Whether all lanes wait for each other after the products of a stretch, before the next is loaded. */
  readonly waits: boolean;
}

/** How products get the left operand. */
export interface Left {
  readonly shared: readonly SharedArray[];
  /** row<r>, and what is prepared for the rows. */
  readonly prepare: readonly Stmt[];
  /** What comes before the products of a stretch of k; ends in a barrier if there is anything. */
  before(start: Expr): readonly Stmt[];
  /** The value at k of one of the lane's rows. */
  at(r: number, k: Expr): Expr;
}

const LEFT = "left_tile", STARTS = "left_rows";

/** The left operand as the tile wants it. */
export function leftOf(o: MatmulOptions, rows: LeftRows): Left {
  return isStaged(o) ? staged(o, rows) : inRegisters(o, rows);
}

function u(name: string): Expr {
  return local(name, "u32");
}

/** Beyond the last row the last one is read, and nothing written. */
function lastAtMost(row: Expr): Expr {
  return min(row, sub(u("end"), u32(1)));
}

function rowNames(rows: number, own: Expr): Stmt[] {
  return Array.from(
    { length: rows },
    (_, r) => let_(`row${r}`, add(own, u32(r))),
  );
}

function inRegisters(o: MatmulOptions, { rows, own }: LeftRows): Left {
  return {
    shared: [],
    prepare: rowNames(rows, own).flatMap((row, r) => [
      row,
      let_(`left${r}`, o.leftRow(lastAtMost(u(`row${r}`)))),
    ]),
    before: () => [],
    at: (r, k) => o.left(u(`left${r}`), k),
  };
}

/**
 * Lanes load a stretch of all rows together and wait. Memory holds two stretches where nobody waits after the products:
 * whoever is ahead then writes where others no longer read.
 */
function staged(o: MatmulOptions, at: LeftRows): Left {
  const { rows, ofGroup, stretch } = at;
  const depth = at.waits ? stretch : 2 * stretch;
  const { lanes } = o.tile;
  const blocks = equalBlocks(o);
  invariant(blocks, "a staged left operand has equal blocks");
  const length = blocks.length * blocks.count;
  /** Each element once, by one lane. */
  const each = (count: number, body: (e: Expr) => readonly Stmt[]): Stmt =>
    for_("turn", u32(0), u32(Math.ceil(count / lanes)), [
      let_("element", add(mul(u("turn"), u32(lanes)), id("local"))),
      ...count % lanes === 0
        ? body(u("element"))
        : [if_(lt(u("element"), u32(count)), body(u("element")))],
    ]);
  const place = (row: Expr, k: Expr) =>
    add(mul(row, u32(depth)), rem(k, u32(depth)));
  return {
    shared: [
      { name: LEFT, type: "f32", length: ofGroup * depth },
      { name: STARTS, type: "u32", length: ofGroup },
    ],
    prepare: [
      ...rowNames(rows, at.own),
      each(ofGroup, (e) => [
        sharedStore(STARTS, e, o.leftRow(lastAtMost(add(at.first, e)))),
      ]),
      barrier(),
    ],
    before: (start) => [
      each(ofGroup * stretch, (e) => {
        const store = sharedStore(
          LEFT,
          place(u("of_row"), u("at_k")),
          o.left(shared(STARTS, u("of_row"), "u32"), u("at_k")),
        );
        return [
          let_("of_row", div(e, u32(stretch))),
          let_("at_k", add(start, rem(e, u32(stretch)))),
          length % stretch === 0
            ? store
            : if_(lt(u("at_k"), u32(length)), [store]),
        ];
      }),
      barrier(),
    ],
    at: (r, k) => shared(LEFT, place(add(at.place, u32(r)), k)),
  };
}

/** Of arrays that parts of a kernel use one after another, the longest of each name. */
export function longest(arrays: readonly SharedArray[]): SharedArray[] {
  const found = new Map<string, SharedArray>();
  for (const array of arrays) {
    const known = found.get(array.name);
    if (!known || known.length < array.length) found.set(array.name, array);
  }
  return [...found.values()];
}
