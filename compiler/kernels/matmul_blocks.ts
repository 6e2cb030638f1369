/** Few rows of a matrix multiplication: teams of lanes sum different blocks of k, and block sums are added in order. */

import {
  add,
  barrier,
  div,
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
import { type MatmulOptions, teamsOf, wholeBlocks } from "./matmul_tile.ts";
import { blockLoop, SUM_BLOCK, type SumStep } from "./sum.ts";

const SUMS = "block_sums";

/** What teams sum. */
export interface TeamSums {
  readonly rows: number;
  /** Blocks of each team in a round. */
  readonly blocks: number;
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
 * in the order of blocks. Results are dealt to the teams one by one.
 */
export function sumsOfTeams(
  o: MatmulOptions,
  { rows, blocks, left, step, finish }: TeamSums,
): { readonly body: readonly Stmt[]; readonly shared: readonly SharedArray[] } {
  const { columns } = o.tile;
  const { lanes, teams } = teamsOf(o);
  const cells = rows * columns;
  const each = o.weights.length * cells;
  const inRound = teams * blocks;
  const ofK = wholeBlocks(o.k);
  const length = u32(ofK * SUM_BLOCK);
  const single = ofK <= inRound;
  const start = single ? u32(0) : u("k_round");
  const place = (block: Expr, sum: Expr) =>
    add(mul(add(mul(block, u32(each)), sum), u32(lanes)), u("lane_column"));

  const names = range(each).map((i) => `block${i}`);
  const from = add(start, mul(u("block"), u32(SUM_BLOCK)));
  const end = add(u("block_start"), u32(SUM_BLOCK));
  const oneBlock = [
    ...names.map((name) => var_(name, f32(0))),
    ...blockLoop({ step }, u("block_start"), end, names),
    ...names.map((name, i) =>
      sharedStore(SUMS, place(u("block"), u32(i)), local(name, "f32"))
    ),
  ];
  const even = ofK % inRound === 0;

  const own = range(Math.ceil(cells / teams)).map((j) => ({
    cell: u(`cell${j}`),
    sums: o.weights.map((_, i) => `sum${i}_${j}`),
    // The last ones are not enough for all teams.
    guard: (body: readonly Stmt[]): readonly Stmt[] =>
      (j + 1) * teams <= cells
        ? body
        : [if_(lt(u(`cell${j}`), u32(cells)), body)],
  }));
  const count = single
    ? u32(ofK)
    : even
    ? u32(inRound)
    : min(u32(inRound), div(sub(length, start), u32(SUM_BLOCK)));
  const before = left.before(start);
  const round = [
    // Nobody may write sums of this round while others add those of the last one.
    ...before.length > 0 ? before : single ? [] : [barrier()],
    for_("turn", u32(0), u32(blocks), [
      let_("block", add(mul(u("turn"), u32(teams)), u("team"))),
      let_("block_start", from),
      ...even ? oneBlock : [if_(lt(u("block_start"), length), oneBlock)],
    ]),
    barrier(),
    ...own.flatMap(({ cell, sums, guard }) =>
      guard([
        for_("block", u32(0), count, [
          ...sums.map((sum, i) =>
            set(
              sum,
              add(
                local(sum, "f32"),
                shared(SUMS, place(u("block"), add(u32(i * cells), cell))),
              ),
            )
          ),
        ]),
      ])
    ),
  ];
  return {
    shared: [{ name: SUMS, type: "f32", length: inRound * each * lanes }],
    body: [
      let_("lane_column", rem(id("local"), u32(lanes))),
      ...own.flatMap(({ sums }, j) => [
        let_(`cell${j}`, add(u("team"), u32(j * teams))),
        ...sums.map((sum) => var_(sum, f32(0))),
      ]),
      ...single ? round : [
        for_(
          "k_round",
          u32(0),
          length,
          round,
          u32(inRound * SUM_BLOCK),
        ),
      ],
      ...own.flatMap(({ cell, sums, guard }, j) =>
        guard([
          let_(`column_of${j}`, rem(cell, u32(columns))),
          finish(
            {
              row: add(u("first"), div(cell, u32(columns))),
              column: columnAt(o, u(`column_of${j}`)),
            },
            sums.map((sum) => local(sum, "f32")),
          ),
        ])
      ),
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
