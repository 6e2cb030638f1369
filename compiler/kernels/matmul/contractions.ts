/**
 * Contractions of many rows with batch axes and 16-bit operands: a workgroup computes a tile of one batch. Operands are
 * any values, computed once per tile and panel (`spec/numerics.md`, 16-bit operands).
 */

import { invariant } from "../../../spec/errors.ts";
import { sharedStore } from "../../../spec/kernel/build.ts";
import { clamped } from "../../../spec/kernel/guards.ts";
import { operand16 } from "../../../spec/kernel/matrices.ts";
import { letRegister, register } from "../../../spec/kernel/registers.ts";
import { range } from "../../../spec/range.ts";
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

const BATCH = u("batch"), K_START = u("k_start");

/** Creates the kernel. */
export function contractMatrices(
  o: ContractMatricesOptions,
  shape: MatrixShape,
): Kernel {
  const { rows, columns, depth } = shape;
  invariant(o.k % depth === 0, "k consists of matrices");
  const across = Math.ceil(o.columns / columns);
  const left = loadsOf("left", { across: depth, count: rows * depth }, {
    prepare: ({ n, line }) => [
      letRegister(
        "left_row",
        [n],
        clamped(expr`${u("tile_first")} + ${line}`, u("end")),
      ),
    ],
    load: ({ n }, store) =>
      o.left({
        batch: BATCH,
        row: register("left_row", [n], "u32"),
        k: expr`${K_START} + ${u("left_inner")}`,
      }, store),
  });
  const column = clamped(
    expr`${u("first_column")} + ${u("right_inner")}`,
    expr`${o.columns}u`,
  );
  const right = loadsOf("right", { across: columns, count: depth * columns }, {
    prepare: ({ n }) => n === 0 ? [wgsl`let right_column = ${column};`] : [],
    load: ({ line }, store) =>
      o.right({
        batch: BATCH,
        k: expr`${K_START} + ${line}`,
        column: u("right_column"),
      }, store),
  });
  const tile = matrixTile(shape, {
    k: o.k,
    products: [{ name: "sum", right: "right_tile" }],
    prepare: wgsl`${left.prepare} ${right.prepare}`,
    load: wgsl`${left.load} ${right.load}`,
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

/** An element of a panel that a lane loads: its number in the lane, and its row or index of k in the panel. */
interface Loaded {
  readonly n: number;
  readonly line: Expr;
}

/** Loads of a panel of `count` elements, `across` of them in a line: adjacent lanes load adjacent elements. */
function loadsOf(
  side: "left" | "right",
  { across, count }: { readonly across: number; readonly count: number },
  { prepare, load }: {
    prepare(element: Loaded): readonly (Stmt | KernelText)[];
    load(element: Loaded, store: Store): readonly Stmt[];
  },
): { readonly prepare: KernelText; readonly load: readonly Stmt[] } {
  const lines = MATRIX_LANES / across;
  const stride = operandStride(across);
  const elements = range(count / MATRIX_LANES).map((n): Loaded => ({
    n,
    line: expr`${u(`${side}_line`)} + ${n * lines}`,
  }));
  return {
    prepare: wgsl`
      let ${side}_line = lane / ${across};
      let ${side}_inner = lane % ${across};
      let ${side}_to = ${side}_line * ${stride} + ${side}_inner;
      ${elements.flatMap(prepare)}`,
    load: elements.flatMap((element) =>
      load(element, (value) =>
        sharedStore(
          `${side}_tile`,
          expr`${u(`${side}_to`)} + ${element.n * lines * stride}`,
          operand16(value),
        ))
    ),
  };
}
