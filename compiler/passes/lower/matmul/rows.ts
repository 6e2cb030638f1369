/** The rows of each launch of a matmul: which kernel is fastest depends on their number. */

import type { Size } from "../../../../spec/size.ts";
import type { MatrixTiling } from "../../../tuning/matrices.ts";
import { forRows } from "./inline_norms.ts";

/** The form of a kernel whose operands have 16 bits if `by` exceeds `above`. */
export interface MatrixForm extends MatrixTiling {
  readonly by: Size;
}

/** A launch of a matmul. */
export interface LaunchRows {
  /** The maximum number of rows, as known to the host. */
  readonly all: Size;
  /** The form for many rows, in a launch of its own. Default: operands have 32 bits for any number of rows. */
  readonly matrices?: MatrixForm | undefined;
  /** The norm that the launch for one row computes. Default: none. */
  readonly norm?: { readonly rows: Size } | undefined;
  /**
   * The launch for one row, which computes the norm; for few rows; or for so many that operands have 16 bits. Default:
   * for the rest.
   */
  readonly only?: "one" | "few" | "many";
}

/** The rows of a launch. Undefined: it has none. `most`: the maximum of the launch for few rows; 0: there is none. */
export function rowsOfLaunch(
  { all, matrices, norm, only }: LaunchRows,
  most: number,
): Size | undefined {
  if (only === "one") return norm && forRows(all, { rows: norm.rows }).few;
  const by = matrices &&
    forRows(all, { rows: matrices.by, most: matrices.above });
  if (only === "many") return by?.more;
  const size = by?.few ?? all;
  const few = most > 0 ? { rows: all, most } : undefined;
  if (few && only === undefined) return forRows(size, few).more;
  const more = norm ? forRows(size, { rows: norm.rows }).more : size;
  if (only === undefined) return more;
  return few && forRows(more, few).few;
}
