/**
 * Prints statements on matrices as subgroup matrices (WGSL's `chromium_experimental_subgroup_matrix`): each subgroup
 * computes a part of the tile in matrices of 16 x 16.
 */

import { add, if_, let_, local, lt, u32 } from "../build.ts";
import {
  MATRIX_SIZE,
  matrixStatements,
  type OnMatrices,
  operandArrays,
  operandStrides,
  tileOfStatement,
  tilesOfForm,
} from "../matrices.ts";
import { indicesBelow } from "../registers.ts";
import { GUARANTEED_LIMITS } from "../../limits.ts";
import { range } from "../../range.ts";
import { sum } from "../../sum.ts";
import type {
  Expr,
  Kernel,
  MatrixStoreStmt,
  MatrixTile,
  MultiplyStmt,
  ResultsStmt,
  ScaleRowsStmt,
  Stmt,
} from "../tree.ts";

/** Elements of a matrix. */
const ELEMENTS = MATRIX_SIZE ** 2;

/**
 * Lanes of a subgroup on GPUs with 64 KiB of workgroup memory per core. If half of the subgroups store results at once,
 * there is memory for three workgroups of most tiles instead of two.
 */
const LARGE_SUBGROUP = 64;

/** The array in which subgroups store results. */
const RESULTS = "subgroup_results";

/** The array of subgroups: 1 if one of their lanes has a factor other than 1. */
const SCALED = "subgroup_scaled";

/**
 * Directives before the declarations of a kernel with subgroup matrices. The rules of the tree determine uniformity.
 */
export const MATRIX_HEADER: readonly string[] = [
  "enable f16;",
  "enable subgroups;",
  "enable chromium_experimental_subgroup_matrix;",
  "diagnostic(off, chromium.subgroup_matrix_uniformity);",
  "diagnostic(off, subgroup_uniformity);",
  "",
];

/** Distribution of a tile over subgroups. */
export interface SubgroupTile extends Pick<MatrixTile, "names"> {
  /** Its number in the kernel. */
  readonly number: number;
  /** Columns of the tile. */
  readonly width: number;
  /** Subgroups with adjacent columns. */
  readonly across: number;
  /** Matrices of a subgroup along both dimensions. */
  readonly rows: number;
  readonly columns: number;
}

/** Distribution of the tiles of a kernel over subgroups. */
export interface SubgroupTiles {
  readonly tiles: readonly SubgroupTile[];
  /** Invocations of a subgroup, and subgroups of the workgroup. */
  readonly size: number;
  readonly subgroups: number;
  /** Parts of the subgroups that store their results one after another, in the same memory. */
  readonly turns: number;
  /** Workgroup memory, with that for results. */
  readonly bytes: number;
  /** Arrays with elements of f16. */
  readonly operands: ReadonlySet<string>;
  /** Whether subgroups scale rows. */
  readonly scales: boolean;
}

/**
 * The distribution of a kernel's tiles over subgroups of a size, with the fewest loads of operands. Undefined if the
 * kernel has no matrix form, or if subgroups cannot share it.
 */
export function subgroupTiles(
  { matrixForm, workgroupSize, shared }: Kernel,
  size: number,
): SubgroupTiles | undefined {
  const subgroups = workgroupSize / size;
  if (!matrixForm || !Number.isInteger(subgroups) || ELEMENTS % size !== 0) {
    return undefined;
  }
  const operands = operandArrays(matrixForm);
  const scales = matrixStatements(matrixForm)
    .some(({ op }) => op === "scaleRows");
  const turns = size === LARGE_SUBGROUP && subgroups % 2 === 0 ? 2 : 1;
  const bytes = subgroups / turns * ELEMENTS * 4 +
    (scales ? subgroups * 4 : 0) +
    sum(
      shared.map(({ name, length }) => length * (operands.has(name) ? 2 : 4)),
    );
  // Plans require the memory of expansions, whose operands are f32.
  const available = Math.max(
    GUARANTEED_LIMITS.maxComputeWorkgroupStorageSize,
    4 * sum(shared.map(({ length }) => length)),
  );
  if (bytes > available) return undefined;
  const forms = tilesOfForm(matrixForm);
  const tiles = forms.flatMap(({ names, rows, columns: width }, number) => {
    const parts = range(subgroups).map((i) => i + 1)
      .map((across): SubgroupTile => ({
        names,
        number,
        width,
        across,
        rows: rows / (subgroups / across) / MATRIX_SIZE,
        columns: width / across / MATRIX_SIZE,
      }))
      .filter(({ rows, columns }) =>
        Number.isInteger(rows) && Number.isInteger(columns)
      );
    const loads = ({ rows, columns }: SubgroupTile) =>
      rows + names.length * columns;
    return parts.sort((a, b) => loads(a) - loads(b)).slice(0, 1);
  });
  return tiles.length === forms.length
    ? {
      tiles,
      size,
      subgroups,
      turns,
      bytes,
      operands,
      scales,
    }
    : undefined;
}

/** Declares the workgroup memory in which subgroups store their results, and whether they scale rows. */
export function subgroupArrays(
  { subgroups, turns, scales }: SubgroupTiles,
): readonly string[] {
  return [
    `var<workgroup> ${RESULTS}: array<f32, ${subgroups / turns * ELEMENTS}>;`,
    ...scales ? [`var<workgroup> ${SCALED}: array<u32, ${subgroups}>;`] : [],
  ];
}

/** How the printer prints other statements, and names of arrays. */
interface Printer {
  block(statements: readonly Stmt[], indent: string): string[];
  array(name: string): string;
}

/** A variable of this printer; no name of a tree contains a space. */
function own(name: string): Expr {
  return local(`subgroup ${name}`, "u32");
}

/** Declares a variable of this printer. */
function letOwn(name: string, value: Expr): Stmt {
  return let_(`subgroup ${name}`, value);
}

/** Prints a statement on matrices. */
export function printMatrixStmt(
  s: OnMatrices,
  all: SubgroupTiles,
  { block, array }: Printer,
): string[] {
  const part = tileOfStatement(all.tiles, s)!;
  switch (s.op) {
    case "matrices":
      return s.names.flatMap((name) =>
        matricesOf(part).map(([r, c]) =>
          `var ${matrix(part, name, [r, c])}: ${typeOf("result")};`
        )
      );
    case "multiply":
      return multiplied(s, part, array);
    case "storeMatrix":
      return stored(s, part, array);
    case "scaleRows":
      return scaledRows(s, part, { all, array });
    case "results":
      return results(s, part, { all, block });
  }
}

/** The row and column of each matrix of a subgroup. */
export function matricesOf(
  { rows, columns }: SubgroupTile,
): readonly (readonly [row: number, column: number])[] {
  return indicesBelow(rows, columns) as readonly (readonly [number, number])[];
}

function matrix(
  { number, names }: SubgroupTile,
  name: string,
  [r, c]: readonly [row: number, column: number],
): string {
  return `subgroup_sum${number}_${names.indexOf(name)}_${r}_${c}`;
}

function typeOf(kind: "left" | "right" | "result"): string {
  const element = kind === "result" ? "f32" : "f16";
  return `subgroup_matrix_${kind}<${element}, ${MATRIX_SIZE}, ${MATRIX_SIZE}>`;
}

function multiplied(
  s: MultiplyStmt,
  part: SubgroupTile,
  array: Printer["array"],
): string[] {
  const { left, depth, products, transposed } = s;
  const { number, width } = part;
  const strides = operandStrides(s, width);
  const load = (
    kind: "left" | "right",
    { name, at, stride }: {
      readonly name: string;
      readonly at: string;
      readonly stride: number;
    },
  ) =>
    `subgroupMatrixLoad<${typeOf(kind)}, ${
      kind === "right" && transposed ? "col_major" : "row_major"
    }>(&${array(name)}, ${at}, ${stride}u)`;
  const rightAt = (from: number, d: number, c: number) =>
    transposed
      ? `(subgroup_column${number} + ${c}u) * ${strides.right}u + ${from + d}u`
      : `${d * strides.right + c}u + subgroup_column${number}`;
  return [
    "workgroupBarrier();",
    ...range(depth / MATRIX_SIZE).flatMap((d) => [
      "{",
      ...range(part.rows).map((r) =>
        `  let subgroup_left${r} = ${
          load("left", {
            name: left,
            at: `(subgroup_row${number} + ${
              r * MATRIX_SIZE
            }u) * ${strides.left}u + ${d * MATRIX_SIZE}u`,
            stride: strides.left,
          })
        };`
      ),
      ...products.flatMap(({ name, right, from = 0 }, i) => [
        ...range(part.columns).map((c) =>
          `  let subgroup_right${i}_${c} = ${
            load("right", {
              name: right,
              at: rightAt(from, d * MATRIX_SIZE, c * MATRIX_SIZE),
              stride: strides.right,
            })
          };`
        ),
        ...matricesOf(part).map(([r, c]) => {
          const to = matrix(part, name, [r, c]);
          return `  ${to} = subgroupMatrixMultiplyAccumulate(subgroup_left${r}, subgroup_right${i}_${c}, ${to});`;
        }),
      ]),
      "}",
    ]),
  ];
}

function stored(
  { name, array: to, stride }: MatrixStoreStmt,
  part: SubgroupTile,
  array: Printer["array"],
): string[] {
  const { number } = part;
  return matricesOf(part).map(([r, c]) =>
    `subgroupMatrixStore<row_major>(&${array(to)}, (subgroup_row${number} + ${
      r * MATRIX_SIZE
    }u) * ${stride}u + ${c * MATRIX_SIZE}u + subgroup_column${number}, ${
      matrix(part, name, [r, c])
    }, ${stride}u);`
  );
}

/** Stores each matrix, scales its elements, and loads it again, if a subgroup has a factor other than 1. */
function scaledRows(
  { names, factors }: ScaleRowsStmt,
  part: SubgroupTile,
  { all, array }: Pick<Printer, "array"> & { readonly all: SubgroupTiles },
): string[] {
  const { size, subgroups } = all;
  const { number } = part;
  const of = array(factors);
  const each = matricesOf(part).flatMap(([r, c]) =>
    names.flatMap((name) => {
      const to = matrix(part, name, [r, c]);
      const load = `subgroupMatrixLoad<${
        typeOf("result")
      }, row_major>(&${RESULTS}, ${firstResult(all)}, ${MATRIX_SIZE}u)`;
      const scaled = range(ELEMENTS / size).map((n) => {
        const down = Math.floor(n * size / MATRIX_SIZE);
        const row = `subgroup_row${number} + subgroup_lane_row + ${
          r * MATRIX_SIZE + down
        }u`;
        return `${resultAt(all, n)} *= ${of}[${row}];`;
      });
      return inTurns(all, [[storedResult(all, to)], scaled, [
        `${to} = ${load};`,
      ]]);
    })
  );
  const rows = part.rows * MATRIX_SIZE * subgroups / part.across;
  const lanes = size * subgroups;
  const isOther = range(Math.ceil(rows / lanes))
    .map((n) => n === 0 ? "lane" : `(lane + ${n * lanes}u)`)
    .map((row) => `${of}[${row} % ${rows}u] != 1.0f`)
    .join(" || ");
  const anyScales = range(subgroups).map((n) => `subgroup_all[${n}]`).join(
    " | ",
  );
  return [
    "{",
    "  workgroupBarrier();",
    `  let subgroup_scales = subgroupAny(${isOther});`,
    `  if (subgroup_lane == 0u) { ${SCALED}[subgroup_number] = u32(subgroup_scales); }`,
    `  let subgroup_all = workgroupUniformLoad(&${SCALED});`,
    `  if ((${anyScales}) != 0u) {`,
    ...each.map((line) => `    ${line}`),
    "  }",
    "}",
  ];
}

/** Matrices are opaque, so each is stored and its elements are distributed over the subgroup. */
function results(
  s: ResultsStmt,
  part: SubgroupTile,
  { all, block }: Pick<Printer, "block"> & { readonly all: SubgroupTiles },
): string[] {
  const { size } = all;
  const each = matricesOf(part).flatMap(([r, c]) => [
    "{",
    ...s.names.flatMap((name, i) =>
      valuesOfMatrix(all, {
        name: `subgroup_value${i}_`,
        of: matrix(part, name, [r, c]),
      })
    ),
    ...block(elementsOfMatrix(s, size, [r, c]), "  "),
    "}",
  ]);
  return [
    "{",
    ...block(firstElement(s, part), "  "),
    ...each.map((line) => `  ${line}`),
    "}",
  ];
}

/** Stores a matrix of each subgroup, and declares the values of a lane: `name` and their numbers. */
function valuesOfMatrix(
  all: SubgroupTiles,
  { name, of }: { readonly name: string; readonly of: string },
): string[] {
  const values = range(ELEMENTS / all.size);
  const declares = all.turns === 1;
  return [
    ...declares ? [] : values.map((n) => `  var ${name}${n} = 0.0f;`),
    ...inTurns(all, [
      [storedResult(all, of)],
      values.map((n) =>
        `${declares ? "let " : ""}${name}${n} = ${resultAt(all, n)};`
      ),
    ]).map((line) => `  ${line}`),
  ];
}

/** Statements of each turn of subgroups, after barriers. */
function inTurns(
  { subgroups, turns }: SubgroupTiles,
  statements: readonly (readonly string[])[],
): string[] {
  const together = subgroups / turns;
  return range(turns).flatMap((turn) =>
    statements.flatMap((some) => [
      "workgroupBarrier();",
      ...turns === 1 ? some : [
        `if (subgroup_number / ${together}u == ${turn}u) {`,
        ...some.map((line) => `  ${line}`),
        "}",
      ],
    ])
  );
}

/** The first element of a subgroup in the array of results. */
function firstResult({ subgroups, turns }: SubgroupTiles): string {
  const number = turns === 1
    ? "subgroup_number"
    : `(subgroup_number % ${subgroups / turns}u)`;
  return `${number} * ${ELEMENTS}u`;
}

/** Element `n` of a lane in the array of results. */
function resultAt(all: SubgroupTiles, n: number): string {
  return `${RESULTS}[${firstResult(all)} + ${n * all.size}u + subgroup_lane]`;
}

/** Stores a matrix in the array of results. */
function storedResult(all: SubgroupTiles, of: string): string {
  return `subgroupMatrixStore<row_major>(&${RESULTS}, ${
    firstResult(all)
  }, ${of}, ${MATRIX_SIZE}u);`;
}

/** Declares the first row and column of a lane's elements, once for all matrices of its subgroup. */
export function firstElement(
  { row, column }: ResultsStmt,
  { number }: Pick<SubgroupTile, "number">,
): readonly Stmt[] {
  const first = (name: "row" | "column", from: Expr) =>
    letOwn(
      `first ${name}`,
      add(from, own(`${name}${number}`), own(`lane ${name}`)),
    );
  return [first("row", row.from), first("column", column.from)];
}

/** The statements of a lane for its elements of matrix [r, c] of its subgroup, after `firstElement`. */
export function elementsOfMatrix(
  { row, column, values, body }: ResultsStmt,
  size: number,
  [r, c]: readonly [row: number, column: number],
): readonly Stmt[] {
  // A subgroup has a multiple of 16 lanes, or 16 is a multiple of them.
  const elements = range(ELEMENTS / size).map((n) => ({
    n,
    down: Math.floor(n * size / MATRIX_SIZE),
    right: n * size % MATRIX_SIZE,
  }));
  const at = (name: "row" | "column", offset: number) =>
    add(own(`first ${name}`), u32(offset));
  return [...new Set(elements.map(({ right }) => right))].flatMap((right) => {
    const ofColumn = own(`column of ${right}`);
    return [
      letOwn(`column of ${right}`, at("column", c * MATRIX_SIZE + right)),
      if_(lt(ofColumn, column.end), [
        let_(column.name, ofColumn),
        ...elements.filter((e) => e.right === right).flatMap(({ n, down }) => {
          const ofRow = own(`row of ${n}`);
          return [
            letOwn(`row of ${n}`, at("row", r * MATRIX_SIZE + down)),
            if_(lt(ofRow, row.end), [
              let_(row.name, ofRow),
              ...values.map((name, i) =>
                let_(name, local(`subgroup value${i} ${n}`, "f32"))
              ),
              ...body,
            ]),
          ];
        }),
      ]),
    ];
  });
}

/**
 * Declares the first element of a matrix that a lane stores, and that of its subgroup in each tile, before the body.
 */
export function subgroupElements(
  { tiles, size }: SubgroupTiles,
): readonly string[] {
  return [
    `let subgroup_lane_row = subgroup_lane / ${MATRIX_SIZE}u;`,
    `let subgroup_lane_column = subgroup_lane % ${MATRIX_SIZE}u;`,
    `let subgroup_number = lane / ${size}u;`,
    ...tiles.flatMap(({ number, across, rows, columns }) => [
      `let subgroup_row${number} = (subgroup_number / ${across}u) * ${
        rows * MATRIX_SIZE
      }u;`,
      `let subgroup_column${number} = (subgroup_number % ${across}u) * ${
        columns * MATRIX_SIZE
      }u;`,
    ]),
  ];
}
