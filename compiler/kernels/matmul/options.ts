/** Options of a matrix multiplication. */

import type { FileDType } from "../../../spec/dtype.ts";
import type { BytesArithmetic } from "../../tuning/table.ts";
import type { TiledMatmul } from "../../tuning/tile.ts";
import type { Binding, Expr, Stmt } from "../kernel.ts";
import type { LoadAdjacent } from "../pieces/adjacent.ts";

/** A right operand: [expert,] k, n, or [expert,] n, k. */
export interface MatmulWeight {
  readonly binding: string;
  /** If elements have scales, words are consecutive along k. */
  readonly stored: FileDType;
  /** The binding of scales, [expert,] scales along k, n. */
  readonly scales?: string;
  /** The binding of offsets, in the layout of scales; that of scales if these have zero points. */
  readonly offsets?: string;
  /** The binding of the factors of columns, f32 [expert,] n, if scales have them. */
  readonly factors?: string;
  /** The innermost axis. `k` only if `readsAlongK`. Default: n. */
  readonly inside?: "n" | "k";
  /** Stride in elements of the outer axis; even for 16-bit weights. */
  readonly rowStride: number;
}

/** The right operands of a matrix multiplication. */
export interface WeightsOptions extends TiledMatmul {
  /** All bindings, including weights (16-bit weights are u32 bindings); may contain unused ones. */
  readonly bindings: readonly Binding[];
  /** One weight, or several that share the left operand (gate and up of an expert). */
  readonly weights: readonly MatmulWeight[];
  /** Type to which operands are rounded: scales of weights may be limited to its range. Default: f32. */
  readonly operands?: "f32" | "f16";
  /** Of scales of blocks: drivers of `guarded` devices may treat subnormal f16 numbers as 0. Default: guarded. */
  readonly arithmetic?: BytesArithmetic | undefined;
}

/** A matrix multiplication, optionally over groups of rows with separate weights. */
export interface MatmulOptions extends WeightsOptions {
  readonly name: string;
  /** Dynamic number of rows, uniform; unused if grouped. */
  readonly rows: Expr;
  /** A u32 computed once per row, such as `rowOf[row] * k`. */
  leftRow(row: Expr): Expr;
  /** The left operand at k, f32. */
  left(base: Expr, k: Expr): Expr;
  /** Loads adjacent elements of the left operand, if segments of k begin at multiples of their number. */
  readonly leftAdjacent?: LoadAdjacent | undefined;
  /**
   * The left operand contains the variable `norm_scale`: the scale of the RMS norm of its row, which each workgroup
   * computes. The tile then has one row.
   */
  readonly norm?: {
    readonly length: number;
    readonly epsilon: number;
    /** Element i of the row before the norm. */
    load(base: Expr, i: Expr): Expr;
    /** Loads adjacent elements of the row before the norm. */
    readonly adjacent?: LoadAdjacent | undefined;
    /** Stores element i of the result, for other kernels. Default: it is not stored. */
    readonly store?: (base: Expr, i: Expr, value: Expr) => readonly Stmt[];
  };
  /**
   * Whether a result has the sums of two adjacent columns of the only weight, such as gate and up; its column is the
   * first of them. Only if teams sum blocks of k, and if lanes have adjacent columns. Default: false.
   */
  readonly adjacent?: boolean;
  /** Consumes one result: one sum per weight. */
  epilogue(
    at: { readonly row: Expr; readonly column: Expr; readonly expert: Expr },
    sums: readonly Expr[],
  ): readonly Stmt[];
}
