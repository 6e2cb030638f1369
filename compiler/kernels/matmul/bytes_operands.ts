/**
 * Operands of a matrix multiplication of bytes: the locations of weights, scales and quantized rows, and one integer
 * sum of them.
 */

import {
  Q8_BLOCK,
  q8PartsOf,
  q8SumOf,
} from "../../../spec/weights/activations.ts";
import { invariant } from "../../../spec/errors.ts";
import { EXACT } from "../../../spec/numerics.ts";
import {
  PACKED_ELEMENTS,
  type PackedDType,
  type PackedElement,
  type Packing,
  PACKINGS,
} from "../../../spec/weights/packed.ts";
import type { TiledMatmul } from "../../tuning/tile.ts";
import type { BytesArithmetic } from "../../tuning/table.ts";
import { teamsOf } from "../../tuning/lanes.ts";
import type { Binding, Expr, Hole, KernelText, Stmt } from "../kernel.ts";
import { wgsl } from "../kernel.ts";
import type { Block, BlockScales } from "../../../spec/weights/blocks.ts";
import {
  type BlockWords,
  blockWords,
  HEADER_WORDS,
  type InBlock,
} from "../pieces/block.ts";
import { bytesOf } from "../pieces/bytes.ts";
import { type QuantizedLayout, quantizedRow } from "../quantize.ts";

/** A packed right operand, and the form of the left operand that it requires. */
export interface BytesWeight {
  readonly binding: string;
  readonly stored: PackedDType;
  readonly scales: string;
  readonly offsets?: string;
  /** The innermost axis. Default: n. */
  readonly inside?: "n" | "k";
  /** The binding of rows from `quantize`. */
  readonly left: string;
}

/** A matrix multiplication of quantized rows and packed weights, optionally over groups of rows. */
export interface BytesMatmulOptions extends TiledMatmul {
  readonly k: number;
  readonly name: string;
  readonly bindings: readonly Binding[];
  /** One weight, or several with the same rows. */
  readonly weights: readonly BytesWeight[];
  /** Run-time row count, uniform; not used when grouped. */
  readonly rows: Expr;
  /** The row of the left operand for a row of the result. */
  leftRow(row: Expr): Expr;
  /** Form of byte multiplication. Default: guarded. */
  readonly arithmetic?: BytesArithmetic | undefined;
  /** Uses one result: one sum for each weight. */
  epilogue(
    at: { readonly row: Expr; readonly column: Expr; readonly expert: Expr },
    sums: readonly Expr[],
  ): readonly Stmt[];
}

/** A matrix multiplication and the use of a result: `result<weight>` at `row`, `column`. */
export interface BytesMatmul extends BytesMatmulOptions {
  readonly used: readonly Stmt[];
}

/** A weight and the properties of its packing. */
export interface BytesOperand extends BytesWeight {
  /** Its number among the weights. */
  readonly i: number;
  /** The offset of bytes from integers. */
  readonly above: number;
  readonly sign: "signed" | "unsigned";
  readonly step: number;
  /** Elements of an integer sum, and elements that share a scale. */
  readonly sumOf: 16 | 32;
  readonly perScale: number;
  /** Sums whose codes share words. */
  readonly together: 1 | 2;
  /** Stored words of these sums, and words of bytes in each. */
  readonly words: number;
  readonly parts: number;
  /** Whether the parts of a word are next to each other in quantized rows, or parts of the sum. */
  readonly alternate: boolean;
  /** Whether sums have offsets. */
  readonly hasOffsets: boolean;
  readonly block: BlockOperand | undefined;
  /** Whether the run of a sum is declared. Default: no. */
  readonly inRun?: true;
  /** The bytes of a stored word outside of blocks, part by part. */
  bytesOf(stored: KernelText): readonly KernelText[];
}

/** A block, and its codes. */
interface BlockOperand {
  readonly layout: Block;
  readonly codes: BlockWords;
  /** Sums of a block. */
  readonly sums: number;
  /** Bytes of the units in which it is stored, bytes or words, and units between two of them. */
  readonly unit: 1 | 4;
  readonly stride: number;
}

/** The form of quantized rows that a weight requires. */
export function quantizedLayoutOf(stored: PackedDType): QuantizedLayout {
  const packing: Packing = PACKINGS[stored];
  const sumOf = q8SumOf(packing);
  invariant(sumOf, "weights are integers");
  const alternate = packing.perWord === 8;
  return { order: alternate ? "alternate" : "consecutive", sumOf };
}

/** Whether the bytes of weights are signed. */
function signOf(
  { element }: Packing,
  arithmetic: BytesArithmetic | undefined,
): "signed" | "unsigned" {
  const fits = arithmetic === "pairs" && PACKED_ELEMENTS[element].bits < 8;
  return arithmetic === "unsigned" || fits ? "unsigned" : "signed";
}

/** The weights of a matrix multiplication. */
export function operandsOf(
  options: BytesMatmulOptions,
): readonly BytesOperand[] {
  const { weights, k, arithmetic } = options;
  const pairs = k / Q8_BLOCK / partsOf(options) % 2 === 0;
  return weights.map((weight, i) => {
    const packing: Packing = PACKINGS[weight.stored];
    const sign = signOf(packing, arithmetic);
    const { element, perWord, perScale = k, block: layout } = packing;
    const { step = 1 }: PackedElement = PACKED_ELEMENTS[element];
    const { sumOf, order } = quantizedLayoutOf(weight.stored);
    const codes = layout && blockWords(layout, { sign, pairs });
    const bytes = bytesOf(element, sign);
    return {
      ...weight,
      i,
      above: codes?.above ?? bytes.above,
      sign,
      step,
      sumOf,
      perScale,
      together: codes?.together ?? 1,
      words: codes?.words ?? sumOf / perWord,
      parts: codes?.parts ?? perWord / 4,
      alternate: order === "alternate",
      hasOffsets: layout
        ? layout.offsets !== undefined
        : weight.offsets !== undefined,
      block: layout && codes &&
        {
          layout,
          codes,
          sums: layout.elements / sumOf,
          unit: packing.inWords ? 4 : 1,
          stride: weight.inside === "k" ? 1 : options.columns,
        },
      bytesOf: bytes.of,
    };
  });
}

/** column[c] of the result. Adjacent lanes have adjacent columns. */
export function columnsOf(o: BytesMatmulOptions): KernelText {
  const { lanes } = teamsOf(o);
  const { columns } = o.tile;
  return wgsl`
    let lane_column = lane % ${lanes};
    let first_column = group.y * ${columns * lanes};
    @unroll (c < ${columns}) {
      let column[c] = first_column + ${lanes} * c + lane_column;
    }`;
}

/** Returns the index of a column's entry at `n` along k, with `each` entries per column. */
export function indexOf(
  { grouped, columns }: BytesMatmulOptions,
  { inside }: BytesWeight,
  { each, c, n }: {
    readonly each: number;
    readonly c: number;
    readonly n: KernelText;
  },
): KernelText {
  const expert = grouped ? wgsl`expert * ${columns * each}` : wgsl`0u`;
  const column = wgsl`column[${c}]`;
  return inside === "k"
    ? wgsl`(${expert} + ${column} * ${each} + ${n})`
    : wgsl`(${expert} + ${column} + ${n} * ${columns})`;
}

/**
 * Declares bytes<i>_<part>[c]: the words of bytes of a sum's stored word. The names of `letBlocks` are declared before.
 */
export function letBytes(
  o: BytesMatmulOptions,
  weight: BytesOperand,
  { c, sum, word }: {
    readonly c: number;
    readonly sum: KernelText;
    readonly word: KernelText;
  },
): KernelText {
  const { i, words, parts, block, binding } = weight;
  const each = o.k / (4 * parts);
  const n = wgsl`(${sum} * ${words} + ${word})`;
  const loads = block?.codes.load(blockAt(weight, c), word) ??
    [wgsl`${binding}[${indexOf(o, weight, { each, c, n })}]`];
  const names = loads.map((_, plane) =>
    plane === 0 ? `stored${i}` : `stored${i}_${plane}`
  );
  const stored = names.map((name) => wgsl`${name}[${c}]`);
  const bytes = block?.codes.of(stored, word) ?? weight.bytesOf(stored[0]!);
  return wgsl`
    ${loads.map((load, at) => wgsl`let ${names[at]!}[${c}] = ${load};`)}
    ${bytes.map((text, part) => wgsl`let bytes${i}_${part}[${c}] = ${text};`)}`;
}

/** Whether drivers may fuse products with sums, flush subnormals and ignore the sign of 0. */
export function isGuarded(
  { arithmetic = "guarded" }: Pick<BytesMatmulOptions, "arithmetic">,
): boolean {
  return arithmetic === "guarded";
}

/** Partial sums with the given number of products. */
export function partsOf(
  { k, segments = EXACT.segments }: Pick<BytesMatmulOptions, "k" | "segments">,
): number {
  return q8PartsOf(k / Q8_BLOCK, EXACT.segments / segments);
}

/** The number of a word of quantized rows in its sum, for a part of a stored word. */
export function codeWord(
  { alternate, parts, words }: BytesOperand,
  word: KernelText,
  part: number,
): KernelText {
  return alternate
    ? wgsl`(${word} * ${parts} + ${part})`
    : wgsl`(${word} + ${part * words})`;
}

/** Declares the block of a sum in each column, if the weight has blocks. `run`: the first sum of its run is declared. */
export function letBlocks(
  o: BytesMatmulOptions,
  weight: BytesOperand,
  { columns, sum, run = false }: {
    readonly columns: readonly number[];
    readonly sum: KernelText;
    readonly run?: boolean;
  },
): KernelText {
  const { i, block } = weight;
  if (!block) return wgsl``;
  const { layout: { bytes, elements }, sums, unit } = block;
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

/** The sum of `letBlocks` in the block of a column. `next`: 1 for the sum after it. */
export function blockAt(
  { i, block, binding, inRun }: BytesOperand,
  c: number,
  next = 0,
): InBlock {
  const { unit, stride } = block!;
  return {
    binding,
    from: wgsl`block_at${i}[${c}]`,
    ...unit === 4 ? { stride } : {},
    ...inRun ? { first: wgsl`run_in_block${i}` } : {},
    sum: block!.sums === 1
      ? wgsl`0u`
      : next === 0
      ? wgsl`in_block${i}`
      : wgsl`(in_block${i} + 1)`,
  };
}

/** Whether scales are in the first words of blocks, which lanes load together. */
export function hasHeader({ block }: BytesOperand): boolean {
  const { integers }: Partial<BlockScales> = block?.layout.scales ?? {};
  return integers !== undefined && "six" in integers;
}

/** Stored first words of blocks, in workgroup memory. */
export interface Header {
  readonly array: string;
  index(word: Hole): KernelText;
}

/** Stores the first words of a sum's block. `letBlocks` declares the block. */
export function storeHeader(
  weight: BytesOperand,
  c: number,
  { array, index }: Header,
): KernelText {
  const { binding, from } = blockAt(weight, c);
  return wgsl`
    for (var header_word = 0u; header_word < ${HEADER_WORDS}; header_word++) {
      ${array}[${
    index(wgsl`header_word`)
  }] = bytesAt(${binding}, ${from} + header_word * 4);
    }`;
}

/** The start of a row's integers, scales and sums, <what>_at<i>[r], in the left operand of weight i. */
export function leftStarts(
  o: BytesMatmulOptions,
  weight: BytesOperand,
  rows: number,
): KernelText {
  const { i } = weight;
  const { scales, sums, words } = quantizedRow(o.k, weight);
  return wgsl`
    @unroll (r < ${rows}) {
      let word_at${i}[r] = left_row[r] * ${words};
      let scale_at${i}[r] = word_at${i}[r] + ${scales};
      let sum_at${i}[r] = word_at${i}[r] + ${sums};
    }`;
}

/** A product that no driver fuses with its sum: the sign of an activation's scale is always 0. */
export function term(
  o: BytesMatmulOptions,
  { integer, factor, scale }: {
    readonly integer: KernelText;
    readonly factor: KernelText;
    readonly scale: KernelText;
  },
): KernelText {
  const product = wgsl`f32(${integer}) * (${factor} * bitcast<f32>(${scale}))`;
  return isGuarded(o)
    ? wgsl`bitcast<f32>(bitcast<u32>(${product}) ^ (${scale} & 0x80000000u))`
    : product;
}

/** The product of words of bytes. */
export function product(
  { sign }: Pick<BytesOperand, "sign">,
  weight: KernelText,
  left: KernelText,
): KernelText {
  return sign === "unsigned"
    ? wgsl`dot4U8I8(${weight}, ${left})`
    : wgsl`dot4I8Packed(${weight}, ${left})`;
}
