/**
 * Matrix multiplication of bytes for one row, with weights in blocks of several sums along k as in files. Lanes have the
 * parts of a column's sum instead of columns, so that weights are read as one stream. Part sums are stored in workgroup
 * memory, where lanes of columns add them.
 */

import { Q8_BLOCK } from "../../spec/activations.ts";
import { SHARED_WORDS } from "../../spec/kernel/make.ts";
import { declareEach } from "../../spec/kernel/registers.ts";
import { addAsTree } from "../../spec/numerics.ts";
import { range } from "../../spec/range.ts";
import { teamsOf } from "../tuning/lanes.ts";
import type { KernelText } from "./kernel.ts";
import { wgsl } from "./kernel.ts";
import {
  type BytesMatmul,
  type BytesOperand,
  codeWord,
  factorAt,
  hasHeader,
  type Header,
  letBytes,
  operandsOf,
  partsOf,
  storeHeader,
} from "./matmul_bytes_operands.ts";
import { addSums, registersOf } from "./matmul_bytes_sums.ts";
import { rowByVectors, WORDS } from "./matmul_bytes_vectors.ts";
import { HEADER_WORDS } from "./pieces/block.ts";

/** Blocks of quantized activations in a part of a sum, and blocks of weights. */
function inPart(
  o: BytesMatmul,
  { block }: BytesOperand,
): { readonly sums: number; readonly blocks: number } {
  const sums = o.k / Q8_BLOCK / partsOf(o);
  return { sums, blocks: sums / (block?.sums ?? 1) };
}

/** Whether one row is multiplied in this way: a vector has the parts of a column, which are whole blocks. */
export function isByParts(o: BytesMatmul): boolean {
  const operands = operandsOf(o);
  const [first] = operands;
  const parts = partsOf(o);
  const words = operands.reduce(
    (sum, weight) =>
      sum + parts * (2 * parts + HEADER_WORDS * inPart(o, weight).blocks),
    o.k / Q8_BLOCK * (WORDS + 2),
  );
  return o.tile.vector === parts && teamsOf(o).lanes % parts === 0 &&
    operands.every((weight) =>
      weight.inside === "k" && weight.block?.unit === 1 && hasHeader(weight) &&
      weight.left === first!.left &&
      Number.isInteger(inPart(o, weight).blocks)
    ) &&
    words <= SHARED_WORDS;
}

/** The row `first`, by all columns of a workgroup. */
export function rowByParts(o: BytesMatmul): KernelText {
  const lanes = partsOf(o);
  const operands = operandsOf(o);
  return rowByVectors(o, {
    lanes,
    stored: o.k / Q8_BLOCK,
    arrays: operands.map((weight) =>
      wgsl`
      var<workgroup> ${`header${weight.i}`}: array<u32, ${
        inPart(o, weight).blocks * HEADER_WORDS * lanes
      }>;
      var<workgroup> ${`parts${weight.i}`}: array<f32, ${lanes * lanes}>;
      var<workgroup> ${`transposed${weight.i}`}: array<f32, ${lanes * lanes}>;`
    ),
    storeRow: storeRow(o, operands[0]!),
    store: wgsl`
      for (var of_column = 0u; of_column < ${lanes}; of_column++) {
        ${operands.map((weight) => storeParts(o, weight))}
      }`,
    add: operands.map((weight) => addParts(o, weight)),
  });
}

/** Stores the quantized row, the words of a lane's part apart by the number of lanes. */
function storeRow(o: BytesMatmul, weight: BytesOperand): KernelText {
  const { i, left } = weight;
  const lanes = partsOf(o);
  const { sums } = inPart(o, weight);
  return wgsl`
    for (var n = 0u; n < ${sums}; n++) {
      let block = lane_column * ${sums} + n;
      row_scales[n * ${lanes} + lane_column] = ${left}[scale_at${i}[0] + block];
      row_sums[n * ${lanes} + lane_column] = ${left}[sum_at${i}[0] + block];
      for (var word = 0u; word < ${WORDS}; word++) {
        row_codes[(n * ${WORDS} + word) * ${lanes} + lane_column] = ${left}[word_at${i}[0] + block * ${WORDS} + word];
      }
    }`;
}

/** Stores the sums of the parts of a column of a weight. */
function storeParts(o: BytesMatmul, weight: BytesOperand): KernelText {
  const { i, together } = weight;
  const lanes = partsOf(o);
  const { layout: { bytes }, sums: ofBlock } = weight.block!;
  const { sums, blocks } = inPart(o, weight);
  const expert = o.grouped ? wgsl`expert * ${o.columns}` : wgsl`0u`;
  const all = { rows: 1, weight, columns: [0] };
  const header = (block: KernelText): Header => ({
    array: `header${i}`,
    index: (word) =>
      wgsl`(${block} * ${HEADER_WORDS} + ${word}) * ${lanes} + lane_column`,
  });
  const letBlock = (block: KernelText) =>
    wgsl`let block_at${i}[0] = first_byte${i} + (lane_column * ${blocks} + ${block}) * ${bytes};`;
  const at = (n: KernelText) => wgsl`(${n}) * ${lanes} + lane_column`;
  return wgsl`
    let first_byte${i} = (${expert} + (part_column + of_column)) * ${
    lanes * blocks * bytes
  };
    for (var block = 0u; block < ${blocks}; block++) {
      let in_block${i} = 0u;
      ${letBlock(wgsl`block`)}
      ${storeHeader(weight, 0, header(wgsl`block`))}
    }
    ${declareEach(registersOf("part", all))}
    for (var n = 0u; n < ${sums}; n += ${together}) {
      let in_block${i} = n % ${ofBlock};
      ${letBlock(wgsl`n / ${ofBlock}`)}
      ${
    addSums(o, all, {
      n: wgsl`n`,
      codes: (word, part) => codeWord(weight, word, part),
      rows: {
        scale: (block) => wgsl`row_scales[${at(block)}]`,
        sum: (n) => wgsl`row_sums[${at(n)}]`,
        word: (word) => wgsl`row_codes[${at(word)}]`,
      },
      words: letBytes(o, weight, { c: 0, sum: wgsl`n`, word: wgsl`word` }),
      factors: (part, found) =>
        factorAt(o, weight, {
          ...found,
          c: 0,
          part,
          header: header(wgsl`${found.n} / ${ofBlock}`),
        }),
    })
  }
    }
    ${`parts${i}`}[of_column * ${lanes} + lane_column] = part${i}[0][0];`;
}

/** Adds the parts of a lane's column into sum<i>[0][0]. */
function addParts(o: BytesMatmul, { i }: BytesOperand): KernelText {
  const lanes = partsOf(o);
  return wgsl`
    for (var n = 0u; n < ${lanes}; n++) {
      ${`transposed${i}`}[n * ${lanes} + lane_column] = ${`parts${i}`}[lane_column * ${lanes} + n];
    }
    let sum${i}[0][0] = ${
    addAsTree(
      range(lanes).map((n) =>
        wgsl`${`transposed${i}`}[${n * lanes}u + lane_column]`
      ),
      (a, b) => wgsl`(${a} + ${b})`,
    )
  };`;
}
