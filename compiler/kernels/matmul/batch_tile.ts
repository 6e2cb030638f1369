/** Contractions with batch axes and a packed right operand: options, operands, and results of lanes. */

import { letRegister, register } from "../../../spec/kernel/registers.ts";
import { clamped, whereBelow } from "../../../spec/kernel/guards.ts";
import { range } from "../../../spec/range.ts";
import type { BytesArithmetic } from "../../tuning/table.ts";
import type { Binding, Expr, Stmt } from "../kernel.ts";
import { expr } from "../kernel.ts";
import type { DecodedMatmul, Parts } from "./decoder.ts";
import { u } from "./left.ts";
import type { MatmulWeight } from "./options.ts";
import { decoded } from "./weights.ts";

/** Most lanes of a workgroup: they have different columns of the same rows of one batch. */
const MAX_LANES = 64;

/** Fewest lanes that share the columns of a row. */
const FEW_LANES = 16;

/** Most columns of a lane that reads decoded elements: their block sums are in registers. */
const MAX_STAGED = 4;

/** Results of lanes and workgroups. */
export interface BatchesTile {
  /** Rows of a lane whose sums are in registers. */
  readonly rows: number;
  /** Most columns of a lane that computes one row, if words are along columns. They share a scale. */
  readonly columns: number;
  /** Most rows of a workgroup if words are along columns, a multiple of `rows`. */
  readonly most: number;
  /** Fewest rows that read decoded elements in workgroup memory. Fewer are computed one by one. */
  readonly fewest: number;
  /** Bytes of workgroup memory. All rows are computed one by one if it has no column for each lane. */
  readonly bytes: number;
}

/** A contraction. Its grid is `batchesGrid`. */
export interface BatchesOptions {
  readonly name: string;
  readonly bindings: readonly Binding[];
  /** Products per sum, and its segments. */
  readonly k: number;
  readonly segments: number;
  /** Results of a row and batch. */
  readonly columns: number;
  /** Dynamic number of rows, uniform. */
  readonly rows: Expr;
  /** The right operand, k innermost if words are along k. */
  readonly weight: Pick<
    MatmulWeight,
    "binding" | "stored" | "scales" | "offsets" | "factors"
  >;
  /** The axis of the words of the right operand. */
  readonly along: "k" | "columns";
  readonly tile: BatchesTile;
  readonly arithmetic?: BytesArithmetic | undefined;
  /** Statements that use an element of the left operand, f32. */
  left(
    at: { readonly batch: Expr; readonly row: Expr; readonly k: Expr },
    use: (value: Expr) => Stmt,
  ): readonly Stmt[];
  /**
   * Statements that use the number of a row of the right operand: that of a column if words are along k, or that of an
   * index k.
   */
  weightRow(
    at: { readonly batch: Expr; readonly outer: Expr },
    use: (row: Expr) => readonly Stmt[],
  ): readonly Stmt[];
  /** Consumes a result. */
  epilogue(
    at: { readonly batch: Expr; readonly row: Expr; readonly column: Expr },
    sum: Expr,
  ): readonly Stmt[];
}

/** A contraction with the decoder of its right operand. */
export interface Batches extends BatchesOptions {
  readonly right: DecodedMatmul;
  /** Columns of a lane, and lanes of a workgroup. */
  readonly each: number;
  readonly lanes: number;
  /** Columns that are decoded at once, for rows of a workgroup. 0: none. */
  readonly staged: number;
}

/** Variables of kernels: the batch of a workgroup, and an index along k. */
export const BATCH = u("batch"), AT_K = u("at_k");

/** Workgroups for the columns of a row. */
export function partsOf({ columns, each, lanes }: Batches): number {
  return Math.ceil(columns / (lanes * each));
}

/** The decoder of the right operand, and the columns of a lane. */
export function rightOf(
  { bindings, along, weight, k, segments, columns, tile, arithmetic }:
    BatchesOptions,
): Pick<Batches, "right" | "each" | "lanes" | "staged"> {
  const inRow = along === "k" ? k : columns;
  const right = decoded({
    bindings,
    arithmetic,
    k: inRow,
    segments: along === "k" ? segments : 1,
    columns: along === "k" ? columns : 1,
    tile: { rows: tile.rows, columns: 1, lanes: MAX_LANES },
    weights: [{ ...weight, inside: "k", rowStride: inRow }],
  });
  const { perWord, scales } = right.decoders[0]!;
  let shared = Math.min(tile.columns, scales!.elements);
  while (columns % shared > 0) shared /= 2;
  while (columns < shared * FEW_LANES) shared /= 2;
  const each = along === "k" ? 1 : Math.max(perWord, shared);
  let lanes = MAX_LANES;
  while (lanes / 2 * each >= columns) lanes /= 2;
  const staged = [MAX_STAGED, 2, 1].find((each) =>
    4 * k * each * lanes <= tile.bytes && each * lanes % perWord === 0
  );
  return { right, each, lanes, staged: (staged ?? 0) * lanes };
}

/** Declares row[r] of `rows` rows. */
export function rowsFrom(first: Expr, rows: number): readonly Stmt[] {
  return range(rows).map((r) =>
    letRegister("row", [r], clamped(expr`${first} + ${r}`, u("end")))
  );
}

/** The epilogue of the sum of row r in column c, if there are this row and column. */
export function ofResult(
  o: Batches,
  { first, r, c, column }: {
    readonly first: Expr;
    readonly r: number;
    readonly c: number;
    readonly column: Expr;
  },
): Stmt {
  const row = register("row", [r], "u32");
  return whereBelow(
    [[expr`${first} + ${r}`, u("end")], [column, expr`${o.columns}u`]],
    o.epilogue({ batch: BATCH, row, column }, register("sum0", [r, c])),
  );
}

/** Declares the starts of a row of the right operand: of its words, its scales, and its factor. */
export function startsOf({ right }: Batches, row: Expr): readonly Stmt[] {
  const { rowWords, rowScales } = right.decoders[0]!;
  const { factors } = right.weights[0]!;
  return [
    letRegister("at0", [0], expr`${row} * ${rowWords}`),
    ...rowScales === undefined
      ? []
      : [letRegister("scale0", [0], expr`${row} * ${rowScales}`)],
    ...factors === undefined
      ? []
      : [letRegister("row_factor0", [0], expr`${factors}[${row}]`)],
  ];
}

/** Declares <prefix>a[r]: the left operand of each row at index `k`. */
export function leftAt(
  o: Batches,
  { prefix, k, rows }: {
    readonly prefix: string;
    readonly k: Expr;
    readonly rows: readonly number[];
  },
): Parts {
  return rows.flatMap((r) =>
    o.left(
      { batch: BATCH, row: register("row", [r], "u32"), k },
      (value) => letRegister(`${prefix}a`, [r], value),
    )
  );
}
