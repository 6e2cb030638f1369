/** Deduplicated dispatch: where grouped rows find their tokens. */

import { expertRanges } from "../../spec/bytes.ts";
import { pick } from "../../spec/kernel/pick.ts";
import type { Kernel } from "./kernel.ts";
import { bindings, elementwise, kernelOf, local, wgsl } from "./kernel.ts";

/**
 * Where grouped rows find their tokens. Bindings: `counts` u32 [group rank, expert] and `destinationCounts` u32 [group rank, rank and chunk] of
 * the whole group, `groupRank` u32 [1], `rowOf` u32 [row] and `rowCount` u32 [1] of a regroup, `places` u32 [row] as they
 * were received; written: `tokenOf` u32 [row]. Its grid is `elementwiseGrid(rows)`.
 */
export interface LocateOptions {
  readonly name: string;
  readonly splits: readonly number[];
  /** Only these experts of each group rank have arrived, of this chunk; default all. */
  readonly experts?: readonly (readonly [first: number, end: number])[];
  readonly chunk: number;
  readonly chunks: number;
}

const ME = local("me", "u32");

/** tokenOf[g] = the tokens of earlier sources, then the place of its choice among those of its own. */
export function locate(o: LocateOptions): Kernel {
  const { name, splits, chunk, chunks } = o;
  const parts = expertRanges(o);
  const groupSize = splits.length - 1;
  const unit = chunks === 1 ? wgsl`me` : wgsl`me * ${chunks} + ${chunk}`;
  return elementwise({
    name,
    count: wgsl`rowCount[0]`,
    bindings: bindings({
      ...{ counts: "u32", destinationCounts: "u32", groupRank: "u32" },
      ...{ rowOf: "u32", rowCount: "u32", places: "u32" },
    }, { tokenOf: "u32" }),
    body: wgsl`
      let me = groupRank[0];
      let row = rowOf[i];
      let my_first = ${pick(parts.map(([first]) => first), ME)};
      let my_end = ${pick(parts.map(([, end]) => end), ME)};
      // Rows and tokens of the sources before the one that the row is of.
      var rows = 0u;
      var before = 0u;
      var open = 1u;
      for (var s = 0u; s < ${groupSize}; s++) {
        var here = 0u;
        for (var c = my_first; c < my_end; c++) {
          here += counts[s * ${splits.at(-1)} + c];
        }
        rows += here;
        if (row < rows) { open = 0; }
        if (open == 1) { before += destinationCounts[s * ${
      groupSize * chunks
    } + ${unit}]; }
      }
      tokenOf[i] = before + places[row];`,
  });
}

/** Which tokens have been received: those of a chunk of `chunks`. */
export interface CountTokensOptions {
  readonly name: string;
  readonly groupSize: number;
  readonly chunk: number;
  readonly chunks: number;
}

/**
 * How many tokens have been received. Bindings: `destinationCounts` u32 [group rank, rank and chunk] of the whole group, `groupRank` u32
 * [1]; written: `tokenCount` u32 [1]. Its grid is one workgroup.
 */
export function countTokens(
  { name, groupSize, chunk, chunks }: CountTokensOptions,
): Kernel {
  return kernelOf({
    name,
    workgroupSize: 1,
    bindings: bindings(
      { destinationCounts: "u32", groupRank: "u32" },
      { tokenCount: "u32" },
    ),
    body: wgsl`
      let unit = groupRank[0] * ${chunks} + ${chunk};
      var tokens = 0u;
      for (var s = 0u; s < ${groupSize}; s++) {
        tokens += destinationCounts[s * ${groupSize * chunks} + unit];
      }
      tokenCount[0] = tokens;`,
  });
}
