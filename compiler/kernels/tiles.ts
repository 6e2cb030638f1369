/** Which variant of a kernel a plan takes: what a tuner found for the adapter, by the shape of the work, or a default. */

import type { FileDType } from "../../spec/dtype.ts";
import { DEFAULT_TILE, type MatmulTile } from "./matmul.ts";

/** Variants of kernels. Bits do not depend on them. */
export interface TuningTable {
  /** The tile of matmuls that `matmuls` does not name. Its rows are those of every grouped matmul: they share lists of tiles. */
  readonly matmul?: MatmulTile;
  /** Tiles by `matmulClass`. */
  readonly matmuls?: { readonly [shape: string]: MatmulTile };
  /** Tokens of a workgroup of attention. Default: 1. */
  readonly attention?: number;
}

/** A table, or one whose tiles a function chooses; undefined: the tile of the others. */
export type Tuning =
  & Omit<TuningTable, "matmuls">
  & {
    readonly matmuls?:
      | TuningTable["matmuls"]
      | ((shape: MatmulShape) => MatmulTile | undefined);
  };

/** What decides how fast a tile is. */
export interface MatmulShape {
  /** Rows are grouped by expert. */
  readonly grouped: boolean;
  /** Weights of each result: two for the gate and up of an expert. */
  readonly weights: number;
  readonly stored: FileDType;
  readonly k: number;
  readonly columns: number;
}

/** The class of a matmul: `grouped pair bf16 512x1024`. Sizes are rounded up to powers of two. */
export function matmulClass(shape: MatmulShape): string {
  const size = (n: number) => 2 ** Math.ceil(Math.log2(n));
  return [
    shape.grouped ? "grouped" : "plain",
    ...shape.weights > 1 ? ["pair"] : [],
    shape.stored,
    `${size(shape.k)}x${size(shape.columns)}`,
  ].join(" ");
}

/** The tile of a matmul, and how kernels of it are named where a table chose it. */
export function tileFor(
  { matmul = DEFAULT_TILE, matmuls = {} }: Tuning,
  shape: MatmulShape,
): { readonly tile: MatmulTile; readonly suffix: string } {
  const found = typeof matmuls === "function"
    ? matmuls(shape)
    : matmuls[matmulClass(shape)];
  if (!found) return { tile: matmul, suffix: "" };
  const tile = shape.grouped ? { ...found, rows: matmul.rows } : found;
  return {
    tile,
    suffix: `_by_${tile.rows}x${tile.columns}x${tile.lanes}`,
  };
}
