/** GGUF blocks, with codes, scales and offsets, in a matrix multiplication of bytes. */

import { Q8_BLOCK } from "../../../spec/weights/activations.ts";
import type { BlockScales } from "../../../spec/weights/blocks.ts";
import { wgsl } from "../kernel.ts";
import {
  blockFactor,
  type BlockWords,
  blockWords,
  HEADER_WORDS,
  type InBlock,
} from "../pieces/block.ts";
import type { BlockPacking } from "../pieces/layout.ts";
import type { BlockOperand, BytesDecoder, Header } from "./bytes_decoder.ts";
import {
  type BytesForm,
  type BytesMatmulOptions,
  indexOf,
  isGuarded,
  partsOf,
} from "./bytes_operands.ts";

/** Minimum sums of a run for a loop of their own. */
const MIN_RUN = 2;

/** The blocks of a weight. */
interface BlocksOfWeight extends BlockOperand {
  readonly o: BytesMatmulOptions;
  readonly weight: BytesForm;
  readonly codes: BlockWords;
}

/** The decoder of a weight in blocks. */
export function bytesInBlocks(
  o: BytesMatmulOptions,
  weight: BytesForm,
  { block: layout, inWords }: BlockPacking,
): BytesDecoder {
  const { sign, sumOf } = weight;
  const pairs = o.k / Q8_BLOCK / partsOf(o) % 2 === 0;
  const codes = blockWords(layout, { sign, pairs });
  const block: BlockOperand = {
    layout,
    sums: layout.elements / sumOf,
    unit: inWords ? 4 : 1,
  };
  const blocks: BlocksOfWeight = { ...block, o, weight, codes };
  const { above, together, words, parts } = codes;
  return {
    above,
    together,
    words,
    parts,
    hasOffsets: layout.offsets !== undefined,
    scalesPerWord: 1,
    block,
    load: ({ c, word, inRun }) => {
      const first = wgsl`run_in_block${weight.i}`;
      return codes.load(
        { ...sumAt(blocks, c), ...inRun ? { first } : {} },
        word,
      );
    },
    bytes: (stored, word) => codes.of(stored, word),
    factor: ({ c, next, part, header }) => {
      const found = sumAt(blocks, c, next);
      return blockFactor(layout, layout[part]!, {
        ...found,
        flushes: isGuarded(o),
        header: (word) =>
          header
            ? wgsl`${header.array}[${header.index(word)}]`
            : wgsl`bytesAt(${found.binding}, ${found.from} + ${4 * word})`,
      });
    },
    // f16 has no tiny numbers, also in 32 bits.
    mayBeTiny: (part) => layout[part]!.factor === "e8m0",
    locate: (at) => locate(blocks, at),
    ...hasHeader(layout)
      ? {
        storeHeader: (c: number, header: Header) =>
          storeHeader(blocks, c, header),
      }
      : {},
    ...inWords ? { runOf: (inPart: number) => runOf(blocks, inPart) } : {},
  };
}

/** Whether scales are in the first words of blocks, which lanes load together. */
function hasHeader({ scales: { integers } }: {
  readonly scales: BlockScales;
}): boolean {
  return integers !== undefined && "six" in integers;
}

/** The sum of `locate` in the block of a column. `next`: 1 for the sum after it. */
function sumAt(
  { o, weight: { i, binding, inside }, unit, sums }: BlocksOfWeight,
  c: number,
  next = 0,
): InBlock {
  return {
    binding,
    from: wgsl`block_at${i}[${c}]`,
    ...unit === 4 ? { stride: inside === "k" ? 1 : o.columns } : {},
    sum: sums === 1
      ? wgsl`0u`
      : next === 0
      ? wgsl`in_block${i}`
      : wgsl`(in_block${i} + 1)`,
  };
}

function locate(
  { o, weight, layout: { bytes, elements }, sums, unit }: BlocksOfWeight,
  { columns, sum, run }: Parameters<NonNullable<BytesDecoder["locate"]>>[0],
): ReturnType<NonNullable<BytesDecoder["locate"]>> {
  const { i } = weight;
  const each = o.k / elements * bytes / unit;
  const n = wgsl`${sums === 1 ? sum : wgsl`${sum} / ${sums}`} * ${
    bytes / unit
  }`;
  return wgsl`
    ${
    sums > 1 &&
    wgsl`let ${run ? `run_in_block${i}` : `in_block${i}`} = ${sum} % ${sums};`
  }
    ${
    columns.map((c) =>
      wgsl`let block_at${i}[${c}] = ${indexOf(o, weight, { each, c, n })};`
    )
  }`;
}

function storeHeader(
  blocks: BlocksOfWeight,
  c: number,
  { array, index }: Header,
): ReturnType<typeof locate> {
  const { binding, from } = sumAt(blocks, c);
  return wgsl`
    for (var header_word = 0u; header_word < ${HEADER_WORDS}; header_word++) {
      ${array}[${
    index(wgsl`header_word`)
  }] = bytesAt(${binding}, ${from} + header_word * 4);
    }`;
}

/** Sums of a part whose loads have indices linear in their number. 0: runs are too short, or do not divide the part. */
function runOf(
  { sums, codes: { run } }: BlocksOfWeight,
  inPart: number,
): number {
  if (sums === 1) return inPart;
  const common = inPart % run === 0 ? run : run % inPart === 0 ? inPart : 0;
  return common < MIN_RUN ? 0 : common;
}
