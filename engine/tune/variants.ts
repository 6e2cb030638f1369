/** Candidate variants of a matmul. */

import type { MatmulShape, MatmulTile } from "../../compiler/mod.ts";
import { GUARANTEED_LIMITS } from "../../spec/limits.ts";
import type { Computer } from "./tuning.ts";

/** Candidate numbers of rows per tile. */
export const ROWS = [2, 4, 8, 16];

/** Candidate numbers of columns, and lanes per team. */
const ACROSS = [[4, 8], [4, 16], [4, 32], [2, 32], [8, 8], [4, 64]] as const;

/** Candidate numbers of teams that split k for few rows, and sources of the left operand on GPUs. */
const SPLITS = [2, 4, 8];
const LEFTS = ["registers", "workgroup"] as const;

/** Candidate loads of the right operand. */
const RIGHTS = ["scalar", "vector"] as const;

/** Maximum lanes per workgroup guaranteed by every device. */
const MAX_LANES = GUARANTEED_LIMITS.maxComputeInvocationsPerWorkgroup;

/** Lists of candidate tiles, each derived from the best of the previous list. */
export function variantsOf(
  { grouped }: Pick<MatmulShape, "grouped">,
  computer: Computer,
): ((tile: MatmulTile) => MatmulTile[])[] {
  return [
    ...grouped ? [] : [
      (tile: MatmulTile) => ROWS.map((rows) => ({ ...tile, rows })),
    ],
    (tile) =>
      ACROSS.map(([columns, lanes]) => {
        return { ...tile, columns, lanes: lanes * (tile.split ?? 1) };
      }).filter(({ lanes }) => lanes <= MAX_LANES),
    // CPU devices keep their teams, which load weights once for all; sharing more costs time, because memory is
    // uniform.
    ...computer === "cpu" || computer === "native" ? [] : [
      (tile: MatmulTile) => RIGHTS.map((right) => ({ ...tile, right })),
      (tile: MatmulTile) => LEFTS.map((left) => ({ ...tile, left })),
      (tile: MatmulTile) =>
        SPLITS.map((split) => ({ ...tile, split, lanes: tile.lanes * split }))
          .filter(({ lanes }) => lanes <= MAX_LANES),
    ],
  ];
}
