/** The variants of a matmul that are tried. */

import type { MatmulShape, MatmulTile } from "../../compiler/mod.ts";
import { GUARANTEED_LIMITS } from "../../spec/limits.ts";
import type { Computer } from "../tuning.ts";

/** Rows of tiles that are tried. */
export const ROWS = [2, 4, 8, 16];

/** Columns, and lanes of a team. */
const ACROSS = [[4, 8], [4, 16], [4, 32], [2, 32], [8, 8], [4, 64]] as const;

/** How many teams of lanes share k where rows are few, and where the left operand is, as tried on GPUs. */
const SPLITS = [2, 4, 8];
const LEFTS = ["registers", "workgroup"] as const;

/** How the right operand is loaded. */
const RIGHTS = ["scalar", "vector"] as const;

/** The most lanes of a workgroup that every device allows. */
const MOST_LANES = GUARANTEED_LIMITS.maxComputeInvocationsPerWorkgroup;

/** Tiles that are tried one list after another, each made of the best before. */
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
      }).filter(({ lanes }) => lanes <= MOST_LANES),
    // CPU devices keep their teams, which load weights once for all: to share the rest only costs, as all memory is one.
    ...computer === "cpu" || computer === "native" ? [] : [
      (tile: MatmulTile) => RIGHTS.map((right) => ({ ...tile, right })),
      (tile: MatmulTile) => LEFTS.map((left) => ({ ...tile, left })),
      (tile: MatmulTile) =>
        SPLITS.map((split) => ({ ...tile, split, lanes: tile.lanes * split }))
          .filter(({ lanes }) => lanes <= MOST_LANES),
    ],
  ];
}
