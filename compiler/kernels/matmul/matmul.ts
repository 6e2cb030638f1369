/**
 * Matrix multiplication by register tiling (Volkov and Demmel, "Benchmarking GPUs to tune dense linear algebra", 2008):
 * each invocation computes a tile of rows x columns of the result, so that each loaded value is used for a row or
 * column of it. `MatmulTile` determines how lanes share a tile and how operands are loaded; the order of every sum is
 * that of the contract. `spec/kernels.md` explains it line by line.
 */

import { invariant } from "../../../spec/errors.ts";
import { u32 } from "../../../spec/kernel/build.ts";
import { whereBelow } from "../../../spec/kernel/guards.ts";
import type { Kernel, KernelText, Stmt } from "../kernel.ts";
import {
  expr,
  GROUP_XZ,
  local,
  madeOnce,
  makeKernel,
  wgsl,
} from "../kernel.ts";
import { type MatmulResult, sumsOfTeams } from "./blocks.ts";
import { leftOf, u } from "./left.ts";
import { columnsAndWeights } from "./columns.ts";
import { type DecodedMatmul, RUN_TURN } from "./decoder.ts";
import {
  addProducts,
  allSums,
  beforeRun,
  products,
  productsOfTerms,
  registersOf,
  type SumsOfWeight,
} from "./products.ts";
import { termsOf } from "./right.ts";
import { scalesOfBlock } from "./scales.ts";
import { beginWords, termsAtOnce } from "./words.ts";
import { sumsByPanels } from "./panels.ts";
import { rowInLanes, sumsInLanes } from "./row.ts";
import type { MatmulOptions } from "./options.ts";
import { decoded } from "./weights.ts";
import { earlyWeights } from "./early_weights.ts";
import { normOfRow } from "./norm.ts";
import {
  blocksInPanel,
  blocksInRound,
  isStaged,
  matmulShape,
  teamsOf,
} from "../../tuning/lanes.ts";
import { equalBlocks, sumBlocks, tileTaken } from "../../tuning/tile.ts";
import { ADJACENT } from "../pieces/adjacent.ts";
import { blockedSum, SUM_BLOCK } from "../pieces/blocked_sum.ts";
import { range } from "../../../spec/range.ts";
import {
  indicesBelow,
  letRegister,
  register,
} from "../../../spec/kernel/registers.ts";

/** A matrix multiplication with its tile, and the epilogue: `result<weight>` at `row`, `column`. */
export interface Matmul extends MatmulOptions, DecodedMatmul {
  readonly used: readonly Stmt[];
}

/** Creates a matrix multiplication. */
export function matmul(options: MatmulOptions): Kernel {
  const tile = tileTaken(options);
  const { norm } = options;
  const adjacent = range(ADJACENT).map((n) => `a${n}`);
  const left = [
    options.leftRow(u("row")),
    options.left(u("base"), u("k")),
    options.leftAdjacent?.(u("base"), u("k"), adjacent),
    norm?.load(u("base"), u("k")),
    norm?.adjacent?.(u("base"), u("k"), adjacent),
    norm?.store?.(u("base"), u("k"), local("a", "f32")),
  ];
  const used = options.epilogue(
    {
      row: u("row"),
      column: u("column"),
      expert: options.grouped ? u("expert") : u32(0),
    },
    options.weights.map((_, i) => local(`result${i}`, "f32")),
  );
  const tiled = { ...options, tile };
  return madeOnce([tiled, used, left], () => {
    const o: Matmul = { ...decoded(tiled), used };
    const inside = norm ? normedRow(o, norm) : rowsOfTile(o);
    return makeKernel({
      name: o.name,
      workgroupSize: tile.lanes,
      bindings: o.bindings,
      body: o.grouped
        ? groupedTile(o.grouped.tiles, inside)
        : plainTile(o, inside),
    });
  });
}

/**
 * The workgroup's tile from the list, if it has that many: u32 [tile, (expert, first row, rows)] behind their number.
 */
export function groupedTile(tiles: string, body: KernelText): KernelText {
  return wgsl`
    if (${GROUP_XZ} < ${tiles}[0]) {
      let tile = ${GROUP_XZ} * 3 + 1;
      let expert = ${tiles}[tile];
      let first = ${tiles}[tile + 1];
      let end = first + ${tiles}[tile + 2];
      ${body}
    }`;
}

/** The workgroup's rows, or the rows of the lane's team if teams do not wait for each other. */
function plainTile(o: Matmul, body: KernelText): KernelText {
  const first = wgsl`${GROUP_XZ} * ${matmulShape(o).rows}`;
  return wgsl`
    let first = ${isJoint(o) ? first : wgsl`${first} + ${rowOfTeam(o)}`};
    let end = ${o.rows};
    if (first < end) {
      ${body}
    }`;
}

/**
 * Whether teams start at one row, because they wait for each other or share a tile of the list; includes teams without
 * rows.
 */
function isJoint(o: Matmul): boolean {
  return isStaged(o) || blocksInRound(o, 1) > 0 ||
    teamsOf(o).teams > 1 &&
      (o.grouped !== undefined || o.tile.right === "workgroup");
}

/** The first row of a team within the workgroup. */
function rowOfTeam(o: Matmul): KernelText {
  return wgsl`${teamOf(o)} * ${o.tile.rows}`;
}

/** The team of a lane. */
function teamOf(o: Matmul): KernelText {
  const { lanes, teams } = teamsOf(o);
  return teams === 1 ? wgsl`0u` : wgsl`lane / ${lanes}`;
}

/**
 * Tiles are often partly filled, above all in decode. One row and a quarter of a tile have separate loops, with the
 * same sums and less work; so do half and all rows of a team if its weights have k innermost, and every number of rows
 * for which teams split k.
 */
function rowsOfTile(o: Matmul): KernelText {
  const { rows } = o.tile;
  const columns = columnsAndWeights(o, { lanes: teamsOf(o).lanes });
  const full = o.inTeams
    ? fewRows(o, rows)
    : blocksInPanel(o) > 0
    ? rowsByPanels(o)
    : rowsTimesColumns(o, rows, { joint: isJoint(o) });
  const apart = isByColumn(o);
  return wgsl`
    ${!apart && columns}
    ${
    partsOfTile(o).reduceRight(
      (others, [height, body]) =>
        wgsl`
        if (end - first < ${height + 1}) {
          ${body}
        } else {
          ${others}
        }`,
      wgsl`${apart && columns} ${full}`,
    )
  }`;
}

/** One row, whose norm precedes its products. */
function normedRow(
  o: Matmul,
  norm: NonNullable<MatmulOptions["norm"]>,
): KernelText {
  const columns = columnsAndWeights(o, { lanes: teamsOf(o).lanes });
  const early = earlyWeights(o);
  return early
    ? wgsl`
    ${columns}
    ${normOfRow(o, norm, early.loaded)}
    ${fewRows(o, 1, { loaded: early.added })}`
    : wgsl`${normOfRow(o, norm)} ${columns} ${fewRows(o, 1)}`;
}

/**
 * Whether few rows are multiplied by one column of a lane after another: with k innermost, the weights of a column are
 * consecutive in memory.
 */
function isByColumn(o: Matmul): boolean {
  return o.tile.right === "workgroup" && teamsOf(o).teams > 1 &&
    Number(o.k) > SUM_BLOCK && o.weights.every(({ inside }) => inside === "k");
}

/** The loops for fewer rows than a tile, each with its number of rows. */
function partsOfTile(o: Matmul): (readonly [height: number, KernelText])[] {
  const { rows, right } = o.tile;
  const quarter = isSmall(o) ? 1 : Math.floor(rows / 4);
  const heights = quarter > 1 ? [1, quarter] : [1];
  if (teamsOf(o).teams === 1) {
    return rows === 1 ? [] : heights.map((n) => [n, rowsTimesColumns(o, n)]);
  }
  if (right === "workgroup") {
    const all = [...new Set([...heights, rows])];
    // For weights with columns innermost, one team loads as fast as all teams together.
    const inRows = o.weights.every(({ inside }) => inside !== "k");
    // More than half of the rows of a team would decode packed weights; with panels, all teams together decode them
    // once.
    const decodesOnce = blocksInPanel(o) > 0 &&
      o.decoders.some(({ scales }) => scales);
    const half = Math.ceil(rows / 2);
    const alongK = decodesOnce ? [half] : [half, rows];
    const parts = inRows
      ? all
      : [...heights, ...alongK.filter((n) => n > heights.at(-1)!)];
    return parts.map((n) => [n, ofFirstTeam(o, n)]);
  }
  // Without a barrier, lanes of different rows may be at different branches.
  const fits = [...new Set([...heights, Math.ceil(rows / 2), rows])]
    .filter((n) => blocksInRound(o, n) > 0);
  if (o.inTeams) {
    return fits.filter((n) => n < rows).map((n) => [n, fewRows(o, n)]);
  }
  const max = fits.at(-1) ?? 0;
  // No more passes than the workgroup has teams, whose rows it computes.
  const passes = Math.min(PASSES * max, teamsOf(o).teams * rows);
  return fits.map((n) =>
    n === max && n > 1 ? [passes, rowsInPasses(o, n)] : [n, fewRows(o, n)]
  );
}

/** Most passes over the weights of a tile with teams that sum different blocks of k. All but the first hit a cache. */
const PASSES = 4;

/**
 * A few times the rows of one team, as many at a time as it holds: rows shared out to teams would leave most of them
 * idle.
 */
function rowsInPasses(o: Matmul, rows: number): KernelText {
  return wgsl`
    for (var pass_first = first; pass_first < end; pass_first += ${rows}) {
      // Sums of the last pass have been added.
      workgroupBarrier();
      ${fewRows(o, rows, { first: "pass_first" })}
    }`;
}

/** So few rows that the first team processes all of them. Time is dominated by weight loads. */
function ofFirstTeam(o: Matmul, rows: number): KernelText {
  if (rows === 1 && isByColumn(o) && sumsInLanes(o)) return oneRow(o);
  const { lanes } = teamsOf(o);
  const body = isByColumn(o)
    ? columnByColumn(o, rows)
    : rowsTimesColumns(o, rows);
  return wgsl`if (lane < ${lanes}) { ${body} }`;
}

/** One row, by all teams. */
function oneRow(o: Matmul): KernelText {
  const prefixes = termsOf(o).map(({ prefix }) => prefix);
  return rowInLanes(o, {
    left: leftOf(o, { rows: 1, ofGroup: 1, stretch: SUM_BLOCK, waits: false }),
    add: (weight) =>
      addProducts(o, [0], { prefixes, sums: [{ weight, columns: [0] }] }),
    finish: (column) => [finish(o, {
      row: register("row", [0], "u32"),
      column,
      sums: o.weights.map((_, i) => register(`sum${i}`, [0, 0])),
    })],
  });
}

/** One column of a lane after another, and one weight after another. */
function columnByColumn(o: Matmul, rows: number): KernelText {
  const { columns } = o.tile;
  const { lanes } = teamsOf(o);
  const tile = { ...o.tile, columns: 1 };
  const one: Matmul = { ...decoded({ ...o, tile }), used: o.used };
  const part = columns > 1
    ? wgsl`(group.y * ${columns} + part)`
    : wgsl`group.y`;
  const body = wgsl`
    ${columnsAndWeights(one, { lanes, part })}
    ${
    rowsTimesColumns(one, rows, {
      inOrder: allSums(one).map((sum) => [sum]),
    })
  }`;
  return columns > 1
    ? wgsl`for (var part = 0u; part < ${columns}; part++) { ${body} }`
    : body;
}

/**
 * `rows` rows by all columns of a lane: their sums and epilogues. `joint`: every team has this many rows. `inOrder`:
 * sums computed together, one group after another.
 */
function rowsTimesColumns(
  o: Matmul,
  rows: number,
  { joint = false, inOrder = [allSums(o)] }: {
    readonly joint?: boolean;
    readonly inOrder?: readonly (readonly SumsOfWeight[])[];
  } = {},
): KernelText {
  const teams = joint ? teamsOf(o).teams : 1;
  const blocks = equalBlocks(o);
  const left = leftOf(o, {
    rows,
    ofGroup: rows * teams,
    stretch: blocks?.length ?? SUM_BLOCK,
    waits: blocks?.count === 1,
  });
  const body = wgsl`
    ${left.prepare}
    ${
    inOrder.map((sums) =>
      blockedSum(registersOf(range(rows), sums), {
        length: o.k,
        segments: o.segments,
        terms: termsOf(o).length,
        run: o.runLength === undefined
          ? undefined
          : { length: o.runLength, counter: RUN_TURN },
        before: (start, of) =>
          of === "run" ? beforeRun(o, start, sums) : wgsl`
          ${left.before?.(start)}
          ${
            sums.flatMap(({ weight, columns }) =>
              scalesOfBlock(o, weight, { columns, start })
            )
          }`,
      }, products(o, left, { rows, sums }))
    )
  }
    ${isSmall(o) && rows > 1 ? finishRows(o, rows) : finishAll(o, rows)}`;
  if (teams === 1) return body;
  return wgsl`
    let team_first = first + ${rowOfTeam(o)};
    ${
    // Lanes without rows only participate in barriers.
    isStaged(o) ? body : wgsl`if (team_first < end) { ${body} }`}`;
}

/** The same number of rows for every team, by all columns of a lane, with the right operand in workgroup memory. */
function rowsByPanels(o: Matmul): KernelText {
  const { rows } = o.tile;
  const { prepare, at } = leftOf(o, {
    rows,
    ofGroup: rows * teamsOf(o).teams,
    stretch: SUM_BLOCK,
    waits: false,
  });
  return wgsl`
    let team = ${teamOf(o)};
    let team_first = first + team * ${rows};
    ${prepare}
    ${
    sumsByPanels(o, {
      sums: registersOf(range(rows), allSums(o)),
      add: (right) =>
        wgsl`
          ${range(rows).map((r) => letRegister("a", [r], at(r, "at_k")))}
          ${right}
          ${addProducts(o, range(rows), { prefixes: [""] })}`,
      finish: finishAll(o, rows),
    })
  }`;
}

/**
 * At most the rows of one team, from `first`: teams sum different blocks of k. `loaded`: adds the products of the only
 * block of a team, whose weights are loaded.
 */
export function fewRows(
  o: Matmul,
  rows: number,
  { first = "first", loaded }: {
    readonly first?: string;
    readonly loaded?: KernelText;
  } = {},
): KernelText {
  const blocks = sumBlocks(o);
  invariant(blocks, "teams share out blocks of a known k");
  const each = blocksInRound(o, rows);
  const inRound = Math.min(teamsOf(o).teams * each, blocks.count);
  const left = leftOf(o, {
    rows,
    ofGroup: rows,
    from: first,
    stretch: blocks.length * inRound,
    waits: true,
  });
  return wgsl`
    let team = ${teamOf(o)};
    ${termsAtOnce(o) > 1 && beginWords(o)}
    ${left.prepare}
    ${
    sumsOfTeams(o, {
      rows,
      first,
      blocks,
      each,
      left,
      before: (start) =>
        o.weights.flatMap((_, i) => scalesOfBlock(o, i, { start })),
      terms: termsAtOnce(o),
      add: (count) => productsOfTerms(o, left, { rows, count }),
      loaded,
      finish: (result) => finish(o, result),
    })
  }`;
}

/** Epilogues of `rows` rows of a lane. */
function finishAll(o: Matmul, rows: number): readonly Stmt[] {
  return indicesBelow(rows, o.tile.columns).map(([r, c]) =>
    finish(o, {
      row: register("row", [r!], "u32"),
      column: register("column", [c!], "u32"),
      sums: o.weights.map((_, i) => register(`sum${i}`, [r!, c!])),
    })
  );
}

function isSmall({ tile }: Matmul): boolean {
  return tile.code === "small";
}

/** The same in a loop over existing rows. Drivers do not know their number and do not unroll it. */
function finishRows(o: Matmul, rows: number): KernelText {
  const result = u("result_index");
  const sumOf = (weight: number, c: number) =>
    range(rows).map((r) => register(`sum${weight}`, [r, c])).reduce(
      (sum, other, r) => expr`select(${sum}, ${other}, ${result} == ${r})`,
    );
  return wgsl`
    for (var result_row = row[0]; result_row < min(end, row[0] + ${rows}); result_row++) {
      let result_index = result_row - row[0];
      ${
    range(o.tile.columns).map((c) =>
      finish(o, {
        row: u("result_row"),
        column: register("column", [c], "u32"),
        sums: o.weights.map((_, weight) => sumOf(weight, c)),
      })
    )
  }
    }`;
}

/** Epilogue of one result, if it is in the matrix. */
function finish(o: Matmul, { row, column, sums }: MatmulResult): Stmt {
  return whereBelow([[row, u("end")], [column, u32(o.columns)]], [
    letRegister("row", [], row),
    letRegister("column", [], column),
    ...sums.map((sum, i) => letRegister(`result${i}`, [], sum)),
    ...o.used,
  ]);
}
