/** Kernel variants of a plan: those found by a tuner for the adapter, by shape, or a default. */

import type { FileDType } from "../../spec/dtype.ts";
import { MachineError } from "../../spec/errors.ts";
import type { Operands } from "../../spec/numerics.ts";
import { DEFAULT_TILE, type MatmulTile, tileHeight } from "./tile.ts";

/** Variants of kernels. Bits do not depend on them, except on `operands`. */
export interface TuningTable {
  /**
   * The tile of matmuls that `matmuls` does not list. Its height is that of every grouped matmul, because they share
   * lists of tiles.
   */
  readonly matmul?: MatmulTile;
  /**
   * The tile of matmuls with several weights, which compute as many tiles of results; of the same height. Default:
   * `matmul`.
   */
  readonly pair?: MatmulTile;
  /** The tile of matmuls with quantized activations; of the same height. Default: that of other matmuls. */
  readonly quantized?: MatmulTile;
  /** Tiles by `matmulClass`. */
  readonly matmuls?: { readonly [shape: string]: MatmulTile };
  /**
   * Maximum queries per workgroup of attention: heads with the same key head, then tokens. Default: 1.
   *
   * @integer
   * @minimum 1
   * @maximum 8
   */
  readonly attention?: number;
  /**
   * Steps of at most this many tokens split attention over blocks of keys, for decoding on a wide device. Default: 0.
   *
   * @integer
   * @minimum 0
   * @maximum 64
   */
  readonly splitKeys?: number;
  /**
   * Rows have many lanes, for decoding on a wide device: a lane per block in norms, per expert in routers and per
   * choice in assignments. A step of one token has fewer launches: matmuls compute the norms before them, and routers
   * assign few choices. Default: false.
   */
  readonly wideRows?: boolean;
  /**
   * KV caches store the positions of a head consecutively, for processors that read one head after another. Default:
   * the heads of a position.
   */
  readonly headMajor?: boolean;
  /**
   * Columns of a state per lane of a recurrence, which share loads. Default: 1.
   *
   * @integer
   * @minimum 1
   * @maximum 4
   */
  readonly recurrence?: number;
  /**
   * Storage dtypes of right operands that keep the layout of their files, with the contracted axis innermost. Default:
   * none.
   *
   * @maxItems 128
   */
  readonly asFiled?: readonly FileDType[];
  /** Byte multiplication in matmuls of quantized rows. Default: guarded. */
  readonly bytes?: BytesArithmetic;
  /** Default operands of `fast` numerics, on which bits depend: f16 for matrix units. Default: f32. */
  readonly operands?: Operands;
}

/**
 * The form of byte multiplication: signed or unsigned weights by signed activations. `guarded`: signed, and f32
 * products are not fused with sums. `pairs`: weights of eight bits are signed, others unsigned, for processors that add
 * pairs of products in 16 bits.
 */
export type BytesArithmetic = typeof BYTES_ARITHMETIC[number];

/** The forms of byte multiplication. */
const BYTES_ARITHMETIC = [
  "guarded",
  "signed",
  "unsigned",
  "pairs",
] as const;

/** A table, or one whose tiles a function chooses; undefined: the tile of the others. */
export type Tuning =
  & Omit<TuningTable, "matmuls">
  & {
    readonly matmuls?:
      | TuningTable["matmuls"]
      | ((shape: MatmulShape) => MatmulTile | undefined);
  };

/** Parameters that determine the speed of a tile. */
export interface MatmulShape {
  /** Rows are grouped by expert. */
  readonly grouped: boolean;
  /** Weights per result: two for the gate and up of an expert. */
  readonly weights: number;
  readonly stored: FileDType;
  readonly k: number;
  readonly columns: number;
  /** Activations are quantized. Default: no. */
  readonly quantized?: boolean;
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

/**
 * Maximum number of results in a lane's registers: GPUs have 255 per lane. A tile of a table has at most half, for
 * pairs.
 */
export const MAX_RESULTS = 256;

/** The tile of a matmul, and the suffix of kernel names if a table chose it. Throws MachineError if it is too large. */
export function tileFor(
  { matmul = DEFAULT_TILE, pair = matmul, matmuls = {}, ...others }: Tuning,
  shape: MatmulShape,
): { readonly tile: MatmulTile; readonly suffix: string } {
  const found = typeof matmuls === "function"
    ? matmuls(shape)
    : matmuls[matmulClass(shape)];
  const quantized = shape.quantized ? others.quantized : undefined;
  const chosen = found ?? quantized ?? (shape.weights > 1 ? pair : matmul);
  const tile = shape.grouped ? ofHeight(chosen, tileHeight(matmul)) : chosen;
  const results = tile.rows * tile.columns * shape.weights;
  if (results > MAX_RESULTS) {
    throw new MachineError(
      `Cannot use tile ${tileName(tile)} for '${
        matmulClass(shape)
      }': a lane would hold ${results} results, and ${MAX_RESULTS} are allowed. Give fewer rows or columns`,
    );
  }
  return { tile, suffix: found ? `_by_${tileName(tile)}` : "" };
}

/** A tile with the rows of a given height; without teams if they cannot divide it. */
export function ofHeight(tile: MatmulTile, height: number): MatmulTile {
  const { split = 1, ...unsplit } = tile;
  return height % split === 0
    ? { ...tile, rows: height / split }
    : { ...unsplit, rows: height };
}

/** `4x4x32`, and other distinguishing options: `4x4x32_split8_workgroup`. */
export function tileName(tile: MatmulTile): string {
  const { rows, columns, lanes, split = 1, left = "registers" } = tile;
  const { right = "scalar", code = "large" } = tile;
  return [
    `${rows}x${columns}x${lanes}`,
    ...split === 1 ? [] : [`split${split}`],
    ...left === "registers" ? [] : [left],
    ...right === "scalar" ? [] : [right],
    ...code === "large" ? [] : [code],
  ].join("_");
}
