/**
 * Contractions with batch axes and a packed right operand, whose words are consecutive along the contracted axis or
 * along the columns of the result. Along k, each element is decoded once for all rows of a lane.
 */

import { foldGrid, type Grid } from "../../../spec/kernel/make.ts";
import { range } from "../../../spec/range.ts";
import type { Size } from "../../../spec/size.ts";
import type { Kernel, KernelText } from "../kernel.ts";
import { GROUP_XZ, kernelOf, wgsl } from "../kernel.ts";
import { blockedSum } from "../pieces/blocked_sum.ts";
import {
  BATCH,
  type Batches,
  type BatchesOptions,
  leftAt,
  ofResult,
  partsOf,
  rightOf,
  rowsFrom,
  startsOf,
} from "./batch_tile.ts";
import { u } from "./left.ts";
import { addProducts, allSums, registersOf } from "./products.ts";
import { indicesOfTerms, rightAt, termsOf, wordsAlongK } from "./right.ts";
import { scalesOfBlock } from "./scales.ts";
import { rowsAcross } from "./batches_across.ts";

/** Creates the kernel. */
export function contractBatches(options: BatchesOptions): Kernel {
  const o = { ...options, ...rightOf(options) };
  const first = wgsl`
    let first = ${GROUP_XZ} * ${rowsOf(o)};
    let end = ${o.rows};
    let batch = group.y / ${partsOf(o)};
    let first_column = (group.y % ${
    partsOf(o)
  } * ${o.lanes} + lane) * ${o.each};`;
  return kernelOf({
    name: `${o.name}_packed`,
    workgroupSize: o.lanes,
    bindings: o.bindings,
    body: wgsl`
      ${first}
      if (first < end) { ${o.along === "k" ? rowsAlong(o) : rowsAcross(o)} }`,
  });
}

/** The grid for a number of rows. */
export function batchesGrid(
  options: BatchesOptions,
  { batches, rows }: { readonly batches: number; readonly rows: Size },
): Grid {
  const o = { ...options, ...rightOf(options) };
  const [x, z] = foldGrid({ ceilDiv: [rows, rowsOf(o)] });
  return [x, batches * partsOf(o), z];
}

/** Rows of a workgroup. */
function rowsOf({ along, tile }: BatchesOptions): number {
  return along === "k" ? tile.rows : tile.most;
}

/** One row of a lane, or several. */
function rowsAlong(o: Batches): KernelText {
  const { rows } = o.tile;
  return wgsl`
    if (end - first < 2) { ${ofRows(o, 1)} } else { ${ofRows(o, rows)} }`;
}

/** `rows` rows of a lane from row `first` on: their sums and epilogues. */
function ofRows(o: Batches, rows: number): KernelText {
  const first = u("first");
  return wgsl`
    ${rowsFrom(first, rows)}
    ${sumsAlongWords(o, rows)}
    ${
    range(rows).map((r) =>
      ofResult(o, { first, r, c: 0, column: u("first_column") })
    )
  }`;
}

/** Sums of a column, whose words are along k. Reads after the last column are allowed and unused. */
function sumsAlongWords(o: Batches, rows: number): KernelText {
  const { right, k, segments } = o;
  const all = range(rows);
  const terms = termsOf(right);
  const { loaded, values } = terms.length === 1
    ? { loaded: rightAt(right, 0), values: () => [] }
    : wordsAlongK(right, 0, [0]);
  const add = wgsl`
    ${indicesOfTerms(right)}
    ${loaded}
    ${
    terms.flatMap(({ prefix, k }, n) => [
      ...values(n),
      ...leftAt(o, { prefix, k: u(k), rows: all }),
      ...addProducts(right, all, { prefixes: [prefix] }),
    ])
  }`;
  return wgsl`
    ${
    o.weightRow(
      { batch: BATCH, outer: u("first_column") },
      (row) => startsOf(o, row),
    )
  }
    ${
    blockedSum(registersOf(all, allSums(right)), {
      length: k,
      segments,
      terms: terms.length,
      before: (start) => wgsl`${scalesOfBlock(right, 0, { start })}`,
    }, add)
  }`;
}
