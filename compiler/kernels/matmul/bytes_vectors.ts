/**
 * One row of a matrix multiplication of bytes, vector by vector: the lanes of a vector read weights as one stream and
 * store summands in workgroup memory, where each lane adds those of its column.
 */

import { Q8_BLOCK } from "../../../spec/weights/activations.ts";
import { add as plus } from "../../../spec/kernel/build.ts";
import { register } from "../../../spec/kernel/registers.ts";
import { teamsOf } from "../../tuning/lanes.ts";
import type { KernelText, Statements } from "../kernel.ts";
import { wgsl } from "../kernel.ts";
import type { BytesMatmul } from "./bytes_operands.ts";
import { finish, rowsFrom } from "./bytes_sums.ts";
import { u } from "./left.ts";

/** Words of a block of quantized activations. */
export const WORDS = Q8_BLOCK / 4;

/** The parts of such a multiplication. */
export interface VectorParts {
  /** Lanes of a vector. */
  readonly lanes: number;
  /** Number of blocks of the row in workgroup memory. */
  readonly stored: number;
  /** Declares the arrays of the weights. */
  readonly arrays: Statements;
  /** Stores the quantized row. */
  readonly storeRow: Statements;
  /** Stores the summands of `lanes` columns from `part_column` on. */
  readonly store: Statements;
  /** Adds those of a lane's column into sum<i>[0][0]. */
  readonly add: Statements;
}

/** The row `first`, by all columns of a workgroup. */
export function rowByVectors(
  o: BytesMatmul,
  { lanes, stored, arrays, storeRow, store, add }: VectorParts,
): KernelText {
  const vectors = o.tile.columns * teamsOf(o).lanes / lanes;
  return wgsl`
    var<workgroup> row_codes: array<u32, ${WORDS * stored}>;
    var<workgroup> row_scales: array<u32, ${stored}>;
    var<workgroup> row_sums: array<u32, ${stored}>;
    ${arrays}
    let team_first = first;
    ${rowsFrom(o, 1)}
    if (lane < ${lanes}) { ${storeRow} }
    for (var part = 0u; part < ${vectors}; part++) {
      let part_column = first_column + part * ${lanes};
      workgroupBarrier();
      if (lane < ${lanes}) {
        ${store}
      }
      workgroupBarrier();
      if (lane < ${lanes}) {
        ${add}
        ${[finish(o, {
    row: register("row", [0], "u32"),
    column: plus(u("part_column"), u("lane_column")),
    sum: (i) => register(`sum${i}`, [0, 0]),
  })]}
      }
    }`;
}
