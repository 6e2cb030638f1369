/**
 * Rows summed by index (segment sum, scatter-add). Every result searches its rows, so that no element is written twice.
 */

import { elementwise, type Expr, type Kernel, local, wgsl } from "./kernel.ts";
import type { ResultOptions } from "./reduce.ts";
import { blockedSum } from "./pieces/blocked_sum.ts";
import { range } from "../../spec/range.ts";
import { registers } from "../../spec/kernel/registers.ts";

/** Rows summed by index. Its grid is `elementwiseGrid(count / segmentCells(width))`. */
export interface SegmentSumOptions extends ResultOptions {
  /** Number of adjacent results that sum the same rows; 1: each result has its own. */
  readonly width: number;
  /** Number of candidate rows per result. */
  readonly length: number | Expr;
  /** The index of row k, and the index summed by result i. */
  index(i: Expr, k: Expr): Expr;
  wanted(i: Expr): Expr;
  /** The term of row k for result i, f32. */
  value(i: Expr, k: Expr): Expr;
}

/** Results per invocation: many, so that it searches their rows once, but not all. */
export function segmentCells(width: number): number {
  return [8, 4, 2].find((cells) => width % (4 * cells) === 0) ?? 1;
}

const K = local("k", "u32");

/** y[i] = sum of value(i, k) over the rows k, in order, whose index is wanted(i). */
export function segmentSum(o: SegmentSumOptions): Kernel {
  const cells = segmentCells(o.width);
  // The results of one invocation are apart, so that those of adjacent invocations are adjacent.
  const apart = o.width / cells;
  const result = (c: number | string) => local(`result${c}`, "u32");
  const wanted = o.wanted(result(0));
  const sums = blockedSum(
    registers("sum", cells),
    { length: o.length },
    wgsl`
      if (u32(${o.index(result(0), K)}) == wanted) {
        @unroll (c < ${cells}) { sum_block[c] += ${o.value(result("[c]"), K)}; }
      }`,
  );
  return elementwise({
    name: o.name,
    count: wgsl`${o.count} / ${cells}`,
    bindings: o.bindings,
    body: wgsl`
      let first = i / ${apart} * ${o.width} + i % ${apart};
      @unroll (c < ${cells}) { let result[c] = first + c * ${apart}; }
      let wanted = ${wanted};
      ${sums}
      ${
      range(cells).flatMap((c) =>
        o.epilogue(result(c), local(`sum${c}`, "f32"))
      )
    }`,
  });
}
