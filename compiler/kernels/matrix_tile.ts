/** A tile of results whose operands have 16 bits: sums of products of panels in workgroup memory. */

import { statement } from "../../spec/kernel/matrices.ts";
import { type MatrixShape, operandStride } from "../tuning/matrices.ts";
import type { Expr, KernelText, Stmt } from "./kernel.ts";
import { expr, wgsl } from "./kernel.ts";
import { u } from "./matmul/left.ts";

/** A tile from row `tile_first`, with rows before `end`. */
export interface MatrixTile {
  /** Products per sum, a multiple of the depth. */
  readonly k: number;
  /** The sums, each with the array of its right operand, f16 [k, column]. */
  readonly products: readonly {
    readonly name: string;
    readonly right: string;
  }[];
  /** Precedes the loop over k. */
  readonly prepare?: KernelText;
  /**
   * Loads the panels from `k_start` on: `left_tile` f16 [row, k], and those of right operands, with `operandStride`.
   */
  readonly load: KernelText;
  /** The columns of the tile. */
  readonly column: { readonly from: Expr; readonly end: number };
  /** Names of the results of one element. */
  readonly values: readonly string[];
  /** Consumes them, at `row` and `column`. */
  readonly body: readonly Stmt[];
}

/** Adds the products of panel after panel, and consumes the sums. */
export function matrixTile(
  { rows, columns, depth }: MatrixShape,
  { k, products, prepare, load, column, values, body }: MatrixTile,
): KernelText {
  const names = products.map(({ name }) => name);
  const [leftStride, rightStride] = [depth, columns].map(operandStride) as [
    number,
    number,
  ];
  return wgsl`
    var<workgroup> left_tile: array<f32, ${rows * leftStride}>;
    ${
    products.map(({ right }) =>
      wgsl`var<workgroup> ${right}: array<f32, ${depth * rightStride}>;`
    )
  }
    ${prepare}
    ${[statement({ op: "matrices", names, rows, columns })]}
    for (var k_start = 0u; k_start < ${k}; k_start += ${depth}) {
      workgroupBarrier();
      ${load}
      ${[
    statement({
      op: "multiply",
      left: "left_tile",
      depth,
      leftStride,
      rightStride,
      products,
    }),
  ]}
    }
    ${[
    statement({
      op: "results",
      names,
      row: { name: "row", from: u("tile_first"), end: u("end") },
      column: {
        name: "column",
        from: column.from,
        end: expr`${column.end}u`,
      },
      values,
      body,
    }),
  ]}`;
}

/**
 * The row of lanes that store `width` elements of each row at once: a permutation of 8 rows. Rows are 16 bytes apart,
 * so lanes that store 128 bytes of adjacent rows at once would use some banks twice.
 */
export function storedRow(index: Expr, width: number): Expr {
  const together = 64 / width;
  if (together <= 1) return index;
  const apart = 8 / together;
  return expr`${index} / 8 * 8 + ${index} % ${together} * ${apart} + ${index} / ${together} % ${apart}`;
}
