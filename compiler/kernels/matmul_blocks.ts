/** Few rows of a matrix multiplication: teams of lanes sum different blocks of k, and block sums are added in the contract's order. */

import {
  add,
  barrier,
  div,
  eq,
  f32,
  for_,
  id,
  if_,
  let_,
  local,
  lt,
  min,
  mul,
  rem,
  set,
  shared,
  sharedStore,
  sub,
  u32,
  var_,
} from "../../spec/kernel/build.ts";
import type { Expr, SharedArray, Stmt } from "../../spec/kernel/tree.ts";
import type { Left } from "./matmul_left.ts";
import { unitOf } from "./matmul_right.ts";
import {
  type EqualBlocks,
  type MatmulOptions,
  teamsOf,
} from "./matmul_tile.ts";
import { blockLoop, type SumStep, sumTree } from "./sum.ts";

const SUMS = "block_sums";

/** What teams sum. */
export interface TeamSums {
  readonly rows: number;
  /** The blocks of k, and those of each team in a round. */
  readonly blocks: EqualBlocks;
  readonly each: number;
  readonly left: Left;
  step(k: Expr, blocks: readonly Expr[]): SumStep;
  /** Uses the results at a place. */
  finish(
    at: { readonly row: Expr; readonly column: Expr },
    sums: readonly Expr[],
  ): Stmt;
}

function range(n: number): number[] {
  return Array.from({ length: n }, (_, i) => i);
}

function u(name: string): Expr {
  return local(name, "u32");
}

/**
 * In a round every team sums its blocks and leaves the sums in workgroup memory; then each lane adds those of its results,
 * in the order of blocks, and the sums of segments as a tree. Results are dealt to the teams one by one.
 */
export function sumsOfTeams(
  o: MatmulOptions,
  { rows, blocks, each, left, step, finish }: TeamSums,
): { readonly body: readonly Stmt[]; readonly shared: readonly SharedArray[] } {
  const { columns } = o.tile;
  const { lanes, teams } = teamsOf(o);
  const cells = rows * columns;
  const results = o.weights.length * cells;
  const inRound = teams * each;
  const length = u32(blocks.count * blocks.length);
  const single = blocks.count <= inRound;
  const start = single ? u32(0) : u("k_round");
  const place = (block: Expr, sum: Expr) =>
    add(mul(add(mul(block, u32(results)), sum), u32(lanes)), u("lane_column"));

  const names = range(results).map((i) => `block${i}`);
  const from = add(start, mul(u("block"), u32(blocks.length)));
  const end = add(u("block_start"), u32(blocks.length));
  const oneBlock = [
    ...names.map((name) => var_(name, f32(0))),
    ...blockLoop({ step }, u("block_start"), end, names),
    ...names.map((name, i) =>
      sharedStore(SUMS, place(u("block"), u32(i)), local(name, "f32"))
    ),
  ];
  const even = blocks.count % inRound === 0;

  const own = range(Math.ceil(cells / teams)).map((j) => ({
    cell: u(`cell${j}`),
    totals: o.weights.map((_, i) => `sum${i}_${j}`),
    ...addedBlocks(o.weights.map((_, i) => `sum${i}_${j}`), blocks, {
      first: div(start, u32(blocks.length)),
      sums: (block) =>
        o.weights.map((_, i) =>
          shared(SUMS, place(block, add(u32(i * cells), u(`cell${j}`))))
        ),
    }),
    // The last ones are not enough for all teams.
    guard: (body: readonly Stmt[]): readonly Stmt[] =>
      (j + 1) * teams <= cells
        ? body
        : [if_(lt(u(`cell${j}`), u32(cells)), body)],
  }));
  const count = single
    ? u32(blocks.count)
    : even
    ? u32(inRound)
    : min(u32(inRound), div(sub(length, start), u32(blocks.length)));
  const before = left.before(start);
  const round = [
    // Nobody may write sums of this round while others add those of the last one.
    ...before.length > 0 ? before : single ? [] : [barrier()],
    for_("turn", u32(0), u32(each), [
      let_("block", add(mul(u("turn"), u32(teams)), u("team"))),
      let_("block_start", from),
      ...even ? oneBlock : [if_(lt(u("block_start"), length), oneBlock)],
    ]),
    barrier(),
    ...own.flatMap(({ addBlock, guard }) =>
      guard([for_("block", u32(0), count, addBlock(u("block")))])
    ),
  ];
  return {
    shared: [{ name: SUMS, type: "f32", length: inRound * results * lanes }],
    body: [
      let_("lane_column", rem(id("local"), u32(lanes))),
      ...own.flatMap(({ declare }, j) => [
        let_(`cell${j}`, add(u("team"), u32(j * teams))),
        ...declare,
      ]),
      ...single ? round : [
        for_(
          "k_round",
          u32(0),
          length,
          round,
          u32(inRound * blocks.length),
        ),
      ],
      ...own.flatMap(({ cell, totals, guard }, j) =>
        guard([
          let_(`column_of${j}`, rem(cell, u32(columns))),
          finish(
            {
              row: add(u("first"), div(cell, u32(columns))),
              column: columnAt(o, u(`column_of${j}`)),
            },
            totals.map((sum) => local(sum, "f32")),
          ),
        ])
      ),
    ],
  };
}

/** How one lane adds the blocks of a result: those of a segment in order, segments as a tree. */
function addedBlocks(
  totals: readonly string[],
  { count, ofSegment }: EqualBlocks,
  o: {
    /** The number of the round's first block. */
    readonly first: Expr;
    /** The sums of a block of the round, one for each total. */
    readonly sums: (block: Expr) => readonly Expr[];
  },
): {
  readonly declare: readonly Stmt[];
  readonly addBlock: (block: Expr) => readonly Stmt[];
} {
  const segments = count / ofSegment;
  const zero = totals.map((name) => var_(name, f32(0)));
  const addTo = (block: Expr) =>
    o.sums(block).map((sum, i) =>
      set(totals[i]!, add(local(totals[i]!, "f32"), sum))
    );
  if (segments === 1) return { declare: zero, addBlock: addTo };
  const tree = sumTree({ count: segments, totals });
  const number = u("block_number");
  const at = (place: Expr, then: readonly Stmt[]): readonly Stmt[] =>
    ofSegment === 1
      ? then
      : [if_(eq(rem(place, u32(ofSegment)), u32(0)), then)];
  return {
    declare: [...zero, ...tree.declare],
    addBlock: (block) => [
      let_("block_number", add(o.first, block)),
      ...at(number, totals.map((name) => set(name, f32(0)))),
      ...addTo(block),
      ...at(add(number, u32(1)), tree.add(div(number, u32(ofSegment)))),
    ],
  };
}

/** The result's column for a column of a lane, whose number is known at run time. */
function columnAt(o: MatmulOptions, c: Expr): Expr {
  const unit = u32(unitOf(o));
  const { lanes } = teamsOf(o);
  const nth = add(u("lane_unit"), mul(div(c, unit), u32(lanes)));
  return add(mul(nth, unit), rem(c, unit));
}
