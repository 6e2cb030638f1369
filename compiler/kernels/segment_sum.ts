/** Rows summed by their index (segment sum, scatter-add). Every result looks for its rows, so that none is written twice. */

import { local } from "../../spec/kernel/build.ts";
import { wgsl } from "../../spec/kernel/text.ts";
import type { Binding, Expr, Kernel, Stmt } from "../../spec/kernel/tree.ts";
import { elementwise } from "./elementwise.ts";
import { blockedSum } from "./pieces/blocked_sum.ts";

/** Rows summed by index. Its grid is `elementwiseGrid(count / segmentCells(width))`. */
export interface SegmentSumOptions {
  readonly name: string;
  /** How many results. */
  readonly count: Expr;
  /** Results side by side that take the same rows; 1: each its own. */
  readonly width: number;
  /** How many rows might belong to each. */
  readonly length: number | Expr;
  readonly bindings: readonly Binding[];
  /** The index of row k, and the one that result i takes. */
  index(i: Expr, k: Expr): Expr;
  wanted(i: Expr): Expr;
  /** What row k adds to result i, f32. */
  value(i: Expr, k: Expr): Expr;
  /** Uses a result. */
  epilogue(i: Expr, sum: Expr): readonly Stmt[];
}

/** How many results an invocation sums: many, so that it looks for their rows once, but some are left for others. */
export function segmentCells(width: number): number {
  return [8, 4, 2].find((cells) => width % (4 * cells) === 0) ?? 1;
}

const K = local("k", "u32");

/** y[i] = sum of value(i, k) over the rows k, in order, whose index is wanted(i). */
export function segmentSum(o: SegmentSumOptions): Kernel {
  const cells = Array.from({ length: segmentCells(o.width) }, (_, c) => c);
  // Results of one invocation are apart, so that those of invocations side by side are side by side.
  const apart = o.width / cells.length;
  const result = (c: number) => local(`result${c}`, "u32");
  const wanted = o.wanted(result(0));
  const index = o.index(result(0), K);
  const sums = blockedSum(
    cells.map((c) => `sum${c}`),
    { length: o.length },
    wgsl`
      if (u32(${index}) == wanted) {
        ${cells.map((c) => wgsl`sum${c}_block += ${o.value(result(c), K)};`)}
      }`,
  );
  return elementwise({
    name: o.name,
    count: wgsl`${o.count} / ${cells.length}`,
    bindings: o.bindings,
    body: wgsl`
      let first = i / ${apart} * ${o.width} + i % ${apart};
      ${cells.map((c) => wgsl`let result${c} = first + ${c * apart};`)}
      let wanted = ${wanted};
      ${sums}
      ${cells.flatMap((c) => o.epilogue(result(c), local(`sum${c}`, "f32")))}`,
  });
}
