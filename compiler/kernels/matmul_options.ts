/** What a matrix multiplication is made of. */

import type { FileDType } from "../../spec/dtype.ts";
import type { TiledMatmul } from "../tuning/tile.ts";
import type { Binding, Expr, Stmt } from "./kernel.ts";

/** A right operand: [expert,] k, n, or [expert,] n, k. */
export interface MatmulWeight {
  readonly binding: string;
  /** Where elements have scales, words follow each other along k. */
  readonly stored: FileDType;
  /** The binding of scales, [expert,] those of k, n. */
  readonly scales?: string;
  /** The binding of offsets, which are stored as scales are. */
  readonly offsets?: string;
  /** The innermost axis, `k` only where `readsAlongK`. Default: n. */
  readonly inside?: "n" | "k";
  /** Elements between rows, which are those of the axis outside; even for 16-bit weights. */
  readonly rowStride: number;
}

/** A matrix multiplication, perhaps over groups of rows that each have their own weights. */
export interface MatmulOptions extends TiledMatmul {
  readonly name: string;
  /** Superset of what is used, weights included (16-bit weights are u32 bindings). */
  readonly bindings: readonly Binding[];
  /** One, or several that share the left operand (gate and up of an expert). */
  readonly weights: readonly MatmulWeight[];
  /** Run-time row count, uniform; not used when grouped. */
  readonly rows: Expr;
  /** A u32 prepared once for each row, such as `rowOf[row] * k`. */
  leftRow(row: Expr): Expr;
  /** The left operand at k, f32. */
  left(base: Expr, k: Expr): Expr;
  /** Uses one result: one sum for each weight. */
  epilogue(
    at: { readonly row: Expr; readonly column: Expr; readonly expert: Expr },
    sums: readonly Expr[],
  ): readonly Stmt[];
}
