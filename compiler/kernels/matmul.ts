/** Matrix multiplication from registers: each invocation holds a tile of rows x columns of the result. */

import type { FileDType } from "../../spec/dtype.ts";
import { invariant } from "../../spec/errors.ts";
import {
  add,
  and,
  binary,
  bitcast,
  div,
  eq,
  fma,
  id,
  if_,
  let_,
  load,
  local,
  lt,
  min,
  mul,
  rem,
  select,
  sub,
  u32,
  unpackHigh,
  unpackLow,
} from "../../spec/kernel/build.ts";
import type { Binding, Expr, Kernel, Stmt } from "../../spec/kernel/tree.ts";
import type { Size } from "../../spec/size.ts";
import { foldGrid, type Grid, groupXZ, kernelOf } from "./kernel.ts";
import { blockedSum, type SumStep } from "./sum.ts";

/** A right operand, [expert,] k, n with n innermost. */
export interface MatmulWeight {
  readonly binding: string;
  /** `mxfp4`: words of eight four-bit floats that follow each other along k. */
  readonly stored: FileDType;
  /** MXFP4: the binding of scales, [expert,] k / 32, n. */
  readonly scales?: string;
  /** Elements between k and k + 1; even for 16-bit weights. */
  readonly rowStride: number;
}

/** Each invocation computes rows x columns results; `lanes` invocations make a workgroup. */
export interface MatmulTile {
  readonly rows: number;
  readonly columns: number;
  readonly lanes: number;
}

/** A good tile without a tuner. */
export const DEFAULT_TILE: MatmulTile = { rows: 4, columns: 4, lanes: 32 };

/** A matrix multiplication, perhaps over groups of rows that each have their own weights. */
export interface MatmulOptions {
  readonly name: string;
  /** How many products in a sum; known at run time only where there are no groups and no packed weights. */
  readonly k: number | Expr;
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

type Shape = Pick<MatmulOptions, "columns" | "tile" | "grouped">;

/** Few columns leave lanes idle, so the rest of a workgroup's lanes go to more rows (not when grouped). */
function laneColumns(o: Shape): number {
  if (o.grouped) return o.tile.lanes;
  let lanes = 1;
  while (lanes < o.tile.lanes && lanes * o.tile.columns < o.columns) lanes *= 2;
  return Math.min(lanes, o.tile.lanes);
}

/** Rows and columns of the result that one workgroup computes. */
export function matmulShape(o: Shape): { rows: number; columns: number } {
  const lanes = laneColumns(o);
  return {
    rows: o.tile.rows * Math.floor(o.tile.lanes / lanes),
    columns: o.tile.columns * lanes,
  };
}

/**
 * The grid for a number of rows, or for a number of tiles when grouped. Tiles lie in x: neighbours then share weights, and
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

/** Describe a matrix multiplication. */
export function matmul(o: MatmulOptions): Kernel {
  const shape = matmulShape(o);
  const lanes = laneColumns(o);
  const laneRow = o.tile.lanes === lanes
    ? u32(0)
    : div(id("local"), u32(lanes));
  const firstRow = add(
    mul(groupXZ(), u32(shape.rows)),
    mul(laneRow, u32(o.tile.rows)),
  );
  const body = [...columnsAndWeights(o, lanes), ...rowsOfTile(o, lanes)];
  return kernelOf({
    name: o.name,
    workgroupSize: o.tile.lanes,
    bindings: o.bindings,
    body: o.grouped ? groupedTile(o.grouped.tiles, body) : [
      let_("first", firstRow),
      let_("end", o.rows),
      if_(lt(u("first"), u("end")), body),
    ],
  });
}

/** Read the workgroup's tile from the list, if it has that many. */
function groupedTile(tiles: string, body: readonly Stmt[]): Stmt[] {
  const word = (at: Expr) => load(tiles, at, "u32");
  return [
    if_(lt(groupXZ(), word(u32(0))), [
      let_("tile", add(mul(groupXZ(), u32(3)), u32(1))),
      let_("expert", word(u("tile"))),
      let_("first", word(add(u("tile"), u32(1)))),
      let_("end", add(u("first"), word(add(u("tile"), u32(2))))),
      ...body,
    ]),
  ];
}

/**
 * Tiles are often not full, above all in decoding: one row, and a quarter of a tile, have loops of their own beside that
 * for a whole tile, with the same sums and less work.
 */
function rowsOfTile(o: MatmulOptions, lanes: number): Stmt[] {
  const { rows } = o.tile;
  const whole = rowsTimesColumns(o, rows);
  // Where lanes hold different rows the branch would not be uniform.
  if (rows === 1 || o.tile.lanes !== lanes) return whole;
  const heights = [1, Math.floor(rows / 4)].filter((n, i) => i === 0 || n > 1);
  return heights.reduceRight(
    (others, height) => [
      if_(
        lt(sub(u("end"), u("first")), u32(height + 1)),
        rowsTimesColumns(o, height),
        others,
      ),
    ],
    whole,
  );
}

/** Consecutive columns of one invocation: the two that share a word where weights are packed. */
function unitOf(o: MatmulOptions): number {
  const unit = o.weights.some((w) => isPacked(w.stored)) ? 2 : 1;
  invariant(o.tile.columns % unit === 0, "16-bit weights need an even tile");
  return unit;
}

function isPacked(stored: FileDType): stored is "f16" | "bf16" {
  return stored === "f16" || stored === "bf16";
}

/** Elements of a weight in one word of its binding. */
function perWord(stored: FileDType): number {
  return isPacked(stored) ? 2 : stored === "mxfp4" ? 8 : 1;
}

function range(n: number): number[] {
  return Array.from({ length: n }, (_, i) => i);
}

/**
 * column<c>: the result's. at<w>_<c>: where weight w of that column is read at k = 0, in elements, or in words where
 * packed. Lanes stand side by side, so that their loads are contiguous. Beyond the last column something is read, and
 * nothing written.
 */
function columnsAndWeights(o: MatmulOptions, lanes: number): Stmt[] {
  const unit = unitOf(o);
  const perGroup = o.tile.columns * lanes / unit;
  const laneColumn = add(
    mul(id("group.y"), u32(perGroup)),
    rem(id("local"), u32(lanes)),
  );
  return [
    let_("lane_unit", laneColumn),
    ...range(o.tile.columns / unit).flatMap((j) => [
      let_(`unit${j}`, add(u("lane_unit"), u32(j * lanes))),
      ...range(unit).map((i) =>
        let_(
          `column${j * unit + i}`,
          add(mul(u(`unit${j}`), u32(unit)), u32(i)),
        )
      ),
    ]),
    ...o.weights.flatMap((w, i) => {
      const packed = isPacked(w.stored);
      invariant(!packed || w.rowStride % 2 === 0, "packed rows are even");
      const base = ofExpert(o, w.rowStride / perWord(w.stored));
      return range(o.tile.columns).filter((c) => !packed || c % 2 === 0)
        .map((c): Stmt => {
          const from = packed ? u(`unit${c / 2}`) : u(`column${c}`);
          return let_(`at${i}_${c}`, add(base, from));
        }).concat(w.scales === undefined ? [] : scalePlaces(o, w, i));
    }),
  ];
}

/** Where the weights of the tile's expert start, whose rows have `rowWords` words. */
function ofExpert({ k, grouped }: MatmulOptions, rowWords: number): Expr {
  if (!grouped) return u32(0);
  invariant(typeof k === "number", "experts' weights have one size");
  return mul(u("expert"), u32(k * rowWords));
}

/** scale<w>_<c>: where the scales of weight w of that column start. */
function scalePlaces(o: MatmulOptions, w: MatmulWeight, i: number): Stmt[] {
  const base = ofExpert(o, w.rowStride / 32);
  return range(o.tile.columns).map((c) =>
    let_(`scale${i}_${c}`, add(base, u(`column${c}`)))
  );
}

/** `rows` rows by all columns of a tile: their sums, and what becomes of them. */
function rowsTimesColumns(o: MatmulOptions, rows: number): Stmt[] {
  const { columns } = o.tile;
  const cells = range(rows * columns).map((i) => ({
    r: Math.floor(i / columns),
    c: i % columns,
  }));
  const step = (k: Expr, blocks: readonly Expr[]): SumStep => ({
    lets: [
      ...range(rows).map((r) => let_(`a${r}`, o.left(u(`left${r}`), k))),
      ...o.weights.flatMap((w, i) => rightRow(w, `${i}`, { k, columns })),
    ],
    values: o.weights.flatMap((_, i) =>
      cells.map(({ r, c }, cell) =>
        fma(f(`a${r}`), f(`b${i}_${c}`), blocks[i * cells.length + cell]!)
      )
    ),
  });
  const expert = o.grouped ? u("expert") : u32(0);
  return [
    ...range(rows).flatMap((r) => [
      let_(`row${r}`, add(u("first"), u32(r))),
      let_(`left${r}`, o.leftRow(min(u(`row${r}`), sub(u("end"), u32(1))))),
    ]),
    ...blockedSum({
      length: o.k,
      totals: o.weights.flatMap((_, i) =>
        cells.map(({ r, c }) => `sum${i}_${r}_${c}`)
      ),
      step,
    }),
    ...cells.map(({ r, c }) => {
      const [row, column] = [u(`row${r}`), u(`column${c}`)];
      const sums = o.weights.map((_, i) => f(`sum${i}_${r}_${c}`));
      return if_(
        and(lt(row, u("end")), lt(column, u32(o.columns))),
        o.epilogue({ row, column, expert }, sums),
      );
    }),
  ];
}

/** b<number>_<c>: one weight's values at k for every column. */
function rightRow(
  w: MatmulWeight,
  number: string,
  at: { readonly k: Expr; readonly columns: number },
): Stmt[] {
  const { stored } = w;
  if (stored === "mxfp4") return blockRow(w, number, at);
  if (!isPacked(stored)) {
    const row = mul(at.k, u32(w.rowStride));
    return range(at.columns).map((c) =>
      let_(`b${number}_${c}`, load(w.binding, add(u(`at${number}_${c}`), row)))
    );
  }
  const row = mul(at.k, u32(w.rowStride / 2));
  return range(at.columns / 2).flatMap((j) => {
    const word = u(`word${number}_${2 * j}`);
    const index = add(u(`at${number}_${2 * j}`), row);
    return [
      let_(`word${number}_${2 * j}`, load(w.binding, index, "u32")),
      let_(`b${number}_${2 * j}`, unpackLow(stored, word)),
      let_(`b${number}_${2 * j + 1}`, unpackHigh(stored, word)),
    ];
  });
}

/** The same from MXFP4 blocks; products with a power of two are exact. */
function blockRow(
  w: MatmulWeight,
  number: string,
  at: { readonly k: Expr; readonly columns: number },
): Stmt[] {
  const along = (shift: number) =>
    mul(binary("shr", at.k, u32(shift)), u32(w.rowStride));
  const bit = mul(binary("and", at.k, u32(7)), u32(4));
  return range(at.columns).flatMap((c) => {
    const [bits, scale] = [`bits${number}_${c}`, `power${number}_${c}`];
    const word = load(w.binding, add(u(`at${number}_${c}`), along(3)), "u32");
    const exponent = load(
      w.scales!,
      add(u(`scale${number}_${c}`), along(5)),
      "u32",
    );
    return [
      let_(bits, binary("shr", word, bit)),
      let_(scale, bitcast("f32", binary("shl", exponent, u32(23)))),
      let_(`b${number}_${c}`, mul(unpackFp4(u(bits)), f(scale))),
    ];
  });
}

/** The value of the lowest four bits: a sign, two bits of exponent, one of mantissa; 1 is 0.5. */
function unpackFp4(bits: Expr): Expr {
  const magnitude = binary("and", bits, u32(7));
  const sign = binary("shl", binary("and", bits, u32(8)), u32(28));
  const normal = add(binary("shl", magnitude, u32(22)), u32(126 << 23));
  const small = select(eq(magnitude, u32(1)), u32(126 << 23), u32(0));
  const value = select(lt(magnitude, u32(2)), small, normal);
  return bitcast("f32", binary("or", sign, value));
}

function u(name: string): Expr {
  return local(name, "u32");
}

function f(name: string): Expr {
  return local(name, "f32");
}
