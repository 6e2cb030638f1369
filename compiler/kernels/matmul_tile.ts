/** What a matrix multiplication is made of, and how its lanes share a tile of the result. */

import type { FileDType } from "../../spec/dtype.ts";
import { packingOf } from "../../spec/packed.ts";
import { invariant } from "../../spec/errors.ts";
import type { Size } from "../../spec/size.ts";
import type { Binding, Expr, Grid, Stmt } from "./kernel.ts";
import { foldGrid, SHARED_WORDS } from "./kernel.ts";
import { segmentLength, SUM_BLOCK } from "./pieces/blocked_sum.ts";

/** A right operand: [expert,] k, n, or [expert,] n, k. */
export interface MatmulWeight {
  readonly binding: string;
  /** Where elements have scales, words follow each other along k. */
  readonly stored: FileDType;
  /** The binding of scales, [expert,] those of k, n. */
  readonly scales?: string;
  /** The innermost axis, `k` only where `readsAlongK`. Default: n. */
  readonly inside?: "n" | "k";
  /** Elements between rows, which are those of the axis outside; even for 16-bit weights. */
  readonly rowStride: number;
}

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
}

/** A good tile without a tuner. */
export const DEFAULT_TILE: MatmulTile = { rows: 4, columns: 4, lanes: 32 };

/** A matrix multiplication, perhaps over groups of rows that each have their own weights. */
export interface MatmulOptions {
  readonly name: string;
  /** How many products in a sum; known at run time only where there are no groups and no packed weights. */
  readonly k: number | Expr;
  /** Equal segments of k, whose sums are added as a balanced tree; see `blockedSum`. Default: 1. */
  readonly segments?: number;
  readonly columns: number;
  /** Superset of what is used, weights included (16-bit weights are u32 bindings). */
  readonly bindings: readonly Binding[];
  /** One, or several that share the left operand (gate and up of an expert). */
  readonly weights: readonly MatmulWeight[];
  readonly tile: MatmulTile;
  /** Run-time row count, uniform; not used when grouped. */
  readonly rows: Expr;
  /** The binding of the tile list that `regroup` makes; its tile height must be `matmulShape(o).rows`. */
  readonly grouped?: { readonly tiles: string };
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

type Shape = Pick<
  MatmulOptions,
  "k" | "segments" | "columns" | "tile" | "grouped"
>;

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
  { k, segments = 1 }: Pick<MatmulOptions, "k" | "segments">,
): EqualBlocks | undefined {
  if (typeof k !== "number" || k === 0) return undefined;
  const ofSegment = segmentLength(k, segments);
  if (ofSegment % SUM_BLOCK === 0) {
    return {
      length: SUM_BLOCK,
      count: k / SUM_BLOCK,
      ofSegment: ofSegment / SUM_BLOCK,
    };
  }
  return segments > 1 && ofSegment < SUM_BLOCK
    ? { length: ofSegment, count: segments, ofSegment: 1 }
    : undefined;
}

/**
 * The tile that a kernel takes: the plain one of its size unless all blocks of k are equally long. Drivers (Mesa's llvmpipe)
 * may unroll a short last block and then add its products in another order, which depends on the code around it.
 */
export function tileTaken(o: Omit<Shape, "columns">): MatmulTile {
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
  weights: readonly MatmulWeight[],
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

/** The least power of two that is no less. */
function powerFrom(n: number): number {
  return 2 ** Math.ceil(Math.log2(n));
}

/** The plain tile of a tile's size. */
function plainTile(tile: MatmulTile, grouped: boolean): MatmulTile {
  const { rows, columns, lanes } = tile;
  return { rows: grouped ? tileHeight(tile) : rows, columns, lanes };
}

/** Whether weights may have k inside: two 16-bit ones in a word are of one block. */
export function readsAlongK(
  stored: FileDType,
  sum: { readonly k: number; readonly segments: number },
): boolean {
  const even = (equalBlocks(sum)?.length ?? 1) % 2 === 0;
  return !packingOf(stored) && even && sum.k % 4 === 0;
}

/** Rows of a tile of grouped rows. */
export function tileHeight({ rows, split = 1 }: MatmulTile): number {
  return rows * split;
}

/** Lanes side by side, of different columns, and how many such teams a workgroup has. */
export interface Teams {
  readonly lanes: number;
  readonly teams: number;
}

/** Few columns leave lanes idle, so the rest of a workgroup's lanes go to more teams (not when grouped). */
export function teamsOf(o: Omit<Shape, "k">): Teams {
  const { split = 1, columns } = o.tile;
  invariant(o.tile.lanes % split === 0, "teams have equally many lanes");
  const most = o.tile.lanes / split;
  if (o.grouped) return { lanes: most, teams: split };
  let lanes = 1;
  while (lanes < most && lanes * columns < o.columns) lanes *= 2;
  if (lanes > most || o.tile.lanes % lanes !== 0) lanes = most;
  return { lanes, teams: o.tile.lanes / lanes };
}

/** Rows and columns of the result that one workgroup computes. */
export function matmulShape(o: Shape): { rows: number; columns: number } {
  const tile = tileTaken(o);
  const { lanes, teams } = teamsOf({ ...o, tile });
  return { rows: tile.rows * teams, columns: tile.columns * lanes };
}

/**
 * The grid for a number of rows, or for a number of tiles when grouped. Tiles are in x: neighbours then share weights, and
 * where fewer tiles arrive than could, the idle ones are spread over the whole grid and not left to one core at its end.
 */
export function matmulGrid(o: Shape, rowsOrTiles: Size): Grid {
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
export function isStaged(o: Shape): boolean {
  return o.tile.left === "workgroup" && o.tile.right !== "workgroup" &&
    matmulShape(o).rows * (2 * SUM_BLOCK + 1) <= LEFT_WORDS;
}

/**
 * Blocks of k that a workgroup loads of the right operand at a time, all of one segment. 0: every team loads for itself, as
 * where blocks are not equally long, or memory is too small.
 */
export function blocksInPanel(
  o: Shape & Pick<MatmulOptions, "weights">,
): number {
  const { lanes, teams } = teamsOf(o);
  const blocks = equalBlocks(o);
  if (o.tile.right !== "workgroup" || !blocks) return 0;
  const words = o.weights.length * o.tile.columns * lanes * blocks.length;
  const most = Math.min(Math.floor(SHARED_WORDS / words), teams);
  for (let n = Math.min(most, blocks.ofSegment); n > 0; n--) {
    if (blocks.ofSegment % n === 0) return n;
  }
  return 0;
}

/**
 * Where teams sum blocks of k for a number of rows: how many blocks each has in a round, at whose end they are added.
 * 0: they do not, as memory is too small or there is nothing to share.
 */
export function blocksInRound(
  o: Shape & Pick<MatmulOptions, "weights">,
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
