/** Adds up the rows of a token on the rank of their experts, before they return: the first half of a combine. */

import type { Expr, Kernel } from "./kernel.ts";
import { bindings, elementwise, kernelOf, local, wgsl } from "./kernel.ts";
import { DROPPED } from "./assign.ts";

/**
 * The first half of a combine. Bindings: `tokenCount` u32 [1]; `rows` u32 [token, 2 * most] of `listRows`; `y` f32 [row,
 * width] as rows were received; written: `sums` f32 [token, width]. Its grid is `elementwiseGrid(tokens * width)`.
 */
export interface LocalCombineOptions {
  readonly name: string;
  /** Elements of one row. */
  readonly width: number;
  /** Choices of a token on this rank, at most. */
  readonly most: number;
  /** Rows are multiplied by their weights; else only added. */
  readonly weighted: boolean;
  /** Rounds a sum to the dtype of the rows. */
  round(sum: Expr): Expr;
}

/** sums[t] = sum over the choices of t here, in order, of weight * y[row] */
export function localCombine(o: LocalCombineOptions): Kernel {
  const { width, most, weighted } = o;
  return elementwise({
    name: o.name,
    count: wgsl`tokenCount[0] * ${width}`,
    bindings: bindings(
      { tokenCount: "u32", rows: "u32", y: "f32" },
      { sums: "f32" },
    ),
    body: wgsl`
      let list = i / ${width} * ${2 * most};
      let element = i % ${width};
      var sum = 0.0;
      for (var j = 0u; j < ${most}; j++) {
        let row = rows[list + j];
        if (row != ${DROPPED}) {
          let result = y[row * ${width} + element];
          sum = ${
      weighted
        ? wgsl`fma(bitcast<f32>(rows[list + ${most} + j]), result, sum)`
        : wgsl`sum + result`
    };
        }
      }
      sums[i] = ${o.round(local("sum", "f32"))};`,
  });
}

/** Which tokens have been received: those of a chunk of `chunks`. */
export interface CountTokensOptions {
  readonly name: string;
  readonly positions: number;
  readonly chunk: number;
  readonly chunks: number;
}

/**
 * How many tokens have been received. Bindings: `reach` u32 [position, rank and chunk] of the whole group, `position` u32
 * [1]; written: `tokenCount` u32 [1]. Its grid is one workgroup.
 */
export function countTokens(
  { name, positions, chunk, chunks }: CountTokensOptions,
): Kernel {
  return kernelOf({
    name,
    workgroupSize: 1,
    bindings: bindings(
      { reach: "u32", position: "u32" },
      { tokenCount: "u32" },
    ),
    body: wgsl`
      let unit = position[0] * ${chunks} + ${chunk};
      var tokens = 0u;
      for (var s = 0u; s < ${positions}; s++) {
        tokens += reach[s * ${positions * chunks} + unit];
      }
      tokenCount[0] = tokens;`,
  });
}
