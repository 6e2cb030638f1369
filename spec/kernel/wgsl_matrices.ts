/**
 * Prints statements on matrices as subgroup matrices (WGSL's `chromium_experimental_subgroup_matrix`): each subgroup
 * computes a part of the tile in matrices of 16 x 16.
 */

import { add, local, u32 } from "./build.ts";
import {
  MATRIX_SIZE,
  ofElement,
  operandArrays,
  tileOfForm,
} from "./matrices.ts";
import { indicesBelow } from "./registers.ts";
import { GUARANTEED_LIMITS } from "../limits.ts";
import { range } from "../range.ts";
import { sum } from "../sum.ts";
import type {
  Expr,
  Kernel,
  MatrixTile,
  MultiplyStmt,
  ResultsStmt,
  Stmt,
} from "./tree.ts";

/** Elements of a matrix. */
const ELEMENTS = MATRIX_SIZE ** 2;

/** What precedes the declarations of a kernel with subgroup matrices. The rules of the tree determine uniformity. */
export const MATRIX_HEADER: readonly string[] = [
  "enable f16;",
  "enable subgroups;",
  "enable chromium_experimental_subgroup_matrix;",
  "diagnostic(off, chromium.subgroup_matrix_uniformity);",
  "diagnostic(off, subgroup_uniformity);",
  "",
];

/** Distribution of a tile over subgroups. */
export interface SubgroupTile {
  readonly tile: MatrixTile;
  /** Invocations of a subgroup, and subgroups of the workgroup. */
  readonly size: number;
  readonly subgroups: number;
  /** Subgroups with adjacent columns. */
  readonly across: number;
  /** Matrices of a subgroup along both dimensions. */
  readonly rows: number;
  readonly columns: number;
  /** Arrays with elements of f16. */
  readonly operands: ReadonlySet<string>;
}

/**
 * The distribution of a kernel's tile over subgroups of a size, with the fewest loads of operands. Undefined if the kernel
 * has no matrix form, or if subgroups cannot share it.
 */
export function subgroupTile(
  { matrixForm, workgroupSize, shared }: Kernel,
  size: number,
): SubgroupTile | undefined {
  const tile = matrixForm && tileOfForm(matrixForm);
  const subgroups = workgroupSize / size;
  if (!tile || !Number.isInteger(subgroups) || ELEMENTS % size !== 0) {
    return undefined;
  }
  const operands = operandArrays(matrixForm);
  const bytes = subgroups * ELEMENTS * 4 +
    sum(
      shared.map(({ name, length }) => length * (operands.has(name) ? 2 : 4)),
    );
  // Plans require the memory of expansions, whose operands are f32.
  const available = Math.max(
    GUARANTEED_LIMITS.maxComputeWorkgroupStorageSize,
    4 * sum(shared.map(({ length }) => length)),
  );
  if (bytes > available) return undefined;
  const parts = range(subgroups).map((i) => i + 1)
    .map((across): SubgroupTile => ({
      tile,
      size,
      subgroups,
      across,
      rows: tile.rows / (subgroups / across) / MATRIX_SIZE,
      columns: tile.columns / across / MATRIX_SIZE,
      operands,
    }))
    .filter(({ rows, columns }) =>
      Number.isInteger(rows) && Number.isInteger(columns)
    );
  const loads = ({ rows, columns }: SubgroupTile) =>
    rows + tile.names.length * columns;
  return parts.sort((a, b) => loads(a) - loads(b))[0];
}

/** Declares the workgroup memory in which subgroups store their results. */
export function resultsArray({ subgroups }: SubgroupTile): string {
  return `var<workgroup> subgroup_results: array<f32, ${
    subgroups * ELEMENTS
  }>;`;
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

/** Prints a statement on matrices. */
export function printMatrixStmt(
  s: MatrixTile | MultiplyStmt | ResultsStmt,
  part: SubgroupTile,
  { block, array }: Printer,
): string[] {
  switch (s.op) {
    case "matrices":
      return declared(s, part);
    case "multiply":
      return multiplied(s, part, array);
    case "results":
      return results(s, part, block);
  }
}

/** The row and column of each matrix of a subgroup. */
export function matricesOf(
  { rows, columns }: SubgroupTile,
): readonly (readonly [row: number, column: number])[] {
  return indicesBelow(rows, columns) as readonly (readonly [number, number])[];
}

function matrix(name: number, r: number, c: number): string {
  return `subgroup_sum${name}_${r}_${c}`;
}

function typeOf(kind: "left" | "right" | "result"): string {
  const element = kind === "result" ? "f32" : "f16";
  return `subgroup_matrix_${kind}<${element}, ${MATRIX_SIZE}, ${MATRIX_SIZE}>`;
}

function declared({ names }: MatrixTile, part: SubgroupTile): string[] {
  const { size, across, rows, columns } = part;
  return [
    `let subgroup_number = lane / ${size}u;`,
    `let subgroup_row = (subgroup_number / ${across}u) * ${
      rows * MATRIX_SIZE
    }u;`,
    `let subgroup_column = (subgroup_number % ${across}u) * ${
      columns * MATRIX_SIZE
    }u;`,
    ...names.flatMap((_, i) =>
      matricesOf(part).map(([r, c]) =>
        `var ${matrix(i, r, c)}: ${typeOf("result")};`
      )
    ),
  ];
}

function multiplied(
  { left, depth, products }: MultiplyStmt,
  part: SubgroupTile,
  array: (name: string) => string,
): string[] {
  const { names, columns } = part.tile;
  const load = (
    kind: "left" | "right",
    { name, at, stride }: {
      readonly name: string;
      readonly at: string;
      readonly stride: number;
    },
  ) =>
    `subgroupMatrixLoad<${typeOf(kind)}, row_major>(&${
      array(name)
    }, ${at}, ${stride}u)`;
  return [
    "workgroupBarrier();",
    ...range(depth / MATRIX_SIZE).flatMap((d) => [
      "{",
      ...range(part.rows).map((r) =>
        `  let subgroup_left${r} = ${
          load("left", {
            name: left,
            at: `(subgroup_row + ${r * MATRIX_SIZE}u) * ${depth}u + ${
              d * MATRIX_SIZE
            }u`,
            stride: depth,
          })
        };`
      ),
      ...products.flatMap(({ name, right }, i) => [
        ...range(part.columns).map((c) =>
          `  let subgroup_right${i}_${c} = ${
            load("right", {
              name: right,
              at: `${
                d * MATRIX_SIZE * columns + c * MATRIX_SIZE
              }u + subgroup_column`,
              stride: columns,
            })
          };`
        ),
        ...matricesOf(part).map(([r, c]) => {
          const to = matrix(names.indexOf(name), r, c);
          return `  ${to} = subgroupMatrixMultiplyAccumulate(subgroup_left${r}, subgroup_right${i}_${c}, ${to});`;
        }),
      ]),
      "}",
    ]),
  ];
}

/** Matrices are opaque, so each is stored and its elements are distributed over the subgroup. */
function results(
  s: ResultsStmt,
  part: SubgroupTile,
  block: Printer["block"],
): string[] {
  const { size, tile: { names } } = part;
  return matricesOf(part).flatMap(([r, c]) => [
    "{",
    ...names.flatMap((_, i) => [
      "  workgroupBarrier();",
      `  subgroupMatrixStore<row_major>(&subgroup_results, subgroup_number * ${ELEMENTS}u, ${
        matrix(i, r, c)
      }, ${MATRIX_SIZE}u);`,
      "  workgroupBarrier();",
      ...range(ELEMENTS / size).map((n) =>
        `  let subgroup_value${i}_${n} = subgroup_results[subgroup_number * ${ELEMENTS}u + ${
          n * size
        }u + subgroup_lane];`
      ),
    ]),
    ...block(elementsOfMatrix(s, part, [r, c]), "  "),
    "}",
  ]);
}

/** The statements of a lane for its elements of matrix [r, c] of its subgroup. */
export function elementsOfMatrix(
  s: ResultsStmt,
  { size, tile: { names } }: SubgroupTile,
  [r, c]: readonly [row: number, column: number],
): readonly Stmt[] {
  return range(ELEMENTS / size).map((n) => {
    // A subgroup has a multiple of 16 lanes, or 16 is a multiple of them.
    const down = Math.floor(n * size / MATRIX_SIZE);
    const right = n * size % MATRIX_SIZE;
    const at = (name: string, n: number) =>
      add(own(name), own(`lane ${name}`), u32(n));
    return ofElement(s, {
      row: at("row", r * MATRIX_SIZE + down),
      column: at("column", c * MATRIX_SIZE + right),
      values: names.map((_, i) => local(`subgroup value${i} ${n}`, "f32")),
    });
  });
}

/** Declares the first element of a matrix that a lane stores, before the body. */
export const LANE_ELEMENTS: readonly string[] = [
  `let subgroup_lane_row = subgroup_lane / ${MATRIX_SIZE}u;`,
  `let subgroup_lane_column = subgroup_lane % ${MATRIX_SIZE}u;`,
];
