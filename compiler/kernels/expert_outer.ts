/** Products of rows summed for each expert in tiles of registers: the gradient of a grouped matmul's weights. */

import {
  add,
  and,
  div,
  fma,
  id,
  if_,
  let_,
  local,
  lt,
  min,
  mul,
  rem,
  sub,
  u32,
} from "../../spec/kernel/build.ts";
import type { Binding, Expr, Kernel, Stmt } from "../../spec/kernel/tree.ts";
import { foldGrid, type Grid, groupXZ, kernelOf } from "./kernel.ts";
import type { MatmulTile } from "./matmul_tile.ts";
import { blockedSum } from "./sum.ts";

/** A result [expert, row, column]: of each expert, the sum over its grouped rows of left[row] times right[column]. */
export interface ExpertOuterOptions {
  readonly name: string;
  /** Experts that a rank has at most, and those of this one. */
  readonly experts: number;
  readonly own: Expr;
  readonly rows: number;
  readonly columns: number;
  readonly tile: MatmulTile;
  readonly bindings: readonly Binding[];
  /** The first of the grouped rows of an expert, and the one after the last. */
  range(expert: Expr): readonly [from: Expr, to: Expr];
  /** What a grouped row has for a row or column of the result; `block` gives statements that they need first. */
  left(row: Expr, grouped: Expr): Expr;
  right(column: Expr, grouped: Expr): Expr;
  /** Collects statements that expressions need before them. */
  block(make: () => readonly Stmt[]): readonly Stmt[];
  epilogue(
    at: { readonly expert: Expr; readonly row: Expr; readonly column: Expr },
    sum: Expr,
  ): readonly Stmt[];
}

type Shape = Pick<ExpertOuterOptions, "experts" | "rows" | "columns" | "tile">;

function tilesDown({ rows, tile }: Shape): number {
  return Math.ceil(rows / tile.rows);
}

/** The grid: tiles of all experts, one after another, in x and z, columns in y. */
export function expertOuterGrid(o: Shape): Grid {
  const { columns, lanes } = o.tile;
  const [x, z] = foldGrid(o.experts * tilesDown(o)) as [number, number];
  return [x, Math.ceil(o.columns / (columns * lanes)), z];
}

function range(n: number): number[] {
  return Array.from({ length: n }, (_, i) => i);
}

function u(name: string): Expr {
  return local(name, "u32");
}

function f(name: string): Expr {
  return local(name, "f32");
}

/** Each invocation has a tile of the result; sums are in grouped order, in the blocks of every sum. */
export function expertOuter(o: ExpertOuterOptions): Kernel {
  const { rows, columns, lanes } = o.tile;
  const down = u32(tilesDown(o));
  const [from, to] = o.range(u("expert"));
  const grouped = (k: Expr) => add(u("from"), k);
  const cells = range(rows * columns).map((i) => ({
    r: Math.floor(i / columns),
    c: i % columns,
  }));
  const body: Stmt[] = [
    let_("first", mul(rem(groupXZ(), down), u32(rows))),
    ...range(rows).flatMap((r) => [
      let_(`row${r}`, add(u("first"), u32(r))),
      // Beyond the last row the last one is read, and nothing written; so with columns.
      let_(`left${r}`, min(u(`row${r}`), u32(o.rows - 1))),
    ]),
    // Lanes stand side by side, so that what they load is.
    let_("lane", add(mul(id("group.y"), u32(columns * lanes)), id("local"))),
    ...range(columns).flatMap((c) => [
      let_(`column${c}`, add(u("lane"), u32(c * lanes))),
      let_(`right${c}`, min(u(`column${c}`), u32(o.columns - 1))),
    ]),
    let_("from", from),
    let_("length", sub(to, u("from"))),
    ...blockedSum({
      length: u("length"),
      totals: cells.map(({ r, c }) => `sum${r}_${c}`),
      step: (k, blocks) => ({
        lets: o.block(() => [
          let_("grouped", grouped(k)),
          ...range(rows).map((r) =>
            let_(`a${r}`, o.left(u(`left${r}`), u("grouped")))
          ),
          ...range(columns).map((c) =>
            let_(`b${c}`, o.right(u(`right${c}`), u("grouped")))
          ),
        ]),
        values: cells.map(({ r, c }, i) =>
          fma(f(`a${r}`), f(`b${c}`), blocks[i]!)
        ),
      }),
    }),
    ...cells.map(({ r, c }) => {
      const [row, column] = [u(`row${r}`), u(`column${c}`)];
      return if_(
        and(lt(row, u32(o.rows)), lt(column, u32(o.columns))),
        o.epilogue({ expert: u("expert"), row, column }, f(`sum${r}_${c}`)),
      );
    }),
  ];
  return kernelOf({
    name: o.name,
    workgroupSize: lanes,
    bindings: o.bindings,
    body: [
      let_("expert", div(groupXZ(), down)),
      if_(lt(u("expert"), o.own), body),
    ],
  });
}
