/** Tiles of matmuls: register tiles of lanes, and their fit to the operands. */

import { type FileDType, isHalf } from "../../spec/dtype.ts";
import { invariant } from "../../spec/errors.ts";
import type { Expr } from "../../spec/kernel/tree.ts";
import { EXACT } from "../../spec/numerics.ts";
import { packingOf } from "../../spec/weights/packed.ts";

/** Each invocation computes rows x columns results; `lanes` invocations form a workgroup. */
export interface MatmulTile {
  /**
   * Rows of results per lane.
   *
   * @integer
   * @minimum 1
   * @maximum 64
   */
  readonly rows: number;
  /**
   * Columns of results per lane.
   *
   * @integer
   * @minimum 1
   * @maximum 64
   */
  readonly columns: number;
  /**
   * Lanes of a workgroup.
   *
   * @integer
   * @minimum 1
   * @maximum 256
   */
  readonly lanes: number;
  /**
   * Teams of lanes with the same columns. Each has its own rows. If a tile has at most the rows of one team, as in
   * decode, teams sum different blocks of k, and block sums are added in order. Divides `lanes`. Default: 1.
   *
   * @integer
   * @minimum 1
   * @maximum 64
   */
  readonly split?: number;
  /**
   * Source of the left operand: loaded by every lane, or by all lanes of a workgroup together, one block of k at a
   * time, into workgroup memory if it fits. Default: registers.
   */
  readonly left?: "registers" | "workgroup";
  /**
   * Loads of the right operand: word by word; two or four words of adjacent columns at once, if its rows and the tile's
   * columns allow it; or by a workgroup into its memory, some blocks of k at a time, for all teams, which suits vectors
   * that load along k. Default: scalar.
   */
  readonly right?: "scalar" | "vector" | "workgroup";
  /**
   * Lanes of the device's vectors. If they divide a team into several vectors, one row reads weights with k innermost
   * otherwise: blocks vector by vector, 16-bit weights as one stream even if columns are short, and f32 weights in
   * several streams. Default: the lanes of a team.
   *
   * @integer
   * @minimum 1
   * @maximum 64
   */
  readonly vector?: number;
  /**
   * `small`: epilogues are emitted once for all rows, in a loop, unless results are in panels or teams, and there is no
   * loop for a quarter of a tile. For drivers that compile slowly. Default: large.
   */
  readonly code?: "large" | "small";
}

/** The default tile without a tuner. */
export const DEFAULT_TILE: MatmulTile = { rows: 4, columns: 4, lanes: 32 };

/** Parameters of a matmul that its tile depends on. */
export interface TiledMatmul {
  /** Products per sum; dynamic only without groups and packed weights. */
  readonly k: number | Expr;
  /** Number of equal segments of k, whose sums are added as a balanced tree; see `blockedSum`. Default: 1. */
  readonly segments?: number;
  readonly columns: number;
  readonly tile: MatmulTile;
  /**
   * Teams sum different blocks of k for any number of rows, so a workgroup has the rows of one team. Only if
   * `sumsInTeams`. Default: false.
   */
  readonly inTeams?: boolean;
  /** Words of workgroup memory that the kernel has for other values. Default: 0. */
  readonly otherWords?: number;
  /** Maximum words of workgroup memory of the kernel. Default: `SHARED_WORDS`, which every device has. */
  readonly maxWords?: number;
  /** The binding of the tile list of `regroup`; its tile height must be `matmulShape(o).rows`. */
  readonly grouped?: { readonly tiles: string };
}

/** The blocks of a sum over k. */
export interface SumBlocks {
  /** Indices of a block. */
  readonly length: number;
  readonly count: number;
  readonly ofSegment: number;
  /** Indices of the last block of a segment. */
  readonly last: number;
}

/** The blocks of a sum over k; undefined where k is known at run time only, or 0. */
export function sumBlocks(
  { k, segments = 1 }: Pick<TiledMatmul, "k" | "segments">,
): SumBlocks | undefined {
  if (typeof k !== "number" || k === 0) return undefined;
  const ofSegment = k / segments;
  invariant(Number.isInteger(ofSegment), "segments are equally long");
  invariant((segments & (segments - 1)) === 0, "segments are a power of two");
  const length = Math.min(EXACT.block, ofSegment);
  const blocks = Math.ceil(ofSegment / length);
  return {
    length,
    count: segments * blocks,
    ofSegment: blocks,
    last: ofSegment - (blocks - 1) * length,
  };
}

/**
 * The blocks of a sum over k. Undefined unless all have equal length: 32, or short segments. A single short block does
 * not count.
 */
export function equalBlocks(
  o: Pick<TiledMatmul, "k" | "segments">,
): SumBlocks | undefined {
  const blocks = sumBlocks(o);
  if (!blocks || blocks.last < blocks.length) return undefined;
  return blocks.length < EXACT.block && (o.segments ?? 1) === 1
    ? undefined
    : blocks;
}

/**
 * The tile of a kernel: the plain one of its size unless all blocks of k have equal length. Drivers (Mesa's llvmpipe)
 * may unroll a short last block and then add its products in an order that depends on the surrounding code.
 */
export function tileTaken(o: Omit<TiledMatmul, "columns">): MatmulTile {
  const { grouped, tile } = o;
  if (equalBlocks(o) || tile.right === "workgroup") return tile;
  if (sumBlocks(o) && sharesAnyBlocks(tile)) return tile;
  return plainTile(tile, grouped !== undefined);
}

/** Whether the teams of a tile can sum different blocks of k that are not equally long: each lane loads for itself. */
export function sharesAnyBlocks(
  { split = 1, left, right = "scalar" }: MatmulTile,
): boolean {
  return split > 1 && left !== "workgroup" && right !== "workgroup";
}

/**
 * A tile that can read the weights: a plain one for weights with k innermost, unless workgroups load them together; one
 * with an even number of columns if two share a word.
 */
export function tileOfWeights(
  tile: MatmulTile,
  weights: readonly {
    readonly stored: FileDType;
    readonly inside?: "n" | "k";
  }[],
  { grouped, k, columns, maxLanes }: {
    readonly grouped: boolean;
    /** Products per sum. */
    readonly k: number;
    /** Columns of the result. */
    readonly columns: number;
    /** Maximum number of lanes of the device. */
    readonly maxLanes: number;
  },
): MatmulTile {
  if (weights.some(({ inside }) => inside === "k")) {
    if (tile.right !== "workgroup") return plainTile(tile, grouped);
    const { rows, lanes, split = 1 } = tile;
    // Lanes of one vector have the same rows, even with few columns.
    return grouped || columns > lanes / split / 2
      ? tile
      : { rows, columns: 1, lanes: Math.max(4, powerFrom(columns)) };
  }
  if (weights.some(({ stored }) => isHalf(stored))) {
    return tile.columns % 2 === 1
      ? { ...tile, columns: 2 * tile.columns }
      : tile;
  }
  const narrow = narrowed(tile, { k, columns });
  return grouped ? widened(narrow, { k, columns, maxLanes }) : narrow;
}

/** Workgroups for one row, below which a tile with teams becomes narrower: one for each core of a large GPU, or two. */
const FEW_WORKGROUPS = 256;

/** Words of a sector, the unit of memory traffic. */
const SECTOR_WORDS = 8;

/**
 * A tile of the same height with fewer columns per workgroup, so that few columns have more of them: twice as many teams
 * of half the lanes and rows, while each has a block of k. The words of adjacent columns remain whole sectors.
 */
function narrowed(
  tile: MatmulTile,
  sizes: { readonly k: number; readonly columns: number },
): MatmulTile {
  const { split = 1, rows, lanes } = tile;
  const words = lanes / split / 2 * tile.columns;
  const narrower = sharesAnyBlocks(tile) &&
    Number.isInteger(lanes / split / 2) && rows % 2 === 0 &&
    words >= SECTOR_WORDS && sizes.columns < 2 * words * FEW_WORKGROUPS &&
    sizes.k >= 2 * split * EXACT.block;
  return narrower
    ? narrowed({ ...tile, rows: rows / 2, split: 2 * split }, sizes)
    : tile;
}

/**
 * A tile of the same height and columns per workgroup with twice as many teams of half the rows, in workgroups of twice
 * as many lanes, if workgroups for one row are fewer than the cores of a large GPU and each team has several blocks.
 */
function widened(
  tile: MatmulTile,
  sizes: {
    readonly k: number;
    readonly columns: number;
    readonly maxLanes: number;
  },
): MatmulTile {
  const { split = 1, rows, lanes } = tile;
  const width = lanes / split * tile.columns;
  const wider = sharesAnyBlocks(tile) && rows % 2 === 0 &&
    2 * lanes <= Math.min(ROW_LANES, sizes.maxLanes) &&
    sizes.columns < 2 * width * FEW_WORKGROUPS &&
    sizes.k >= 2 * split * EXACT.block;
  return wider
    ? widened(
      { ...tile, rows: rows / 2, split: 2 * split, lanes: 2 * lanes },
      sizes,
    )
    : tile;
}

/** Most lanes of a workgroup for one row: a lane then has 128 registers of an NVIDIA GPU, twice as many as it loads. */
const ROW_LANES = 512;

/**
 * A tile of one row with fewer columns per workgroup, so that few columns have more of them: twice as many teams of half
 * the lanes, while there are more blocks than teams. The words of adjacent columns remain whole sectors. If teams have
 * several blocks nevertheless, a workgroup has more lanes, so that more loads are in flight.
 */
export function narrowedRow(
  tile: MatmulTile,
  sizes: {
    readonly stored: FileDType;
    readonly columns: number;
    /** Blocks of all sums. */
    readonly blocks: number;
    /** Maximum number of lanes of the device. */
    readonly maxLanes: number;
  },
): MatmulTile {
  const { split = 1, lanes, columns } = tile;
  const each = lanes / split / 2 * columns;
  const words = isHalf(sizes.stored) ? each / 2 : each;
  const narrower = Number.isInteger(lanes / split / 2) &&
    words >= SECTOR_WORDS && sizes.columns < 2 * each * FEW_WORKGROUPS &&
    sizes.blocks > split;
  if (narrower) return narrowedRow({ ...tile, split: 2 * split }, sizes);
  const fits = 2 * lanes <= Math.min(ROW_LANES, sizes.maxLanes);
  return fits && sizes.blocks > split
    ? narrowedRow({ ...tile, lanes: 2 * lanes, split: 2 * split }, sizes)
    : tile;
}

/** Blocks of k from which few rows have more lanes: one for each team of four lanes. */
const MIN_BLOCKS = 64;

/**
 * A tile of few rows for long sums, with twice as many teams in workgroups of twice as many lanes: a lane executes fewer
 * instructions one after another, and more loads are in flight. Whether a tile is wider depends on the length of sums
 * alone, so that wider kernels of equally long sums can be merged.
 */
export function widenedForLong(
  tile: MatmulTile,
  { blocks, maxLanes }: {
    /** Blocks of a sum. */
    readonly blocks: number;
    /** Maximum number of lanes of the device. */
    readonly maxLanes: number;
  },
): MatmulTile {
  const { split = 1, lanes } = tile;
  const fits = 2 * lanes <= Math.min(ROW_LANES, maxLanes);
  return sharesAnyBlocks(tile) && fits && blocks > MIN_BLOCKS
    ? { ...tile, lanes: 2 * lanes, split: 2 * split }
    : tile;
}

/** Columns of a result below which weights are cheap to load again, as those of routers. */
export const FEW_COLUMNS = 512;

/**
 * The tile of one row of a tile with teams. For few columns of 16 bits, a team has two lanes with a word each, if it then
 * has at most one block of k: waits for more loads cost more than sectors that workgroups share.
 */
export function tileOfRow(
  { tile, k, columns, weights }: Pick<TiledMatmul, "tile" | "k" | "columns"> & {
    readonly weights: readonly { readonly stored: FileDType }[];
  },
): MatmulTile {
  const { split = 1, lanes } = tile;
  const teams = lanes / 2;
  const isNarrow = columns < FEW_COLUMNS &&
    weights.every(({ stored }) => isHalf(stored)) &&
    sharesAnyBlocks(tile) && teams % split === 0 &&
    typeof k === "number" && k <= teams * EXACT.block;
  return { ...tile, rows: 1, ...isNarrow ? { columns: 2, split: teams } : {} };
}

/** The smallest power of two that is not smaller. */
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

/** Whether weights may have k innermost: the elements of a word must be in one block. */
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
