/**
 * Matrix multiplication of quantized rows and packed weights: integer products of bytes with exact block sums, and one
 * f32 sum of blocks in the order of `spec/numerics.md`.
 *
 * Invocations compute tiles of rows x columns, as in `matmul`. If workgroups load weights together, a panel stores
 * their bytes in workgroup memory, four per word.
 */

import { matmulShape, teamsOf } from "../../tuning/lanes.ts";
import type { Kernel, KernelText } from "../kernel.ts";
import { GROUP_XZ, local, madeOnce, makeKernel, wgsl } from "../kernel.ts";
import { groupedTile } from "./matmul.ts";
import { u } from "./left.ts";
import { u32 } from "../../../spec/kernel/build.ts";
import { tileTaken } from "../../tuning/tile.ts";
import {
  type BytesMatmul,
  type BytesMatmulOptions,
  type BytesOperand,
  codeWord,
  columnsOf,
  partsOf,
} from "./bytes_operands.ts";
import { declareColumn, loadedScales } from "./bytes_scales.ts";
import { letBlocks, letBytes, letFactor, operandsOf } from "./bytes_weights.ts";
import { range } from "../../../spec/range.ts";
import {
  addedParts,
  addSums,
  finishAll,
  registersOf,
  rowsFrom,
  type Sums,
} from "./bytes_sums.ts";
import { rowsByPanels } from "./bytes_panels.ts";
import { isByParts, rowByParts } from "./bytes_parts.ts";
import { isByBlocks, rowByBlocks } from "./bytes_row.ts";

/** Describes a matrix multiplication of bytes. Its grid is `matmulGrid`. */
export function matmulBytes(options: BytesMatmulOptions): Kernel {
  const used = options.epilogue(
    {
      row: u("row"),
      column: u("column"),
      expert: options.grouped ? u("expert") : u32(0),
    },
    options.weights.map((_, i) => local(`result${i}`, "f32")),
  );
  const o = { ...options, tile: tileTaken(options), used };
  return madeOnce([o, options.leftRow(u("row"))], () => kernelFor(o));
}

function kernelFor(o: BytesMatmul): Kernel {
  const inside = wgsl`
    ${columnsOf(o)}
    ${rowsOfTile(o)}`;
  const first = wgsl`${GROUP_XZ} * ${matmulShape(o).rows}`;
  return makeKernel({
    name: o.name,
    workgroupSize: o.tile.lanes,
    bindings: o.bindings,
    body: o.grouped ? groupedTile(o.grouped.tiles, inside) : wgsl`
      let first = ${first};
      let end = ${o.rows};
      if (first < end) { ${inside} }`,
  });
}

/** Few rows have separate loops: the first team loads weights for itself, which takes little time along k. */
function rowsOfTile(o: BytesMatmul): KernelText {
  const { rows, right } = o.tile;
  const { teams, lanes } = teamsOf(o);
  const panels = right === "workgroup";
  const alongK = o.weights.every(({ inside }) => inside === "k");
  const few = panels ? [1, 2, 4, ...alongK ? [8] : []] : [1];
  const full = panels ? rowsByPanels(o) : wgsl`
      let team_first = first + lane / ${lanes} * ${rows};
      if (team_first < end) { ${rowsTimesColumns(o, rows)} }`;
  return few.filter((height) => height < rows * (panels ? teams : 1))
    .reduceRight(
      (others, height) =>
        wgsl`
          if (end - first < ${height + 1}) {
            ${
          height === 1 && isByBlocks(o)
            ? rowByBlocks(o)
            : height === 1 && isByParts(o)
            ? rowByParts(o)
            : wgsl`
            if (lane < ${lanes}) {
              let team_first = first;
              ${rowsTimesColumns(o, height)}
            }`
        }
          } else {
            ${others}
          }`,
      full,
    );
}

/** Computes `rows` rows from `team_first` on, for the columns of a lane, which loads its own words. */
function rowsTimesColumns(o: BytesMatmul, rows: number): KernelText {
  const { columns } = o.tile;
  const parts = partsOf(o);
  const operands = operandsOf(o);
  const sumsOf = (weight: BytesOperand): readonly Sums[] =>
    // Reads a line along k to its end before the next memory.
    weight.inside === "k"
      ? range(columns).map((c) => ({ rows, weight, columns: [c] }))
      : [{ rows, weight, columns: range(columns) }];
  return wgsl`
    ${rowsFrom(o, rows)}
    ${declareColumn(o)}
    ${
    operands.flatMap(sumsOf).map((sums) => {
      const { columns, weight } = sums;
      const { i, together, sumOf, block } = weight;
      const inPart = o.k / sumOf / parts;
      const run = weight.runOf?.(inPart) ?? 0;
      const inRun = run > 0 && block!.sums > 1;
      const scales = loadedScales(o, sums, inPart);
      const added = (before: KernelText) =>
        addSums(o, sums, {
          n: wgsl`n`,
          before,
          codes: (word, part) => codeWord(weight, word, part),
          words: wgsl`${
            columns.map((c) =>
              letBytes(weight, { c, sum: wgsl`n`, word: wgsl`word`, inRun })
            )
          }`,
          factors: (part, at) =>
            scales?.of(part, at) ??
              wgsl`${
                columns.map((c) => letFactor(weight, { ...at, c, part }))
              }`,
        });
      const inBlock = (n: KernelText) =>
        added(letBlocks(weight, { columns, sum: n }));
      const loop = inRun
        ? wgsl`
          for (var run = first_sum; run < first_sum + ${inPart}; run += ${run}) {
            ${letBlocks(weight, { columns, sum: wgsl`run`, run: true })}
            for (var s = 0u; s < ${run}; s += ${together}) {
              let n = run + s;
              ${added(wgsl`let in_block${i} = run_in_block${i} + s;`)}
            }
          }`
        : run > 0
        ? wgsl`
          for (var s = 0u; s < ${inPart}; s += ${together}) {
            let n = first_sum + s;
            ${inBlock(wgsl`n`)}
          }`
        : wgsl`
          for (var n = first_sum; n < first_sum + ${inPart}; n += ${together}) {
            ${inBlock(wgsl`n`)}
          }`;
      return wgsl`
        ${scales?.before}
        ${
        addedParts(o, {
          parts,
          totals: registersOf("part", sums),
          body: wgsl`
          let first_sum = part_number * ${inPart};
          ${scales?.load}
          ${loop}`,
        })
      }`;
    })
  }
    ${finishAll(o, rows)}`;
}
