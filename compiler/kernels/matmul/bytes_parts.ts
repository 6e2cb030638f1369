/**
 * Matrix multiplication of bytes for one row, with weights in blocks of several sums along k as in files. Lanes have
 * the parts of a column's sum instead of columns, so that weights are read as one stream: each lane has one part, or
 * the parts of one block, and a vector then has several columns. Part sums are stored in workgroup memory, where lanes
 * of columns add them.
 */

import { Q8_BLOCK } from "../../../spec/weights/activations.ts";
import { SHARED_WORDS } from "../../../spec/kernel/make.ts";
import { declareEach } from "../../../spec/kernel/registers.ts";
import { addAsTree } from "../../../spec/numerics.ts";
import { range } from "../../../spec/range.ts";
import { teamsOf } from "../../tuning/lanes.ts";
import type { KernelText } from "../kernel.ts";
import { wgsl } from "../kernel.ts";
import {
  type BytesMatmul,
  type BytesOperand,
  codeWord,
  partsOf,
} from "./bytes_operands.ts";
import type { Header } from "./bytes_decoder.ts";
import { letBytes, letFactor, operandsOf } from "./bytes_weights.ts";
import { addSums, registersOf } from "./bytes_sums.ts";
import { rowByVectors, WORDS } from "./bytes_vectors.ts";
import { HEADER_WORDS } from "../pieces/block.ts";

/** The share of a lane in a column: some blocks, or the parts of a sum that one block contains. */
interface Share {
  readonly blocks: number;
  readonly parts: number;
  /** Sums of a part. */
  readonly sums: number;
}

function shareOf(o: BytesMatmul, { block }: BytesOperand): Share {
  const sums = o.k / Q8_BLOCK / partsOf(o);
  const blocks = Math.max(1, sums / block!.sums);
  return { blocks, parts: blocks * block!.sums / sums, sums };
}

/** Blocks of the row in workgroup memory: lanes with the same share of different columns have copies. */
function storedBlocks(o: BytesMatmul, weight: BytesOperand): number {
  return o.k / Q8_BLOCK * shareOf(o, weight).parts;
}

/** Whether one row is multiplied in this way: a vector has as many lanes as a column has parts. */
export function isByParts(o: BytesMatmul): boolean {
  const operands = operandsOf(o);
  const [first] = operands;
  const parts = partsOf(o);
  return o.tile.vector === parts && teamsOf(o).lanes % parts === 0 &&
    operands.every((weight) => {
      const { inside, block, left } = weight;
      if (inside !== "k" || block?.unit !== 1 || !weight.storeHeader) {
        return false;
      }
      const share = shareOf(o, weight);
      return left === first!.left && Number.isInteger(share.blocks) &&
        Number.isInteger(share.parts);
    }) &&
    wordsOf(o) <= SHARED_WORDS;
}

/** Words of workgroup memory. */
function wordsOf(o: BytesMatmul): number {
  const parts = partsOf(o);
  const operands = operandsOf(o);
  return operands.reduce(
    (sum, weight) =>
      sum + parts * (2 * parts + HEADER_WORDS * shareOf(o, weight).blocks),
    storedBlocks(o, operands[0]!) * (WORDS + 2),
  );
}

/** The row `first`, by all columns of a workgroup. */
export function rowByParts(o: BytesMatmul): KernelText {
  const lanes = partsOf(o);
  const operands = operandsOf(o);
  const [first] = operands;
  return rowByVectors(o, {
    lanes,
    stored: storedBlocks(o, first!),
    arrays: operands.map((weight) =>
      wgsl`
      var<workgroup> ${`header${weight.i}`}: array<u32, ${
        shareOf(o, weight).blocks * HEADER_WORDS * lanes
      }>;
      var<workgroup> ${`parts${weight.i}`}: array<f32, ${lanes * lanes}>;
      var<workgroup> ${`transposed${weight.i}`}: array<f32, ${lanes * lanes}>;`
    ),
    storeRow: storeRow(o, first!),
    store: wgsl`
      for (var of_column = 0u; of_column < ${lanes}; of_column += ${
      shareOf(o, first!).parts
    }) {
        ${operands.map((weight) => storeParts(o, weight))}
      }`,
    add: operands.map((weight) => addParts(o, weight)),
  });
}

/** Stores the quantized row, the words of a lane's share apart by the number of lanes. */
function storeRow(o: BytesMatmul, weight: BytesOperand): KernelText {
  const { i, left } = weight;
  const lanes = partsOf(o);
  const { parts, sums } = shareOf(o, weight);
  return wgsl`
    for (var n = 0u; n < ${sums * parts}; n++) {
      let block = lane_column % ${lanes / parts} * ${sums * parts} + n;
      row_scales[n * ${lanes} + lane_column] = ${left}[scale_at${i}[0] + block];
      row_sums[n * ${lanes} + lane_column] = ${left}[sum_at${i}[0] + block];
      for (var word = 0u; word < ${WORDS}; word++) {
        row_codes[(n * ${WORDS} + word) * ${lanes} + lane_column] = ${left}[word_at${i}[0] + block * ${WORDS} + word];
      }
    }`;
}

/** Stores the sums of the parts of a vector's columns of a weight. */
function storeParts(o: BytesMatmul, weight: BytesOperand): KernelText {
  const { i, together } = weight;
  const lanes = partsOf(o);
  const { layout: { bytes, elements }, sums: ofBlock } = weight.block!;
  const { blocks, parts, sums } = shareOf(o, weight);
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
    o.k / elements * bytes
  };
    for (var block = 0u; block < ${blocks}; block++) {
      let in_block${i} = 0u;
      ${letBlock(wgsl`block`)}
      ${weight.storeHeader!(0, header(wgsl`block`))}
    }
    for (var of_share = 0u; of_share < ${parts}; of_share++) {
      ${declareEach(registersOf("part", all))}
      for (var s = 0u; s < ${sums}; s += ${together}) {
        let n = of_share * ${sums} + s;
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
      words: letBytes(weight, { c: 0, sum: wgsl`n`, word: wgsl`word` }),
      factors: (part, found) =>
        letFactor(weight, {
          ...found,
          c: 0,
          part,
          header: header(wgsl`${found.n} / ${ofBlock}`),
        }),
    })
  }
      }
      ${`parts${i}`}[(of_column + of_share) * ${lanes} + lane_column] = part${i}[0][0];
    }`;
}

/** Adds the parts of a lane's column into sum<i>[0][0]. */
function addParts(o: BytesMatmul, weight: BytesOperand): KernelText {
  const { i } = weight;
  const lanes = partsOf(o);
  const { parts } = shareOf(o, weight);
  // The column's vector and part of a share, and the lane of the share.
  const vector = wgsl`lane_column / ${parts} * ${parts} + n % ${parts}`;
  const lane = wgsl`lane_column % ${parts} * ${lanes / parts} + n / ${parts}`;
  return wgsl`
    for (var n = 0u; n < ${lanes}; n++) {
      ${`transposed${i}`}[n * ${lanes} + lane_column] = ${`parts${i}`}[(${vector}) * ${lanes} + ${lane}];
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
