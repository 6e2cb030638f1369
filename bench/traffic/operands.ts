/** Values, loads, products and limits of operands, and places of results. */

import { range } from "../../spec/range.ts";
import type { Expr } from "../../spec/kernel/tree.ts";
import { MATRIX_SIZE } from "../../spec/kernel/matrices.ts";
import type { SubgroupTiles } from "../../spec/kernel/wgsl/matrices.ts";

/** Banks of workgroup memory. */
export const BANKS = 32;

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

/** The variables of `subgroupElements`: a lane's place in a matrix, and that of its subgroup in each tile. */
export function firstElements(
  { tiles, size }: SubgroupTiles,
): readonly (readonly [name: string, of: (lane: number) => number])[] {
  return [
    ["subgroup lane row", (lane) => Math.floor(lane % size / MATRIX_SIZE)],
    ["subgroup lane column", (lane) => lane % size % MATRIX_SIZE],
    ...tiles.flatMap(({ number, across, rows, columns }) => {
      const subgroup = (lane: number) => Math.floor(lane / size);
      return [
        [
          `subgroup row${number}`,
          (lane: number) =>
            Math.floor(subgroup(lane) / across) * rows * MATRIX_SIZE,
        ],
        [
          `subgroup column${number}`,
          (lane: number) => subgroup(lane) % across * columns * MATRIX_SIZE,
        ],
      ] as const;
    }),
  ];
}

/** Float of a word, from -0.5 to 0.5. */
export function madeUp(word: number): number {
  return (Math.imul(word + 1, 0x9e3779b1) >>> 8) / 2 ** 24 - 0.5;
}
