/** Matrix multiplication from registers: each invocation holds a tile of rows x columns of the result. */

import type { StoredDType } from "../../spec/dtype.ts";
import { invariant } from "../../spec/errors.ts";
import {
  add,
  and,
  binary,
  div,
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
  sub,
  u32,
  unpackHigh,
  unpackLow,
} from "../../spec/kernel/build.ts";
import type { Binding, Expr, Kernel, Stmt } from "../../spec/kernel/tree.ts";
import type { Size } from "../../spec/size.ts";
import { foldGrid, type Grid, groupYZ, kernelOf } from "./kernel.ts";
import { blockedSum } from "./sum.ts";

/** A right operand, [expert,] k, n with n innermost. */
export interface MatmulWeight {
  readonly binding: string;
  readonly stored: StoredDType;
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
  readonly k: number;
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

/** The grid for a number of rows, or for a number of tiles when grouped. */
export function matmulGrid(o: Shape, rowsOrTiles: Size): Grid {
  const shape = matmulShape(o);
  const tiles: Size = o.grouped
    ? rowsOrTiles
    : { ceilDiv: [rowsOrTiles, shape.rows] };
  return [Math.ceil(o.columns / shape.columns), ...foldGrid(tiles)];
}

/** Describe a matrix multiplication. */
export function matmul(o: MatmulOptions): Kernel {
  const packed = o.weights.some((w) =>
    w.stored === "f16" || w.stored === "bf16"
  );
  // Consecutive columns of one invocation. Lanes then stand side by side, so that their loads are contiguous.
  const unit = packed ? 2 : 1;
  invariant(o.tile.columns % unit === 0, "16-bit weights need an even tile");
  const rowNumbers = Array.from({ length: o.tile.rows }, (_, r) => r);
  const columnNumbers = Array.from({ length: o.tile.columns }, (_, c) => c);
  const lanes = laneColumns(o);
  const shape = matmulShape(o);
  const u = (name: string) => local(name, "u32");

  const laneColumn = rem(id("local"), u32(lanes));
  const laneRow = o.tile.lanes === lanes
    ? u32(0)
    : div(id("local"), u32(lanes));
  const tile = o.grouped
    ? [
      let_("tile", add(mul(groupYZ(), u32(3)), u32(1))),
      let_("expert", load(o.grouped.tiles, u("tile"), "u32")),
      let_("first", load(o.grouped.tiles, add(u("tile"), u32(1)), "u32")),
      let_(
        "end",
        add(u("first"), load(o.grouped.tiles, add(u("tile"), u32(2)), "u32")),
      ),
    ]
    : [
      let_(
        "first",
        add(mul(groupYZ(), u32(shape.rows)), mul(laneRow, u32(o.tile.rows))),
      ),
      let_("end", o.rows),
    ];
  const expert = o.grouped ? u("expert") : u32(0);
  const body: Stmt[] = [
    ...rowNumbers.flatMap((r) => [
      let_(`row${r}`, add(u("first"), u32(r))),
      let_(`left${r}`, o.leftRow(min(u(`row${r}`), sub(u("end"), u32(1))))),
    ]),
    ...columnsOf(),
    ...weightBases(),
    ...blockedSum({
      length: o.k,
      totals: sumNames(),
      step: (k, blocks) => turn(k, blocks),
    }),
    ...rowNumbers.flatMap((r) => columnNumbers.map((c) => result(r, c))),
  ];
  return kernelOf({
    name: o.name,
    workgroupSize: o.tile.lanes,
    bindings: o.bindings,
    body: o.grouped
      ? [
        if_(lt(groupYZ(), load(o.grouped.tiles, u32(0), "u32")), [
          ...tile,
          ...body,
        ]),
      ]
      : [...tile, if_(lt(u("first"), u("end")), body)],
  });

  function sumNames(): string[] {
    return o.weights.flatMap((_, w) =>
      rowNumbers.flatMap((r) => columnNumbers.map((c) => `sum${w}_${r}_${c}`))
    );
  }

  /** column<c>: the result's; from<c>: where its weights are read, inside the matrix also for columns beyond it. */
  function columnsOf(): Stmt[] {
    const block = mul(id("group.x"), u32(shape.columns));
    const inside = o.columns % shape.columns === 0;
    const last = o.columns - 1 - (o.columns - 1) % unit;
    return [
      let_("column", add(block, mul(laneColumn, u32(unit)))),
      ...columnNumbers.flatMap((c) => {
        const at = add(
          u("column"),
          u32(Math.floor(c / unit) * lanes * unit + c % unit),
        );
        const read = c % unit !== 0 ? [] : [
          let_(
            `from${c}`,
            inside ? u(`column${c}`) : min(u(`column${c}`), u32(last)),
          ),
        ];
        return [let_(`column${c}`, at), ...read];
      }),
    ];
  }

  function weightBases(): Stmt[] {
    return o.weights.flatMap((w, i) =>
      columnNumbers.filter((c) => c % unit === 0).map((c) =>
        let_(
          `at${i}_${c}`,
          add(mul(expert, u32(o.k * w.rowStride)), u(`from${c}`)),
        )
      )
    );
  }

  /** One k: the left column, the right row, and all products. */
  function turn(k: Expr, blocks: readonly Expr[]) {
    const f = (name: string) => local(name, "f32");
    const lets = [
      ...rowNumbers.map((r) => let_(`a${r}`, o.left(u(`left${r}`), k))),
      ...o.weights.flatMap((w, i) => rightRow(w, i, k)),
    ];
    const values = o.weights.flatMap((_, i) =>
      rowNumbers.flatMap((r) =>
        columnNumbers.map((c) =>
          fma(
            f(`a${r}`),
            f(`b${i}_${c}`),
            blocks[(i * o.tile.rows + r) * o.tile.columns + c]!,
          )
        )
      )
    );
    return { lets, values };
  }

  function rightRow(w: MatmulWeight, i: number, k: Expr): Stmt[] {
    const stored = w.stored;
    const row = mul(k, u32(w.rowStride));
    if (stored === "f16" || stored === "bf16") {
      return columnNumbers.filter((c) => c % 2 === 0).flatMap((c) => {
        const at = binary("shr", add(u(`at${i}_${c}`), row), u32(1));
        const word = u(`word${i}_${c}`);
        return [
          let_(`word${i}_${c}`, load(w.binding, at, "u32")),
          let_(`b${i}_${c}`, unpackLow(stored, word)),
          let_(`b${i}_${c + 1}`, unpackHigh(stored, word)),
        ];
      });
    }
    return columnNumbers.map((c) => {
      const start = c - c % unit;
      const at = add(u(`at${i}_${start}`), u32(c - start), row);
      return let_(`b${i}_${c}`, load(w.binding, at));
    });
  }

  function result(r: number, c: number): Stmt {
    const [row, column] = [u(`row${r}`), u(`column${c}`)];
    const sums = o.weights.map((_, w) => local(`sum${w}_${r}_${c}`, "f32"));
    return if_(
      and(lt(row, u("end")), lt(column, u32(o.columns))),
      o.epilogue({ row, column, expert }, sums),
    );
  }
}
