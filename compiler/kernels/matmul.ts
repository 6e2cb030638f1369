/**
 * Matrix multiplication by register tiling (Volkov and Demmel, "Benchmarking GPUs to tune dense linear algebra", 2008): each
 * invocation holds a tile of rows x columns of the result, so that what it loads is used for a row or a column of it. How a
 * tile is shared out, and where operands come from, differs by `MatmulTile`; the order of every sum is the contract's.
 * `spec/kernels.md` explains it line by line.
 */

import { invariant } from "../../spec/errors.ts";
import { fma, u32 } from "../../spec/kernel/build.ts";
import { whereBelow } from "../../spec/kernel/guards.ts";
import type { Expr, Kernel, KernelText, SharedArray, Stmt } from "./kernel.ts";
import { expr, GROUP_XZ, local, madeOnce, makeKernel, wgsl } from "./kernel.ts";
import { type Place, sumsOfTeams } from "./matmul_blocks.ts";
import { declared, type Left, leftOf } from "./matmul_left.ts";
import {
  columnsAndWeights,
  rightPair,
  rightRow,
  takesPairs,
} from "./matmul_right.ts";
import { sumsByPanels } from "./matmul_panels.ts";
import type { MatmulOptions } from "./matmul_options.ts";
import {
  blocksInPanel,
  blocksInRound,
  isStaged,
  matmulShape,
  teamsOf,
} from "../tuning/lanes.ts";
import { equalBlocks, tileTaken } from "../tuning/tile.ts";
import { blockedSum, SUM_BLOCK } from "./pieces/blocked_sum.ts";
import { range } from "./pieces/numbers.ts";
import {
  indicesBelow,
  letRegister,
  type Register,
  register,
  setEach,
} from "../../spec/kernel/registers.ts";

/** Statements, and the workgroup memory that they use. */
interface Part {
  readonly body: KernelText;
  readonly shared: readonly SharedArray[];
}

/** A matrix multiplication with the tile that it takes, and what becomes of a result: `result<weight>` at `row`, `column`. */
interface Matmul extends MatmulOptions {
  readonly used: readonly Stmt[];
}

/** Describe a matrix multiplication. */
export function matmul(options: MatmulOptions): Kernel {
  const tile = tileTaken(options);
  const left = [options.leftRow(u("row")), options.left(u("base"), u("k"))];
  const used = options.epilogue(
    {
      ...{ row: u("row"), column: u("column") },
      expert: options.grouped ? u("expert") : u32(0),
    },
    options.weights.map((_, i) => local(`result${i}`, "f32")),
  );
  const o: Matmul = { ...options, tile, used };
  return madeOnce([o, left], () => {
    const { body, shared } = rowsOfTile(o);
    const inside = wgsl`
      ${columnsAndWeights(o, teamsOf(o).lanes)}
      ${body}`;
    return makeKernel({
      name: o.name,
      workgroupSize: tile.lanes,
      bindings: o.bindings,
      body: wgsl`
        ${declared(shared)}
        ${
        o.grouped ? groupedTile(o.grouped.tiles, inside) : plainTile(o, inside)
      }`,
    });
  });
}

/** The workgroup's tile from the list, if it has that many: u32 [tile, (expert, first row, rows)] behind their number. */
function groupedTile(tiles: string, body: KernelText): KernelText {
  return wgsl`
    if (${GROUP_XZ} < ${tiles}[0]) {
      let tile = ${GROUP_XZ} * 3 + 1;
      let expert = ${tiles}[tile];
      let first = ${tiles}[tile + 1];
      let end = first + ${tiles}[tile + 2];
      ${body}
    }`;
}

/** The workgroup's rows, or at once those of the lane's team where teams do not wait for each other. */
function plainTile(o: Matmul, body: KernelText): KernelText {
  const first = wgsl`${GROUP_XZ} * ${matmulShape(o).rows}`;
  return wgsl`
    let first = ${isJoint(o) ? first : wgsl`${first} + ${placeOfTeam(o)}`};
    let end = ${o.rows};
    if (first < end) {
      ${body}
    }`;
}

/** Whether teams begin at one row, as where they wait for each other or share a tile of the list: also those without rows. */
function isJoint(o: Matmul): boolean {
  return isStaged(o) || blocksInRound(o, 1) > 0 ||
    teamsOf(o).teams > 1 &&
      (o.grouped !== undefined || o.tile.right === "workgroup");
}

/** The first of a team's rows among the workgroup's. */
function placeOfTeam(o: Matmul): KernelText {
  return wgsl`${teamOf(o)} * ${o.tile.rows}`;
}

/** Which team a lane is of. */
function teamOf(o: Matmul): KernelText {
  const { lanes, teams } = teamsOf(o);
  return teams === 1 ? wgsl`0u` : wgsl`lane / ${lanes}`;
}

/**
 * Tiles are often not full, above all in decoding: one row, and a quarter of a tile, have loops of their own beside that
 * for a whole tile, with the same sums and less work. So has every number of rows for which teams share out k.
 */
function rowsOfTile(o: Matmul): Part {
  const { rows, right } = o.tile;
  const whole = blocksInPanel(o) > 0
    ? rowsByPanels(o)
    : rowsTimesColumns(o, rows, { joint: isJoint(o) });
  const heights = [1, Math.floor(rows / 4)].filter((n, i) => i === 0 || n > 1);
  const few: [height: number, part: Part][] = teamsOf(o).teams === 1
    ? rows === 1 ? [] : heights.map((n) => [n, rowsTimesColumns(o, n)])
    : right === "workgroup"
    ? [...new Set([...heights, ...inRows(o) ? [rows] : []])]
      .map((n) => [n, ofFirstTeam(o, n)])
    // Without a barrier lanes of different rows may not be at one branch.
    : [...new Set([...heights, rows])].flatMap((n) =>
      blocksInRound(o, n) > 0 ? [[n, fewRows(o, n)]] : []
    );
  return {
    body: few.reduceRight(
      (others, [height, { body }]) =>
        wgsl`
          if (end - first < ${height + 1}) {
            ${body}
          } else {
            ${others}
          }`,
      whole.body,
    ),
    shared: [whole, ...few.map(([, part]) => part)].flatMap((p) => p.shared),
  };
}

/** Whether weights have columns inside: a team of its own loads them as fast as all teams together. */
function inRows(o: Matmul): boolean {
  return o.weights.every(({ inside }) => inside !== "k");
}

/**
 * So few rows that the first team has them all. What lasts is to load weights: where these have k inside, a column's are read
 * to their end before the next one's, as they follow each other in memory.
 */
function ofFirstTeam(o: Matmul, rows: number): Part {
  const { count = 1 } = equalBlocks(o) ?? {};
  const apart = count > 1 && o.weights.every(({ inside }) => inside === "k");
  const { body, shared } = rowsTimesColumns(o, rows, {
    inOrder: apart ? allSums(o).flatMap(eachColumn) : undefined,
  });
  return { body: wgsl`if (lane < ${teamsOf(o).lanes}) { ${body} }`, shared };
}

/** Sums of a lane: those of a weight in some of the columns. */
interface SumsOfWeight {
  readonly weight: number;
  readonly columns: readonly number[];
}

function allSums({ weights, tile }: Matmul): SumsOfWeight[] {
  return weights.map((_, weight) => ({ weight, columns: range(tile.columns) }));
}

function eachColumn({ weight, columns }: SumsOfWeight): SumsOfWeight[] {
  return columns.map((column) => ({ weight, columns: [column] }));
}

/**
 * `rows` rows by all columns of a lane: their sums, and what becomes of them. `joint`: every team has so many. `inOrder`: which
 * are summed one after the other. Default: all are summed together.
 */
function rowsTimesColumns(
  o: Matmul,
  rows: number,
  { joint = false, inOrder }: {
    readonly joint?: boolean;
    readonly inOrder?: readonly SumsOfWeight[] | undefined;
  } = {},
): Part {
  const teams = joint ? teamsOf(o).teams : 1;
  const apart = teams > 1;
  const blocks = equalBlocks(o);
  const { shared, ...left } = leftOf(o, {
    rows,
    ofGroup: rows * teams,
    own: apart ? "own" : "first",
    place: apart ? expr`${u("own")} - ${u("first")}` : u32(0),
    stretch: blocks?.length ?? SUM_BLOCK,
    waits: blocks?.count === 1,
  });
  const summed = (sums: readonly SumsOfWeight[]) =>
    blockedSum(sums.flatMap((of) => registersOf(rows, of)), {
      ...{ length: o.k, segments: o.segments, pairs: takesPairs(o) },
      before: left.before,
    }, products(o, left, { rows, sums }));
  const body = wgsl`
    ${left.prepare}
    ${(inOrder?.map((one) => [one]) ?? [allSums(o)]).map(summed)}
    ${finishAll(o, rows)}`;
  if (!apart) return { body, shared };
  return {
    body: wgsl`
      let own = first + ${placeOfTeam(o)};
      ${
      // Lanes without rows have only to be there where others wait for them.
      isStaged(o) ? body : wgsl`if (own < end) { ${body} }`}`,
    shared,
  };
}

/** As many rows for every team, by all columns of a lane, where the right operand comes from workgroup memory. */
function rowsByPanels(o: Matmul): Part {
  const { rows } = o.tile;
  const { prepare, at } = leftOf(o, {
    ...{ rows, ofGroup: rows, own: "own", place: u32(0) },
    ...{ stretch: SUM_BLOCK, waits: false },
  });
  const sums = sumsByPanels(o, {
    team: teamOf(o),
    sums: allSums(o).flatMap((of) => registersOf(rows, of)),
    add: (right) =>
      wgsl`
        ${range(rows).map((r) => letRegister("a", [r], at(r, "at_k")))}
        ${right}
        ${addProducts(o, rows, { prefixes: [""] })}`,
    finish: finishAll(o, rows),
  });
  return {
    body: wgsl`
      let own = first + ${placeOfTeam(o)};
      ${prepare}
      ${sums.body}`,
    shared: sums.shared,
  };
}

/** No more rows than one team holds: teams sum different blocks of k. */
function fewRows(o: Matmul, rows: number): Part {
  const blocks = equalBlocks(o);
  invariant(blocks, "teams share out equal blocks");
  const each = blocksInRound(o, rows);
  const left = leftOf(o, {
    ...{ rows, ofGroup: rows, own: "first", place: u32(0) },
    stretch: blocks.length * Math.min(teamsOf(o).teams * each, blocks.count),
    waits: true,
  });
  const sums = sumsOfTeams(o, {
    ...{ rows, blocks, each, left, add: products(o, left, { rows }) },
    finish: (place) => finish(o, place),
  });
  return {
    body: wgsl`
      let team = ${teamOf(o)};
      ${left.prepare}
      ${sums.body}`,
    shared: [...left.shared, ...sums.shared],
  };
}

/** What iterations of a sum add, for one index k, or for two where words hold both. */
function products(
  o: Matmul,
  left: Pick<Left, "at">,
  { rows, sums = allSums(o) }: {
    readonly rows: number;
    readonly sums?: readonly SumsOfWeight[];
  },
): KernelText {
  if (!takesPairs(o)) {
    return wgsl`
      ${range(rows).map((r) => letRegister("a", [r], left.at(r)))}
      ${sums.flatMap(({ weight, columns }) => rightRow(o, weight, columns))}
      ${addProducts(o, rows, { prefixes: [""], sums })}`;
  }
  invariant(
    !isStaged(o) && blocksInRound(o, rows) === 0,
    "pairs are summed in a plain tile",
  );
  return wgsl`
    let k_even = k * 2;
    let k_odd = k * 2 + 1;
    ${
    range(rows).flatMap((r) => [
      letRegister("a", [r], left.at(r, "k_even")),
      letRegister("next_a", [r], left.at(r, "k_odd")),
    ])
  }
    ${sums.flatMap(({ weight, columns }) => rightPair(o, weight, columns))}
    ${addProducts(o, rows, { prefixes: ["", "next_"], sums })}`;
}

/** sum<i>_block[r][c] = fma(a[r], b<i>[c], sum<i>_block[r][c]), weight by weight, with each of the operands' prefixes. */
function addProducts(
  o: Matmul,
  rows: number,
  { prefixes, sums = allSums(o) }: {
    readonly prefixes: readonly string[];
    readonly sums?: readonly SumsOfWeight[];
  },
): readonly Stmt[] {
  return sums.flatMap(({ weight, columns }) =>
    registersOf(rows, { weight, columns }).flatMap((sum) =>
      prefixes.flatMap((prefix) =>
        setEach([sum], "_block", (of, { indices: [r, c] }) =>
          fma(
            register(`${prefix}a`, [r!]),
            register(`${prefix}b${weight}`, [c!]),
            of("_block"),
          ))
      )
    )
  );
}

/** The sums of a lane for so many rows, of a weight in some of the columns. */
function registersOf(
  rows: number,
  { weight, columns }: SumsOfWeight,
): readonly Register[] {
  return range(rows).flatMap((r) =>
    columns.map((c) => ({ base: `sum${weight}`, indices: [r, c] }))
  );
}

/** What becomes of the results of `rows` rows of a lane. */
function finishAll(o: Matmul, rows: number): readonly Stmt[] {
  return indicesBelow(rows, o.tile.columns).map(([r, c]) =>
    finish(o, {
      row: register("row", [r!], "u32"),
      column: register("column", [c!], "u32"),
      sums: o.weights.map((_, i) => register(`sum${i}`, [r!, c!])),
    })
  );
}

/** What becomes of the results of one place, if that is in the matrix. */
function finish(o: Matmul, { row, column, sums }: Place): Stmt {
  return whereBelow([[row, u("end")], [column, u32(o.columns)]], [
    letRegister("row", [], row),
    letRegister("column", [], column),
    ...sums.map((sum, i) => letRegister(`result${i}`, [], sum)),
    ...o.used,
  ]);
}

function u(name: string): Expr {
  return local(name, "u32");
}
