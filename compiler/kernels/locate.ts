/** Deduplicated dispatch: where grouped rows find their tokens. */

import { columnsOf } from "../../spec/bytes.ts";
import { pick } from "../../spec/kernel/pick.ts";
import type { Kernel } from "./kernel.ts";
import { bindings, elementwise, kernelOf, local, wgsl } from "./kernel.ts";

/**
 * Where grouped rows find their tokens. Bindings: `counts` u32 [position, column] and `reach` u32 [position, rank and chunk] of
 * the whole group, `position` u32 [1], `rowOf` u32 [row] and `rowCount` u32 [1] of a regroup, `places` u32 [row] as they
 * were received; written: `tokenOf` u32 [row]. Its grid is `elementwiseGrid(rows)`.
 */
export interface LocateOptions {
  readonly name: string;
  readonly splits: readonly number[];
  /** Only these columns of each position have arrived, of this chunk; default all. */
  readonly columns?: readonly (readonly [first: number, end: number])[];
  readonly chunk: number;
  readonly chunks: number;
}

const ME = local("me", "u32");

/** tokenOf[g] = the tokens of earlier sources, then the place of its choice among those of its own. */
export function locate(o: LocateOptions): Kernel {
  const { name, splits, chunk, chunks } = o;
  const parts = columnsOf(o);
  const positions = splits.length - 1;
  const unit = chunks === 1 ? wgsl`me` : wgsl`me * ${chunks} + ${chunk}`;
  return elementwise({
    name,
    count: wgsl`rowCount[0]`,
    bindings: bindings({
      ...{ counts: "u32", reach: "u32", position: "u32" },
      ...{ rowOf: "u32", rowCount: "u32", places: "u32" },
    }, { tokenOf: "u32" }),
    body: wgsl`
      let me = position[0];
      let row = rowOf[i];
      let my_first = ${pick(parts.map(([first]) => first), ME)};
      let my_end = ${pick(parts.map(([, end]) => end), ME)};
      // Rows and tokens of the sources before the one that the row is of.
      var rows = 0u;
      var before = 0u;
      var open = 1u;
      for (var s = 0u; s < ${positions}; s++) {
        var here = 0u;
        for (var c = my_first; c < my_end; c++) {
          here += counts[s * ${splits.at(-1)} + c];
        }
        rows += here;
        if (row < rows) { open = 0; }
        if (open == 1) { before += reach[s * ${positions * chunks} + ${unit}]; }
      }
      tokenOf[i] = before + places[row];`,
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
