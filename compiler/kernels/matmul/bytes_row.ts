/**
 * Matrix multiplication of bytes for one row, with weights in blocks along k as in files. Lanes have consecutive blocks
 * instead of columns, so that weights are read as one stream. The terms of sums are stored in workgroup memory, where
 * lanes of columns add them in order.
 */

import { Q8_BLOCK } from "../../../spec/weights/activations.ts";
import { addAsTree } from "../../../spec/numerics.ts";
import { SHARED_WORDS } from "../../../spec/kernel/make.ts";
import { declareEach } from "../../../spec/kernel/registers.ts";
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
import { letBytes, letFactor, operandsOf } from "./bytes_weights.ts";
import { addSums, registersOf } from "./bytes_sums.ts";
import { rowByVectors, WORDS } from "./bytes_vectors.ts";

/** Terms that are loaded together. */
const TERMS = 4;

/** Lanes of a vector: all vectors of a longer team would read the first of their blocks before the second. */
function vectorOf(o: BytesMatmul): number {
  const { lanes } = teamsOf(o);
  const { vector = lanes } = o.tile;
  return lanes % vector === 0 ? vector : lanes;
}

/**
 * Number of blocks of the row in workgroup memory: so many that the blocks of all lanes are consecutive, also if they
 * belong to two columns.
 */
function storedBlocks(o: BytesMatmul): number {
  const lanes = vectorOf(o);
  const blocks = o.k / Q8_BLOCK;
  return blocks % lanes === 0 ? blocks : blocks + lanes;
}

/** Whether one row is multiplied in this way: blocks have one sum of one term, and memory is large enough. */
export function isByBlocks(o: BytesMatmul): boolean {
  const lanes = vectorOf(o);
  const blocks = o.k / Q8_BLOCK;
  const operands = operandsOf(o);
  const [first] = operands;
  const words = storedBlocks(o) * (WORDS + 2) +
    operands.length * blocks * lanes;
  return blocks >= lanes && words <= SHARED_WORDS &&
    operands.every((weight) =>
      weight.inside === "k" && weight.block?.sums === 1 &&
      weight.block.unit === 1 &&
      !weight.hasOffsets && !weight.storeHeader &&
      weight.left === first!.left
    );
}

/** The row `first`, by all columns of a workgroup. */
export function rowByBlocks(o: BytesMatmul): KernelText {
  const lanes = vectorOf(o);
  const operands = operandsOf(o);
  return rowByVectors(o, {
    lanes,
    stored: storedBlocks(o),
    arrays: operands.map(({ i }) =>
      wgsl`var<workgroup> ${`terms${i}`}: array<f32, ${
        lanes * o.k / Q8_BLOCK
      }>;`
    ),
    storeRow: storeRow(o, operands[0]!),
    store: operands.map((weight) => storeTerms(o, weight)),
    add: operands.map((weight) => addTerms(o, weight)),
  });
}

/** Stores the quantized row, the words of blocks with equal numbers next to each other. */
function storeRow(o: BytesMatmul, { i, left }: BytesOperand): KernelText {
  const lanes = vectorOf(o);
  const [blocks, stored] = [o.k / Q8_BLOCK, storedBlocks(o)];
  const rest = blocks % lanes;
  const copy = (block: KernelText, to: KernelText) =>
    wgsl`
      row_scales[${to}] = ${left}[scale_at${i}[0] + ${block}];
      row_sums[${to}] = ${left}[sum_at${i}[0] + ${block}];
      for (var word = 0u; word < ${WORDS}; word++) {
        row_codes[word * ${stored} + (${to})] = ${left}[word_at${i}[0] + (${block}) * ${WORDS} + word];
      }`;
  const at = wgsl`from + lane_column`;
  const last = wgsl`${blocks - rest} + lane_column`;
  return wgsl`
    for (var from = 0u; from < ${blocks - rest}; from += ${lanes}) {
      ${copy(at, at)}
    }
    ${
    rest > 0 && wgsl`
      if (lane_column < ${rest}) { ${copy(last, last)} }
      ${copy(wgsl`lane_column`, wgsl`${blocks} + lane_column`)}`
  }`;
}

/** Stores the terms of a weight in the columns of a part, column by column. */
function storeTerms(o: BytesMatmul, weight: BytesOperand): KernelText {
  const { i, block } = weight;
  const lanes = vectorOf(o);
  const [blocks, stored] = [o.k / Q8_BLOCK, storedBlocks(o)];
  const expert = o.grouped ? wgsl`expert * ${o.columns}` : wgsl`0u`;
  const sums = { rows: 1, weight, columns: [0] };
  const at = wgsl`start + lane_column`;
  return wgsl`
    let first_block${i} = (${expert} + part_column) * ${blocks};
    for (var vector = 0u; vector < ${blocks}; vector++) {
      let start = vector * ${lanes} % ${blocks};
      let block_at${i}[0] = first_block${i} * ${
    block!.layout.bytes
  } + (vector * ${lanes} + lane_column) * ${block!.layout.bytes};
      ${declareEach(registersOf("part", sums))}
      ${
    addSums(o, sums, {
      n: wgsl`vector`,
      codes: (word, part) => codeWord(weight, word, part),
      rows: {
        scale: () => wgsl`row_scales[${at}]`,
        sum: () => wgsl`row_sums[${at}]`,
        word: (_, inSums) => wgsl`row_codes[${inSums} * ${stored} + (${at})]`,
      },
      words: letBytes(weight, {
        c: 0,
        sum: wgsl`vector`,
        word: wgsl`word`,
      }),
      // In a loop, because the range of its loads is then checked once for all lanes.
      factors: (part, { name, n }) =>
        wgsl`
        var ${name}[0] = 0.0;
        for (var one = 0u; one < 1; one++) {
          ${letFactor(weight, { name: `${name}_of`, c: 0, n, part, next: 0 })}
          ${name}[0] = ${`${name}_of`}[0];
        }`,
    })
  }
      ${`terms${i}`}[vector * ${lanes} + lane_column] = part${i}[0][0];
    }`;
}

/** Adds the terms of a lane's column into sum<i>[0][0]: those of all parts at the same time. */
function addTerms(o: BytesMatmul, { i }: BytesOperand): KernelText {
  const blocks = o.k / Q8_BLOCK;
  const parts = range(partsOf(o));
  const inPart = blocks / parts.length;
  const together = inPart - inPart % TERMS;
  const part = (p: number) => `part${i}_${p}`;
  const add = parts.map((p) =>
    wgsl`${part(p)} += ${`terms${i}`}[lane_column * ${blocks} + n + ${
      p * inPart
    }];`
  );
  return wgsl`
    ${parts.map((p) => wgsl`var ${part(p)} = 0.0;`)}
    for (var n = 0u; n < ${together}; n++) { ${add} }
    ${
    together < inPart &&
    wgsl`for (var n = ${together}u; n < ${inPart}; n++) { ${add} }`
  }
    let sum${i}[0][0] = ${
    addAsTree(
      parts.map((p) => wgsl`${part(p)}`),
      (a, b) => wgsl`(${a} + ${b})`,
    )
  };`;
}
