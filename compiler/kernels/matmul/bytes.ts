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
import type { FactorPart, Header } from "./bytes_decoder.ts";
import {
  letBlocks,
  letBytes,
  letFactor,
  letTwoFactors,
  operandsOf,
} from "./bytes_weights.ts";
import { HEADER_WORDS } from "../pieces/block.ts";
import { range } from "../../../spec/range.ts";
import {
  addedParts,
  addSums,
  finishAll,
  registersOf,
  rowsFrom,
  SCALE_WORDS,
  type SumName,
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
    ${
    operands.flatMap(sumsOf).map((sums) => {
      const { columns, weight } = sums;
      const { i, together, sumOf, block } = weight;
      const inPart = o.k / sumOf / parts;
      const run = weight.runOf?.(inPart) ?? 0;
      const inRun = run > 0 && block!.sums > 1;
      const scales = scalesOfPart(o, sums, inPart);
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
      return addedParts(o, {
        parts,
        totals: registersOf("part", sums),
        body: wgsl`
          let first_sum = part_number * ${inPart};
          ${scales?.load}
          ${loop}`,
      });
    })
  }
    ${finishAll(o, rows)}`;
}

/** What is loaded before a part of a sum, and the factors of its sums. */
interface ScalesOfPart {
  readonly load: KernelText;
  of(part: FactorPart, at: SumName): KernelText;
}

/** The scales of a part of a sum, loaded together along k. Undefined if they are not adjacent. */
function scalesOfPart(
  o: BytesMatmul,
  { weight, columns }: Sums,
  inPart: number,
): ScalesOfPart | undefined {
  const { inside, perScale, sumOf, scalesPerWord, hasOffsets } = weight;
  const { lanes } = teamsOf(o);
  const [c = 0] = columns;
  if (inside !== "k") return undefined;
  if (weight.storeHeader) return headersOfPart(o, { weight, columns }, inPart);
  const parts = ["scales", "offsets"] as const;
  const used = hasOffsets ? parts : parts.slice(0, 1);
  // Workgroup memory has room for one of the two.
  const others = columns.length > 1 ||
    operandsOf(o).some(({ storeHeader }) => storeHeader);
  const sums = perScale / sumOf;
  const count = inPart / sums;
  // Two of them share a word, also if a part starts with the second.
  const inPairs = scalesPerWord === 2 && o.k / perScale % 2 === 0;
  const loaded = count + (inPairs ? count % 2 : 0);
  if (
    others || !Number.isInteger(count) || scalesPerWord > 2 ||
    used.length * loaded * lanes > SCALE_WORDS
  ) return undefined;
  const groupOf = (n: KernelText) => sums === 1 ? n : wgsl`${n} / ${sums}`;
  const first = groupOf(wgsl`first_sum`);
  const index = (group: KernelText) =>
    wgsl`(${group} - first_scale) * ${lanes} + lane_column`;
  const load = inPairs
    ? wgsl`
      for (var scale = first_scale; scale < first_scale + ${loaded}; scale += 2) {
        ${letTwoFactors(o, weight, { c, pair: wgsl`(scale / 2)` })}
        ${
      [0, 1].map((half) =>
        wgsl`part_scales[${
          index(wgsl`(scale + ${half})`)
        }] = ${`scales${half}`}[${c}];`
      )
    }
      }`
    : wgsl`
      for (var scale = first_scale; scale < first_scale + ${count}; scale++) {
        let n = scale * ${sums};
        ${letBlocks(weight, { columns, sum: wgsl`n` })}
        ${
      used.map((part) =>
        wgsl`
        ${letFactor(weight, { name: `one_${part}`, c, n: wgsl`n`, part })}
        ${`part_${part}`}[${index(wgsl`scale`)}] = ${`one_${part}`}[${c}];`
      )
    }
      }`;
  return {
    load: wgsl`
      ${
      used.map((part) =>
        wgsl`var<workgroup> ${`part_${part}`}: array<f32, ${loaded * lanes}>;`
      )
    }
      let first_scale = ${loaded > count ? wgsl`${first} / 2 * 2` : first};
      ${load}`,
    of: (part, { name, n }) =>
      wgsl`let ${name}[${c}] = ${`part_${part}`}[${index(groupOf(n))}];`,
  };
}

/** The first words of the blocks of a part of a sum. Undefined if they are too many. */
function headersOfPart(
  o: BytesMatmul,
  { weight, columns }: Pick<Sums, "weight" | "columns">,
  inPart: number,
): ScalesOfPart | undefined {
  const { lanes } = teamsOf(o);
  const { sums } = weight.block!;
  const [c = 0] = columns;
  if ((Math.ceil(inPart / sums) + 1) * HEADER_WORDS * lanes > SCALE_WORDS) {
    return undefined;
  }
  const header = (block: KernelText): Header => ({
    array: "part_header",
    index: (word) =>
      wgsl`((${block} - first_sum / ${sums}) * ${HEADER_WORDS} + ${word}) * ${lanes} + lane_column`,
  });
  return {
    load: wgsl`
      var<workgroup> part_header: array<u32, ${SCALE_WORDS}>;
      let end_block = (first_sum + ${inPart + sums - 1}) / ${sums};
      for (var block = first_sum / ${sums}; block < end_block; block++) {
        ${letBlocks(weight, { columns, sum: wgsl`(block * ${sums})` })}
        ${weight.storeHeader!(c, header(wgsl`block`))}
      }`,
    of: (part, at) =>
      letFactor(weight, {
        ...at,
        c,
        part,
        header: header(wgsl`${at.n} / ${sums}`),
      }),
  };
}
