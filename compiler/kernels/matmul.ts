/**
 * Matrix multiplication from registers: each invocation holds a tile of rows x columns of the result. How a tile is shared
 * out, and where operands come from, differs by `MatmulTile`; the order of every sum is that of `sum.ts`.
 */

import { invariant } from "../../spec/errors.ts";
import {
  add,
  and,
  div,
  fma,
  id,
  if_,
  let_,
  load,
  local,
  lt,
  mul,
  sub,
  u32,
} from "../../spec/kernel/build.ts";
import type {
  Expr,
  Kernel,
  SharedArray,
  Stmt,
} from "../../spec/kernel/tree.ts";
import { groupXZ, kernelOf } from "./kernel.ts";
import { sumsOfTeams } from "./matmul_blocks.ts";
import { type Left, leftOf, longest } from "./matmul_left.ts";
import { columnsAndWeights, rightRow } from "./matmul_right.ts";
import {
  blocksInRound,
  equalBlocks,
  isStaged,
  type MatmulOptions,
  matmulShape,
  teamsOf,
  tileTaken,
} from "./matmul_tile.ts";
import { blockedSum, SUM_BLOCK, type SumStep } from "./sum.ts";

/** Statements, and the workgroup memory that they use. */
interface Part {
  readonly body: readonly Stmt[];
  readonly shared: readonly SharedArray[];
}

/** Describe a matrix multiplication. */
export function matmul(options: MatmulOptions): Kernel {
  const o = { ...options, tile: tileTaken(options) };
  const { lanes } = teamsOf(o);
  const { body, shared } = rowsOfTile(o);
  const inside = [...columnsAndWeights(o, lanes), ...body];
  return kernelOf({
    name: o.name,
    workgroupSize: o.tile.lanes,
    bindings: o.bindings,
    shared: longest(shared),
    body: o.grouped ? groupedTile(o.grouped.tiles, inside) : [
      let_("first", firstRow(o)),
      let_("end", o.rows),
      if_(lt(u("first"), u("end")), inside),
    ],
  });
}

/** Whether teams begin at one row, as where they wait for each other or share a tile of the list: also those without rows. */
function isJoint(o: MatmulOptions): boolean {
  return isStaged(o) || blocksInRound(o, 1) > 0 ||
    o.grouped !== undefined && teamsOf(o).teams > 1;
}

/** The first row of the workgroup, or at once of the lane's team where teams do not wait for each other. */
function firstRow(o: MatmulOptions): Expr {
  const first = mul(groupXZ(), u32(matmulShape(o).rows));
  return isJoint(o) ? first : add(first, placeOfTeam(o));
}

/** The first of a team's rows among the workgroup's. */
function placeOfTeam(o: MatmulOptions): Expr {
  return mul(teamOf(o), u32(o.tile.rows));
}

/** Which team a lane is of. */
function teamOf(o: MatmulOptions): Expr {
  const { lanes, teams } = teamsOf(o);
  return teams === 1 ? u32(0) : div(id("local"), u32(lanes));
}

/** Read the workgroup's tile from the list, if it has that many. */
function groupedTile(tiles: string, body: readonly Stmt[]): Stmt[] {
  const word = (at: Expr) => load(tiles, at, "u32");
  return [
    if_(lt(groupXZ(), word(u32(0))), [
      let_("tile", add(mul(groupXZ(), u32(3)), u32(1))),
      let_("expert", word(u("tile"))),
      let_("first", word(add(u("tile"), u32(1)))),
      let_("end", add(u("first"), word(add(u("tile"), u32(2))))),
      ...body,
    ]),
  ];
}

/**
 * Tiles are often not full, above all in decoding: one row, and a quarter of a tile, have loops of their own beside that
 * for a whole tile, with the same sums and less work. So has every number of rows for which teams share out k.
 */
function rowsOfTile(o: MatmulOptions): Part {
  const { rows } = o.tile;
  const whole = rowsTimesColumns(o, rows);
  const heights = [1, Math.floor(rows / 4)].filter((n, i) => i === 0 || n > 1);
  const few: [height: number, part: Part][] = teamsOf(o).teams === 1
    ? rows === 1 ? [] : heights.map((n) => [n, rowsTimesColumns(o, n)])
    // Without a barrier lanes of different rows may not be at one branch.
    : [...new Set([...heights, rows])].flatMap((n) =>
      blocksInRound(o, n) > 0 ? [[n, fewRows(o, n)]] : []
    );
  return {
    body: few.reduceRight<readonly Stmt[]>(
      (others, [height, { body }]) => [
        if_(lt(sub(u("end"), u("first")), u32(height + 1)), body, others),
      ],
      whole.body,
    ),
    shared: [whole, ...few.map(([, part]) => part)].flatMap((p) => p.shared),
  };
}

function range(n: number): number[] {
  return Array.from({ length: n }, (_, i) => i);
}

/** One product for each result: rows from the left, columns from the right, weight by weight. */
function products(
  o: MatmulOptions,
  { left, rows }: { readonly left: Left; readonly rows: number },
): (k: Expr, blocks: readonly Expr[]) => SumStep {
  const { columns } = o.tile;
  const cells = cellsOf(rows, columns);
  return (k, blocks) => ({
    lets: [
      ...range(rows).map((r) => let_(`a${r}`, left.at(r, k))),
      ...o.weights.flatMap((_, i) => rightRow(o, i, k)),
    ],
    values: o.weights.flatMap((_, i) =>
      cells.map(({ r, c }, cell) =>
        fma(f(`a${r}`), f(`b${i}_${c}`), blocks[i * cells.length + cell]!)
      )
    ),
  });
}

function cellsOf(rows: number, columns: number): { r: number; c: number }[] {
  return range(rows * columns).map((i) => ({
    r: Math.floor(i / columns),
    c: i % columns,
  }));
}

/** The results of one place that is in the matrix. */
function finish(
  o: MatmulOptions,
  { row, column }: { readonly row: Expr; readonly column: Expr },
  sums: readonly Expr[],
): Stmt {
  const expert = o.grouped ? u("expert") : u32(0);
  return if_(
    and(lt(row, u("end")), lt(column, u32(o.columns))),
    o.epilogue({ row, column, expert }, sums),
  );
}

/** `rows` rows by all columns of a lane: their sums, and what becomes of them. */
function rowsTimesColumns(o: MatmulOptions, rows: number): Part {
  const { columns } = o.tile;
  const { teams } = teamsOf(o);
  const apart = isJoint(o) && teams > 1;
  const cells = cellsOf(rows, columns);
  const blocks = equalBlocks(o);
  const left = leftOf(o, {
    rows,
    ofGroup: rows * teams,
    first: u("first"),
    own: u(apart ? "own" : "first"),
    place: apart ? sub(u("own"), u("first")) : u32(0),
    stretch: blocks?.length ?? SUM_BLOCK,
    waits: blocks?.count === 1,
  });
  const body = [
    ...left.prepare,
    ...blockedSum({
      length: o.k,
      ...o.segments === undefined ? {} : { segments: o.segments },
      totals: o.weights.flatMap((_, i) =>
        cells.map(({ r, c }) => `sum${i}_${r}_${c}`)
      ),
      before: (start) => left.before(start),
      step: products(o, { left, rows }),
    }),
    ...cells.map(({ r, c }) =>
      finish(
        o,
        { row: u(`row${r}`), column: u(`column${c}`) },
        o.weights.map((_, i) => f(`sum${i}_${r}_${c}`)),
      )
    ),
  ];
  const { shared } = left;
  if (!apart) return { body, shared };
  return {
    body: [
      let_("own", add(u("first"), placeOfTeam(o))),
      // Lanes without rows have only to be there where others wait for them.
      ...isStaged(o) ? body : [if_(lt(u("own"), u("end")), body)],
    ],
    shared,
  };
}

/** No more rows than one team holds: teams sum different blocks of k. */
function fewRows(o: MatmulOptions, rows: number): Part {
  const { teams } = teamsOf(o);
  const blocks = equalBlocks(o);
  invariant(blocks, "teams share out equal blocks");
  const each = blocksInRound(o, rows);
  const stretch = blocks.length * Math.min(teams * each, blocks.count);
  const left = leftOf(o, {
    rows,
    ofGroup: rows,
    first: u("first"),
    own: u("first"),
    place: u32(0),
    stretch,
    waits: true,
  });
  const sums = sumsOfTeams(o, {
    ...{ rows, blocks, each, left },
    step: products(o, { left, rows }),
    finish: (at, sums) => finish(o, at, sums),
  });
  return {
    body: [let_("team", teamOf(o)), ...left.prepare, ...sums.body],
    shared: [...left.shared, ...sums.shared],
  };
}

function u(name: string): Expr {
  return local(name, "u32");
}

function f(name: string): Expr {
  return local(name, "f32");
}
