/** Contractions with batch axes for tests of kernels. */

import { contractMatrices } from "../../compiler/kernels/matmul/contractions.ts";
import {
  bindings,
  type Expr,
  type Grid,
  type Kernel,
  lengthAt,
} from "../../compiler/kernels/kernel.ts";
import { matrixGrid } from "../../compiler/tuning/mod.ts";
import { add, load, mul, store, u32 } from "../../spec/kernel/build.ts";

/** Sizes of a contraction. */
export interface Contracted {
  readonly rows: number;
  readonly batches: number;
  readonly k: number;
  readonly columns: number;
}

const SHAPE = { rows: 64, columns: 64, depth: 16 };

/** The row-major index of an element. */
export function flat(
  axes: readonly (readonly [index: Expr, size: number])[],
): Expr {
  return axes.reduce<Expr>(
    (at, [index, size]) => add(mul(at, u32(size)), index),
    u32(0),
  );
}

/** A contraction of x [row, batch, k] and w [batch, k, column] to y [row, batch, column]. */
export function contracted(
  { rows, batches, k, columns }: Contracted,
): { readonly kernel: Kernel; readonly grid: Grid } {
  const kernel = contractMatrices({
    name: "contract",
    bindings: bindings({ x: "f32", w: "f32" }, { y: "f32" }),
    k,
    columns,
    rows: lengthAt(0),
    left: (at, put) => [
      put(load("x", flat([[at.row, rows], [at.batch, batches], [at.k, k]]))),
    ],
    right: (at, put) => [
      put(
        load("w", flat([[at.batch, batches], [at.k, k], [at.column, columns]])),
      ),
    ],
    epilogue: ({ row, batch, column }, sum) => [
      store("y", flat([[row, rows], [batch, batches], [column, columns]]), sum),
    ],
  }, SHAPE);
  const grid = matrixGrid(SHAPE, {
    grouped: false,
    width: columns,
    batches,
    size: rows,
  });
  return { kernel, grid };
}
