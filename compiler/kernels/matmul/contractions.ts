/**
 * Contractions of many rows with batch axes and 16-bit operands: a workgroup computes a tile of one batch. Operands are
 * any values, computed once per tile and panel (`spec/numerics.md`, 16-bit operands).
 */

import { invariant } from "../../../spec/errors.ts";
import { sharedStore } from "../../../spec/kernel/build.ts";
import { clamped } from "../../../spec/kernel/guards.ts";
import { operand16 } from "../../../spec/kernel/matrices.ts";
import {
  MATRIX_LANES,
  type MatrixShape,
  operandStride,
} from "../../tuning/matrices.ts";
import type { Binding, Expr, Kernel, KernelText, Stmt } from "../kernel.ts";
import { expr, GROUP_XZ, kernelOf, local, wgsl } from "../kernel.ts";
import { u } from "./left.ts";
import { matrixTile } from "../matrix_tile.ts";

/** Consumes the value of an operand. */
type Store = (value: Expr) => Stmt;

/** A contraction. Its grid is `matrixGrid`. */
export interface ContractMatricesOptions {
  readonly name: string;
  readonly bindings: readonly Binding[];
  /** Products per sum, a multiple of the depth of a tile. */
  readonly k: number;
  /** Results of a row and batch. */
  readonly columns: number;
  /** Dynamic number of rows, uniform. */
  readonly rows: Expr;
  /** Statements that store an element of an operand, f32. */
  left(
    at: { readonly batch: Expr; readonly row: Expr; readonly k: Expr },
    store: Store,
  ): readonly Stmt[];
  right(
    at: { readonly batch: Expr; readonly k: Expr; readonly column: Expr },
    store: Store,
  ): readonly Stmt[];
  /** Consumes a result. */
  epilogue(
    at: { readonly batch: Expr; readonly row: Expr; readonly column: Expr },
    sum: Expr,
  ): readonly Stmt[];
}

const BATCH = u("batch"), AT_K = u("at_k");

/** Creates the kernel. */
export function contractMatrices(
  o: ContractMatricesOptions,
  shape: MatrixShape,
): Kernel {
  const { rows, columns, depth } = shape;
  invariant(o.k % depth === 0, "k consists of matrices");
  const across = Math.ceil(o.columns / columns);
  const row = clamped(expr`${u("tile_first")} + ${u("at_row")}`, u("end"));
  const column = clamped(
    expr`${u("first_column")} + ${u("at_column")}`,
    expr`${o.columns}u`,
  );
  const storeIn = (array: string): Store => (value) =>
    sharedStore(array, u("to"), operand16(value));
  const left = eachElement(
    rows * depth,
    wgsl`
      let at_row = element / ${depth};
      let at_k = k_start + element % ${depth};
      let to = at_row * ${operandStride(depth)} + element % ${depth};
      ${o.left({ batch: BATCH, row, k: AT_K }, storeIn("left_tile"))}`,
  );
  const right = eachElement(
    depth * columns,
    wgsl`
      let at_k = k_start + element / ${columns};
      let at_column = element % ${columns};
      let to = element / ${columns} * ${operandStride(columns)} + at_column;
      ${o.right({ batch: BATCH, k: AT_K, column }, storeIn("right_tile"))}`,
  );
  const tile = matrixTile(shape, {
    k: o.k,
    products: [{ name: "sum", right: "right_tile" }],
    load: wgsl`${left} ${right}`,
    column: { from: u("first_column"), end: o.columns },
    values: ["result"],
    body: o.epilogue(
      { batch: BATCH, row: u("row"), column: u("column") },
      local("result", "f32"),
    ),
  });
  return kernelOf({
    name: `${o.name}_f16`,
    workgroupSize: MATRIX_LANES,
    bindings: o.bindings,
    body: wgsl`
      let tile_first = ${GROUP_XZ} * ${rows};
      let end = ${o.rows};
      let batch = group.y / ${across};
      let first_column = group.y % ${across} * ${columns};
      if (tile_first < end) { ${tile} }`,
  });
}

/** Executes `body` for each `element` of a panel, adjacent ones in adjacent lanes. */
function eachElement(count: number, body: KernelText): KernelText {
  return wgsl`
    for (var turn = 0u; turn < ${count / MATRIX_LANES}; turn++) {
      let element = turn * ${MATRIX_LANES} + lane;
      ${body}
    }`;
}
