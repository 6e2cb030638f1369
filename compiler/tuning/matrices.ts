/** Tiles of matmuls with 16-bit operands. */

import { foldGrid, type Grid } from "../../spec/kernel/make.ts";
import { MATRIX_SIZE } from "../../spec/kernel/matrices.ts";
import type { Size } from "../../spec/size.ts";

/** Lanes of a workgroup. */
export const MATRIX_LANES = 256;

/** Rows of a tile of results, its columns of each weight, and the indices of k in memory at a time. */
export interface MatrixShape {
  readonly rows: number;
  readonly columns: number;
  readonly depth: number;
}

/**
 * Elements from row to row of an operand in workgroup memory. Subgroups load 8 parts of rows of 16 bytes at once; with
 * 16 bytes between rows, these parts are in different banks.
 */
export function operandStride(width: number): number {
  return width + 8;
}

/** Words of workgroup memory for the panels of a tile of several weights. */
function panelWords(
  { rows, columns, depth }: MatrixShape,
  weights: number,
): number {
  return rows * operandStride(depth) +
    weights * depth * operandStride(columns);
}

/** Most rows of a tile, columns of all its weights, and depth. Panels of both operands have 37 KiB as f32. */
const MAX_ROWS = 128, MAX_COLUMNS = 128, MAX_DEPTH = 2 * MATRIX_SIZE;

/**
 * The tile of few columns: more workgroups, which wait for memory half as often. Both panels have 36 KiB. More than
 * 4,096 rows would be faster with larger tiles.
 */
const NARROW: MatrixShape = { rows: 64, columns: 64, depth: 4 * MATRIX_SIZE };
const MAX_NARROW_COLUMNS = 1024;

/**
 * Columns of all weights of a tile of experts, if a rank's experts have so many columns that tiles of them are several
 * workgroups per core. Panels of both operands have 54 KiB as f32.
 */
const WIDE_COLUMNS = 2 * MAX_COLUMNS, MIN_WIDE = 2 ** 17;

/**
 * Maximum rows of a launch with 32-bit operands, because memory limits so few rows: tokens, or mean rows of an expert.
 */
export const FEW_ROWS = 64, FEW_EXPERT_ROWS = 16;

/** A tile, and the number of tokens above which it is used. */
export interface MatrixTiling {
  readonly shape: MatrixShape;
  readonly above: number;
}

/** Minimum columns of a matmul with 16-bit operands. */
const MIN_COLUMNS = 32;

/**
 * The tile of a matmul of one or two weights with 16-bit operands. Undefined if it has 32-bit operands for any number
 * of rows: k is not a multiple of 16, there are few columns, or no tile fits into memory.
 */
export function matrixTiling(
  { weights, k, columns }: {
    readonly weights: number;
    readonly k: number;
    readonly columns: number;
  },
  { height = MAX_ROWS, memory, experts, held = 0, topK = 1 }: {
    /** Rows of a tile of other kernels, and of listed tiles of experts. Default: the most. */
    readonly height?: number;
    /** Bytes of workgroup memory. */
    readonly memory: number;
    /** Numbers of experts over all ranks, and of a rank, and of choices per token. Absent: rows are not grouped. */
    readonly experts?: number;
    readonly held?: number;
    readonly topK?: number;
  },
): MatrixTiling | undefined {
  if (k % MATRIX_SIZE !== 0 || k === 0 || columns < MIN_COLUMNS) {
    return undefined;
  }
  const above = experts === undefined
    ? FEW_ROWS
    : Math.ceil(FEW_EXPERT_ROWS * experts / topK);
  const fits = (shape: MatrixShape) =>
    k % shape.depth === 0 &&
    4 * panelWords(shape, weights) <= memory;
  const narrow = { ...NARROW, columns: NARROW.columns / weights };
  const isNarrow = experts === undefined &&
    weights * columns <= MAX_NARROW_COLUMNS && fits(narrow);
  if (isNarrow) return { shape: narrow, above };
  const needed = Math.max(MATRIX_SIZE, 2 ** Math.ceil(Math.log2(height)));
  const rows = Math.min(MAX_ROWS, needed);
  const isWide = held * weights * columns >= MIN_WIDE;
  const shapes = [rows, Math.max(MATRIX_SIZE, rows / 2)].flatMap((rows) =>
    [MAX_DEPTH, MATRIX_SIZE].map((depth) => ({
      rows,
      columns: MAX_COLUMNS / weights,
      depth,
    }))
  );
  const wide = { rows, columns: WIDE_COLUMNS / weights, depth: MAX_DEPTH };
  const shape = [...isWide ? [wide] : [], ...shapes].find(fits);
  return shape && { shape, above };
}

/** The grid of tiles of a shape for a number of rows, or for a number of listed tiles. */
export function matrixGrid(
  { rows, columns }: MatrixShape,
  { grouped, width, batches = 1, size }: {
    readonly grouped: boolean;
    /** Columns of the result. */
    readonly width: number;
    /** Results with the same rows, each with tiles of its own. Default: 1. */
    readonly batches?: number;
    readonly size: Size;
  },
): Grid {
  const [x, z] = foldGrid(grouped ? size : { ceilDiv: [size, rows] });
  return [x, batches * Math.ceil(width / columns), z];
}
