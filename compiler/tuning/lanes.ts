/** Distribution of a matmul tile over the lanes of a workgroup, its memory and the blocks of its sums. */

import { invariant } from "../../spec/errors.ts";
import { foldGrid, type Grid, SHARED_WORDS } from "../../spec/kernel/make.ts";
import { EXACT } from "../../spec/numerics.ts";
import { packingOf } from "../../spec/weights/packed.ts";
import type { FileDType } from "../../spec/dtype.ts";
import type { Size } from "../../spec/size.ts";
import {
  equalBlocks,
  FEW_COLUMNS,
  type MatmulTile,
  sharesAnyBlocks,
  sumBlocks,
  type TiledMatmul,
  tileTaken,
  widenedForLong,
} from "./tile.ts";

/** The right operands of a matrix multiplication. */
interface TiledWeights {
  readonly weights: readonly unknown[];
}

/** Their encodings. */
interface StoredWeights {
  readonly weights: readonly { readonly stored: FileDType }[];
}

/** Number of adjacent lanes with different columns, and of such teams in a workgroup. */
export interface Teams {
  readonly lanes: number;
  readonly teams: number;
}

/** With few columns, the remaining lanes of a workgroup form more teams (unless grouped). */
export function teamsOf(o: Omit<TiledMatmul, "k">): Teams {
  const { split = 1, columns } = o.tile;
  invariant(o.tile.lanes % split === 0, "teams have equally many lanes");
  const max = o.tile.lanes / split;
  if (o.grouped) return { lanes: max, teams: split };
  let lanes = 1;
  while (lanes < max && lanes * columns < o.columns) lanes *= 2;
  if (lanes > max || o.tile.lanes % lanes !== 0) lanes = max;
  return { lanes, teams: o.tile.lanes / lanes };
}

/** Rows and columns of the result that one workgroup computes. */
export function matmulShape(o: TiledMatmul): { rows: number; columns: number } {
  const tile = tileTaken(o);
  const { lanes, teams } = teamsOf({ ...o, tile });
  return {
    rows: o.inTeams ? tile.rows : tile.rows * teams,
    columns: tile.columns * lanes,
  };
}

/**
 * Whether teams sum different blocks of k for any number of rows: a lane that sums all of k waits for as many loads as
 * blocks, while most of a large GPU is idle. Weights of few columns are cheap to load again.
 */
export function sumsInTeams(o: TiledMatmul & StoredWeights): boolean {
  return !o.grouped && o.columns < FEW_COLUMNS && sharesAnyBlocks(o.tile) &&
    blocksInRound(o, o.tile.rows) > 0;
}

/** Maximum rows of a launch for few rows: the same for all matmuls, so that their launches can be merged. */
export const DECODE_ROWS = 16;

/** Workgroups of a row from which a launch for few rows gains nothing. */
const MANY_WORKGROUPS = 1024;

/**
 * The tile of a launch for few rows, in which a workgroup has the rows of one team: in a decode step, workgroups with
 * more rows are too few. Undefined: such a launch gains nothing, or memory is too small.
 */
export function tileOfFewRows(
  o: TiledMatmul & StoredWeights,
): MatmulTile | undefined {
  const groups = Math.ceil(o.columns / matmulShape(o).columns);
  if (o.grouped || !sharesAnyBlocks(o.tile) || groups >= MANY_WORKGROUPS) {
    return;
  }
  let { rows } = o.tile;
  while (rows > 1 && blocksInRound(o, rows) === 0) rows = Math.floor(rows / 2);
  return blocksInRound(o, rows) > 0 ? { ...o.tile, rows } : undefined;
}

/** Words of workgroup memory of wider workgroups: the cores of large GPUs have room for two of them. */
const WIDER_WORDS = 8192;

/** A tile of few rows with more lanes, and the memory of its kernel. Undefined: it gains nothing, or memory is too small. */
export function widerForFewRows(
  o: TiledMatmul & StoredWeights,
  device: {
    /** Maximum number of lanes, and words of workgroup memory. */
    readonly maxLanes: number;
    readonly words: number;
  },
): Pick<TiledMatmul, "tile" | "maxWords"> | undefined {
  const tile = widenedForLong(o.tile, {
    blocks: sumBlocks(o)?.count ?? 0,
    maxLanes: device.maxLanes,
  });
  const wider = { tile, maxWords: Math.min(device.words, WIDER_WORDS) };
  return tile.lanes > o.tile.lanes &&
      blocksInRound({ ...o, ...wider }, tile.rows) > 0
    ? wider
    : undefined;
}

/**
 * The grid for a number of rows, or for a number of tiles if grouped. Tiles are in x: neighbours share weights, and if
 * fewer tiles exist than the maximum, idle ones are distributed over the entire grid instead of left to one core at its
 * end.
 */
export function matmulGrid(o: TiledMatmul, rowsOrTiles: Size): Grid {
  const shape = matmulShape(o);
  const tiles: Size = o.grouped
    ? rowsOrTiles
    : { ceilDiv: [rowsOrTiles, shape.rows] };
  const [x, z] = foldGrid(tiles);
  return [x, Math.ceil(o.columns / shape.columns), z];
}

/** Words of workgroup memory for the left operand, and for block sums beyond the first of each lane's results. */
const LEFT_WORDS = 2560, ROUND_WORDS = 2048;

/** Whether lanes load the left operand together: two blocks of every row, and the start of each row, must fit. */
export function isStaged(o: TiledMatmul): boolean {
  return o.tile.left === "workgroup" && o.tile.right !== "workgroup" &&
    matmulShape(o).rows * (2 * EXACT.block + 1) <= LEFT_WORDS;
}

/**
 * Blocks of k of the right operand that a workgroup loads at a time: an equal part of a segment, or several segments.
 * 0: every team loads for itself, because blocks have different lengths or memory is too small.
 */
export function blocksInPanel(
  o: TiledMatmul & TiledWeights,
): number {
  const { lanes, teams } = teamsOf(o);
  const blocks = equalBlocks(o);
  if (o.tile.right !== "workgroup" || !blocks) return 0;
  const words = o.weights.length * o.tile.columns * lanes * blocks.length;
  const max = Math.min(Math.floor(SHARED_WORDS / words), teams);
  const { count, ofSegment } = blocks;
  for (let n = Math.min(max, count); n > 0; n--) {
    const segments = n % ofSegment === 0 && count % n === 0;
    if (segments || ofSegment % n === 0) return n;
  }
  return 0;
}

/** Words of workgroup memory for the table of 4-bit floats. */
function tableWords({ weights }: StoredWeights): number {
  return weights.some(({ stored }) => packingOf(stored)?.element === "fp4")
    ? 16
    : 0;
}

/**
 * Blocks of k per team and round, if teams sum blocks of k for this number of rows. 0: they do not, because memory is
 * too small or there is nothing to share.
 */
export function blocksInRound(
  o: TiledMatmul & StoredWeights,
  rows: number,
): number {
  const { lanes, teams } = teamsOf(o);
  if ((o.tile.split ?? 1) === 1 || o.tile.right === "workgroup") return 0;
  const staged = isStaged(o);
  const sums = o.weights.length * rows * o.tile.columns * lanes * teams;
  const blocks = sharesAnyBlocks(o.tile) ? sumBlocks(o) : equalBlocks(o);
  const left = staged && blocks ? rows * (blocks.length * teams + 1) : 0;
  const room = (o.maxWords ?? SHARED_WORDS) - (staged ? LEFT_WORDS : 0) -
    tableWords(o) -
    (o.otherWords ?? 0);
  if (!blocks || sums > room || left > LEFT_WORDS) return 0;
  const all = Math.ceil(blocks.count / teams);
  // Of one row, all block sums: lanes then add segments.
  if (rows === 1 && !staged && blocks.count * sums / teams <= room) return all;
  const fits = Math.min(
    Math.floor(ROUND_WORDS / sums),
    staged ? Math.floor(LEFT_WORDS / left) : Infinity,
  );
  return Math.max(1, Math.min(all, fits));
}
