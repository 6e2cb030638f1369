/** Loads, products and limits of operands of matrices. */

import { range } from "../../spec/range.ts";
import type { Expr } from "../../spec/kernel/tree.ts";
import { MATRIX_SIZE } from "../../spec/kernel/matrices.ts";

/**
 * Passes that load a matrix of f16 from rows with a stride: 8 parts of rows of 16 bytes at once (`ldmatrix`, PTX ISA),
 * one after another if they are in the same banks.
 */
export function loadPasses(stride: number): number {
  const [each, atOnce] = [8, 8];
  const parts = MATRIX_SIZE ** 2 / each;
  const units = stride / each;
  const together = range(atOnce).filter((row) => row * units % atOnce === 0);
  return parts / atOnce * together.length;
}

/**
 * Instructions of a subgroup that multiply two matrices: `mma.sync` has 8 columns (PTX ISA), MFMA of 64 lanes has 16.
 */
export function instructionsOfProduct(lanes: number): number {
  return Math.max(1, 64 / lanes);
}

/** A value that is limited to `by` on both sides, as operands of matrices are. 0: it is not. */
export function limitsOf(
  e: Expr,
): { readonly limited: Expr; readonly by: number } {
  const isLimit = e.op === "binary" && e.fn === "max" &&
    e.a.op === "binary" && e.a.fn === "min" && e.a.b.op === "const";
  return isLimit
    ? { limited: e.a.a, by: Number(e.a.b.value) }
    : { limited: e, by: 0 };
}
