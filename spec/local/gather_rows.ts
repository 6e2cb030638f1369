/** Concatenates the rows of all ranks that share a device: a launch without a host wait. */

import { invariant } from "../errors.ts";
import { elementwise, ELEMENTWISE_LANES } from "../kernel/elementwise.ts";
import { GROUP_XY, kernelOf, reads, writes } from "../kernel/make.ts";
import { wgsl } from "../kernel/text/text.ts";
import type { Kernel } from "../kernel/tree.ts";
import { SOURCES } from "./exchange.ts";

/**
 * A part of a gather of rows. Bindings: `counts` u32 [group rank], the rows of each; `dst`, written, and `src0`,
 * `src1`, … of the group ranks `sources`. Its grid is `elementwiseGrid(words of all rows)`.
 */
export interface GatherRowsOptions {
  readonly name: string;
  readonly rowWords: number;
  /** Consecutive group ranks of the sources, at most four. */
  readonly sources: readonly number[];
}

/** The words of the sources' rows, after those of earlier group ranks. */
export function gatherRows(o: GatherRowsOptions): Kernel {
  invariant(o.sources.length <= SOURCES, "at most four sources");
  const { sources, rowWords } = o;
  const copied = sources.map((source, f) =>
    wgsl`
      let start${f + 1} = start${f} + counts[${source}] * ${rowWords};
      if (i >= start${f} && i < start${
      f + 1
    }) { dst[i] = src${f}[i - start${f}]; }`
  );
  return kernelOf({
    name: o.name,
    workgroupSize: ELEMENTWISE_LANES,
    bindings: [
      reads("counts", "u32"),
      ...sources.map((_, f) => reads(`src${f}`, "u32")),
      writes("dst", "u32"),
    ],
    body: wgsl`
      let i = ${GROUP_XY} * ${ELEMENTWISE_LANES} + lane;
      // Rows before the first source.
      var before = 0u;
      for (var p = 0u; p < ${sources[0]}; p++) { before += counts[p]; }
      let start0 = before * ${rowWords};
      ${copied}`,
  });
}

/**
 * A part of a reduce-scatter's exchange of rows: copies the rows for this rank from each source, which has rows for
 * every group rank. Bindings: `counts` u32 [group rank], the rows for each; `groupRank` u32 [1]; `dst`, written, and
 * `src0`, `src1`, … of the group ranks `sources`. Its grid is `elementwiseGrid(words of the rank's rows)`.
 */
export function swapRows(o: GatherRowsOptions): Kernel {
  invariant(o.sources.length <= SOURCES, "at most four sources");
  const { name, sources, rowWords } = o;
  return elementwise({
    name,
    count: wgsl`counts[groupRank[0]] * ${rowWords}`,
    bindings: [
      reads("counts", "u32"),
      reads("groupRank", "u32"),
      ...sources.map((_, f) => reads(`src${f}`, "u32")),
      writes("dst", "u32"),
    ],
    body: wgsl`
      let me = groupRank[0];
      let words = counts[me] * ${rowWords};
      // Rows for earlier group ranks.
      var before = 0u;
      for (var p = 0u; p < me; p++) { before += counts[p]; }
      let from = before * ${rowWords} + i;
      ${
      sources.map((source, f) =>
        wgsl`dst[${source} * words + i] = src${f}[from];`
      )
    }`,
  });
}
