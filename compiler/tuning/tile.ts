/** Tiles of matrix multiplications: what lanes hold in registers, and which tile fits the operands. */

import { type FileDType, isHalf } from "../../spec/dtype.ts";
import { invariant } from "../../spec/errors.ts";
import type { Expr } from "../../spec/kernel/tree.ts";
import { EXACT } from "../../spec/numerics.ts";
import { packingOf } from "../../spec/packed.ts";

/** Each invocation computes rows x columns results; `lanes` invocations make a workgroup. */
export interface MatmulTile {
  readonly rows: number;
  readonly columns: number;
  readonly lanes: number;
  /**
   * Teams of lanes that have the same columns. Each has rows of its own; where a tile has no more rows than one team holds,
   * as in decoding, teams sum different blocks of k, and block sums are added in order. Divides `lanes`. Default: 1.
   */
  readonly split?: number;
  /**
   * Where products take the left operand from: loaded by every lane for itself, or by all lanes of a workgroup together,
   * a block of k at a time, into its memory, if that is large enough. Default: registers.
   */
  readonly left?: "registers" | "workgroup";
  /**
   * How the right operand is loaded: word by word; or two or four words at once, of columns that are together, where its
   * rows and the tile's columns allow it; or by a workgroup into its memory, some blocks of k at a time, for all teams, which
   * suits vectors that load along k. Default: scalar.
   */
  readonly right?: "scalar" | "vector" | "workgroup";
  /**
   * `small`: what becomes of results is written once for all rows, in a loop, unless they come from panels or teams; and the
   * quarter of a tile has no text of its own. For drivers that take long to compile. Default: large.
   */
  readonly code?: "large" | "small";
}

/** A good tile without a tuner. */
export const DEFAULT_TILE: MatmulTile = { rows: 4, columns: 4, lanes: 32 };

/** A matrix multiplication, as far as its tile is concerned. */
export interface TiledMatmul {
  /** How many products in a sum; known at run time only where there are no groups and no packed weights. */
  readonly k: number | Expr;
  /** Equal segments of k, whose sums are added as a balanced tree; see `blockedSum`. Default: 1. */
  readonly segments?: number;
  readonly columns: number;
  readonly tile: MatmulTile;
  /** The binding of the tile list that `regroup` makes; its tile height must be `matmulShape(o).rows`. */
  readonly grouped?: { readonly tiles: string };
}

/** The blocks of a sum over k, which are equally long. */
export interface EqualBlocks {
  /** Indices of a block. */
  readonly length: number;
  readonly count: number;
  readonly ofSegment: number;
}

/**
 * The blocks of a sum over k; undefined unless all are equally long: those of 32, or short segments. One that is short and
 * alone is not taken for such.
 */
export function equalBlocks(
  { k, segments = 1 }: Pick<TiledMatmul, "k" | "segments">,
): EqualBlocks | undefined {
  if (typeof k !== "number" || k === 0) return undefined;
  const ofSegment = k / segments;
  invariant(Number.isInteger(ofSegment), "segments are equally long");
  invariant((segments & (segments - 1)) === 0, "segments are a power of two");
  const length = EXACT.block;
  if (ofSegment % length === 0) {
    return { length, count: k / length, ofSegment: ofSegment / length };
  }
  return segments > 1 && ofSegment < length
    ? { length: ofSegment, count: segments, ofSegment: 1 }
    : undefined;
}

/**
 * The tile that a kernel takes: the plain one of its size unless all blocks of k are equally long. Drivers (Mesa's llvmpipe)
 * may unroll a short last block and then add its products in another order, which depends on the code around it.
 */
export function tileTaken(o: Omit<TiledMatmul, "columns">): MatmulTile {
  const { grouped, tile } = o;
  if (equalBlocks(o) || tile.right === "workgroup") return tile;
  return plainTile(tile, grouped !== undefined);
}

/**
 * A tile that can read weights: a plain one where they have k inside, unless workgroups load them together; else one of an
 * even number of columns where two are in a word.
 */
export function tileOfWeights(
  tile: MatmulTile,
  weights: readonly {
    readonly stored: FileDType;
    readonly inside?: "n" | "k";
  }[],
  { grouped, columns }: {
    readonly grouped: boolean;
    /** Columns of the result. */
    readonly columns: number;
  },
): MatmulTile {
  if (weights.some(({ inside }) => inside === "k")) {
    if (tile.right !== "workgroup") return plainTile(tile, grouped);
    const { rows, lanes, split = 1 } = tile;
    // Lanes of one vector have the same rows, also where columns are few.
    return grouped || columns > lanes / split / 2
      ? tile
      : { rows, columns: 1, lanes: Math.max(4, powerFrom(columns)) };
  }
  const inWords = weights.some(({ stored }) =>
    stored === "f16" || stored === "bf16"
  );
  return inWords && tile.columns % 2 === 1
    ? { ...tile, columns: 2 * tile.columns }
    : tile;
}

/** The minimum power of two that is no less. */
function powerFrom(n: number): number {
  return 2 ** Math.ceil(Math.log2(n));
}

/** The plain tile of a tile's size. */
function plainTile(tile: MatmulTile, grouped: boolean): MatmulTile {
  const { rows, columns, lanes, code } = tile;
  return {
    rows: grouped ? tileHeight(tile) : rows,
    columns,
    lanes,
    ...code ? { code } : {},
  };
}

/** Whether weights may have k inside: those of a word are of one block. */
export function readsAlongK(
  stored: FileDType,
  sum: { readonly k: number; readonly segments: number },
): boolean {
  const inWord = packingOf(stored)?.perWord ?? (isHalf(stored) ? 2 : 1);
  return sum.k / sum.segments % inWord === 0 && sum.k % 4 === 0;
}

/** Rows of a tile of grouped rows. */
export function tileHeight({ rows, split = 1 }: MatmulTile): number {
  return rows * split;
}
