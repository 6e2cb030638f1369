/** Register-tiled products of rows, summed per expert: the gradient of a grouped matmul's weights. */

import type {
  Binding,
  Expr,
  Grid,
  Kernel,
  KernelText,
  Statements,
  Stmt,
} from "../kernel.ts";
import {
  bindings,
  elementwise,
  foldGrid,
  GROUP_XZ,
  kernelOf,
  local,
  wgsl,
} from "../kernel.ts";
import type { MatmulTile } from "../../tuning/tile.ts";
import { blockedSum } from "../pieces/blocked_sum.ts";
import { range } from "../../../spec/range.ts";
import { registers } from "../../../spec/kernel/registers.ts";

/** A result [expert, row, column]: for each expert, the sum over its grouped rows of left[row] times right[column]. */
export interface ExpertOuterOptions {
  readonly name: string;
  /** Maximum number of experts on a rank, and the number on this one. */
  readonly experts: number;
  readonly localExperts: Expr;
  readonly rows: number;
  readonly columns: number;
  readonly tile: MatmulTile;
  readonly bindings: readonly Binding[];
  /** The first grouped row of an expert, and the end. */
  range(expert: Expr): readonly [from: Expr, to: Expr];
  /** The value of a grouped row for a row or column of the result. */
  left(row: Expr, grouped: Expr): Expr;
  right(column: Expr, grouped: Expr): Expr;
  /** Makes statements, and adds the statements that their expressions need before them. */
  block(make: () => readonly KernelText[]): Statements;
  epilogue(
    at: { readonly expert: Expr; readonly row: Expr; readonly column: Expr },
    sum: Expr,
  ): readonly Stmt[];
}

type Shape = Pick<ExpertOuterOptions, "experts" | "rows" | "columns" | "tile">;

function tilesDown({ rows, tile }: Shape): number {
  return Math.ceil(rows / tile.rows);
}

/** The grid: tiles of all experts, consecutively, in x and z; columns in y. */
export function expertOuterGrid(o: Shape): Grid {
  const { columns, lanes } = o.tile;
  const [x, z] = foldGrid(o.experts * tilesDown(o)) as [number, number];
  return [x, Math.ceil(o.columns / (columns * lanes)), z];
}

const [EXPERT, GROUPED] = [local("expert", "u32"), local("grouped", "u32")];

/** Each invocation computes a tile of the result. Sums are in grouped order, in the blocks of every sum. */
export function expertOuter(o: ExpertOuterOptions): Kernel {
  const [rows, columns] = [range(o.tile.rows), range(o.tile.columns)];
  const { lanes } = o.tile;
  const down = tilesDown(o);
  const [from, to] = o.range(EXPERT);
  const cells = wgsl`r < ${rows.length}, c < ${columns.length}`;
  const operands = o.block(() => [
    ...rows.map((r) =>
      wgsl`let a[${r}] = ${o.left(local(`left${r}`, "u32"), GROUPED)};`
    ),
    ...columns.map((c) =>
      wgsl`let b[${c}] = ${o.right(local(`right${c}`, "u32"), GROUPED)};`
    ),
  ]);
  const sums = blockedSum(
    registers("sum", rows.length, columns.length),
    { length: wgsl`length` },
    wgsl`
      let grouped = from + k;
      ${operands}
      @unroll (${cells}) { sum_block[r][c] = fma(a[r], b[c], sum_block[r][c]); }`,
  );
  const [row, column] = [local("row[r]", "u32"), local("column[c]", "u32")];
  const at = { expert: EXPERT, row, column };
  return kernelOf({
    name: o.name,
    workgroupSize: lanes,
    bindings: o.bindings,
    body: wgsl`
      let expert = (${GROUP_XZ}) / ${down};
      if (expert < ${o.localExperts}) {
        let first = (${GROUP_XZ}) % ${down} * ${rows.length};
        // After the last row, the last row is read again and not written; the same holds for columns.
        @unroll (r < ${rows.length}) {
          let row[r] = first + r;
          let left[r] = min(row[r], ${o.rows - 1});
        }
        // Adjacent lanes have adjacent columns, so that their loads are coalesced.
        let lane_column = group.y * ${columns.length * lanes} + lane;
        @unroll (c < ${columns.length}) {
          let column[c] = lane_column + c * ${lanes};
          let right[c] = min(column[c], ${o.columns - 1});
        }
        let from = ${from};
        let length = ${to} - from;
        ${sums}
        @unroll (${cells}) {
          if (row[r] < ${o.rows} && column[c] < ${o.columns}) { ${
      o.epilogue(at, local("sum[r][c]", "f32"))
    } }
        }
      }`,
  });
}

/**
 * The first grouped row of each local expert: the number of rows of earlier experts. Its grid is
 * `elementwiseGrid(experts + 1)`.
 */
export function rowStarts(name: string, experts: number): Kernel {
  return elementwise({
    name,
    count: experts + 1,
    bindings: bindings(
      { expertOf: "u32 [row]", rowCount: "u32 [1]" },
      { starts: "u32 [experts + 1]" },
    ),
    body: wgsl`
      var before = 0u;
      for (var g = 0u; g < rowCount[0]; g++) {
        let row_expert = expertOf[g];
        if (row_expert < i) { before++; }
      }
      starts[i] = before;`,
  });
}
