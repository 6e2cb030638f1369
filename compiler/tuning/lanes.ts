/** How the lanes of a workgroup share a tile of a matrix multiplication, its memory and the blocks of its sums. */

import { invariant } from "../../spec/errors.ts";
import { foldGrid, type Grid, SHARED_WORDS } from "../../spec/kernel/make.ts";
import { EXACT } from "../../spec/numerics.ts";
import type { Size } from "../../spec/size.ts";
import { equalBlocks, type TiledMatmul, tileTaken } from "./tile.ts";

/** The right operands of a matrix multiplication. */
interface TiledWeights {
  readonly weights: readonly unknown[];
}

/** Lanes side by side, of different columns, and how many such teams a workgroup has. */
export interface Teams {
  readonly lanes: number;
  readonly teams: number;
}

/** Few columns leave lanes idle, so the rest of a workgroup's lanes go to more teams (not when grouped). */
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
  return { rows: tile.rows * teams, columns: tile.columns * lanes };
}

/**
 * The grid for a number of rows, or for a number of tiles when grouped. Tiles are in x: neighbours then share weights, and
 * where fewer tiles arrive than could, the idle ones are spread over the whole grid and not left to one core at its end.
 */
export function matmulGrid(o: TiledMatmul, rowsOrTiles: Size): Grid {
  const shape = matmulShape(o);
  const tiles: Size = o.grouped
    ? rowsOrTiles
    : { ceilDiv: [rowsOrTiles, shape.rows] };
  const [x, z] = foldGrid(tiles);
  return [x, Math.ceil(o.columns / shape.columns), z];
}

/** Words of workgroup memory for the left operand, and those for block sums beyond the first of each lane's results. */
const LEFT_WORDS = 2560, ROUND_WORDS = 1024;

/** Whether lanes load the left operand together: two blocks of every row, and where each row starts, must fit. */
export function isStaged(o: TiledMatmul): boolean {
  return o.tile.left === "workgroup" && o.tile.right !== "workgroup" &&
    matmulShape(o).rows * (2 * EXACT.block + 1) <= LEFT_WORDS;
}

/**
 * Blocks of k that a workgroup loads of the right operand at a time: an equal part of a segment, or segments. 0: every team
 * loads for itself, as where blocks are not equally long, or memory is too small.
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

/**
 * Where teams sum blocks of k for a number of rows: how many blocks each has in a round, at whose end they are added.
 * 0: they do not, as memory is too small or there is nothing to share.
 */
export function blocksInRound(
  o: TiledMatmul & TiledWeights,
  rows: number,
): number {
  const { lanes, teams } = teamsOf(o);
  if ((o.tile.split ?? 1) === 1 || o.tile.right === "workgroup") return 0;
  const staged = isStaged(o);
  const sums = o.weights.length * rows * o.tile.columns * lanes * teams;
  const blocks = equalBlocks(o);
  const left = staged && blocks ? rows * (blocks.length * teams + 1) : 0;
  const room = SHARED_WORDS - (staged ? LEFT_WORDS : 0);
  if (!blocks || sums > room || left > LEFT_WORDS) return 0;
  const all = Math.ceil(blocks.count / teams);
  const fits = Math.min(
    Math.floor(ROUND_WORDS / sums),
    staged ? Math.floor(LEFT_WORDS / left) : Infinity,
  );
  return Math.max(1, Math.min(all, fits));
}
