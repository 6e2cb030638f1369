/** What kernels with a workgroup for each row have in common: `rms_norm`, `softmax`. */

import type { Size } from "../../spec/size.ts";
import type {
  Binding,
  Expr,
  Grid,
  Kernel,
  KernelText,
  Stmt,
} from "./kernel.ts";
import { foldGrid, GROUP_XY, kernelOf, local, wgsl } from "./kernel.ts";
import { SUM_BLOCK } from "./pieces/blocked_sum.ts";

/** A kernel of one workgroup for each row. Its grid is `rowsGrid(rows)`. */
export interface RowsOptions {
  readonly name: string;
  readonly rows: Expr;
  /** The length of a row, or its bound. */
  readonly length: number;
  /** The length in a run, where that is known only then. */
  readonly actual?: Expr | undefined;
  readonly bindings: readonly Binding[];
  /** The f32 element `i` of a row. */
  load(row: Expr, i: Expr): Expr;
  /** Uses the result at `i`; `value` gives that at any place of the row. */
  epilogue(
    row: Expr,
    i: Expr,
    value: (i: Expr) => Expr,
  ): readonly Stmt[];
}

/** The grid of `rmsNorm` and `softmax`. */
export function rowsGrid(rows: Size): Grid {
  return [...foldGrid(rows), 1];
}

/** Variables of the text: the row, and an element of it. */
export const [ROW, ELEMENT] = [local("row", "u32"), local("i", "u32")];

/** Enough lanes for the blocks of a row, and for its elements. */
export function lanesOf(length: number): number {
  return length <= 8 ? 8 : length <= 256 ? 32 : 64;
}

/** Run `body` for the `row` of each workgroup. */
export function rowKernel(o: RowsOptions, body: KernelText): Kernel {
  return kernelOf({
    name: o.name,
    workgroupSize: lanesOf(o.length),
    bindings: o.bindings,
    body: wgsl`
      let row = ${GROUP_XY};
      if (row < ${o.rows}) {
        ${body}
      }`,
  });
}

/** Where a row ends. */
export function endOf({ length, actual }: RowsOptions): Expr | KernelText {
  return actual ?? wgsl`${length}u`;
}

/** Run `body` for element `i` of the row, which the lanes share out. */
export function eachElement(
  o: RowsOptions,
  body: KernelText | readonly Stmt[],
): KernelText {
  return wgsl`
    for (var i = lane; i < ${endOf(o)}; i += ${lanesOf(o.length)}) {
      ${body}
    }`;
}

/**
 * Every lane gets `total`, the contract's sum over the row: lanes sum whole blocks, then each adds the block sums in order.
 * For each index `i`, `add` adds to `block`.
 */
export function rowSum(o: RowsOptions, add: KernelText): KernelText {
  const count = Math.ceil(o.length / SUM_BLOCK);
  const blocks = o.actual
    ? wgsl`(${o.actual} + ${SUM_BLOCK - 1}) / ${SUM_BLOCK}`
    : wgsl`${count}u`;
  const next = wgsl`b * ${SUM_BLOCK} + ${SUM_BLOCK}`;
  const even = !o.actual && o.length % SUM_BLOCK === 0;
  const end = even ? next : wgsl`min(${next}, ${endOf(o)})`;
  return wgsl`
    var<workgroup> blocks: array<f32, ${count}>;
    for (var b = lane; b < ${blocks}; b += ${lanesOf(o.length)}) {
      var block = 0.0;
      for (var k = b * ${SUM_BLOCK}; k < ${end}; k++) {
        ${add}
      }
      blocks[b] = block;
    }
    workgroupBarrier();
    var total = 0.0;
    for (var b = 0u; b < ${blocks}; b++) { total += blocks[b]; }`;
}
