/** Operands of a matrix multiplication of bytes: the locations of weights and quantized rows, and their products. */

import {
  Q8_BLOCK,
  q8PartsOf,
  q8SumOf,
} from "../../../spec/weights/activations.ts";
import { invariant } from "../../../spec/errors.ts";
import { EXACT } from "../../../spec/numerics.ts";
import {
  type PackedDType,
  type Packing,
  PACKINGS,
} from "../../../spec/weights/packed.ts";
import type { TiledMatmul } from "../../tuning/tile.ts";
import type { BytesArithmetic } from "../../tuning/table.ts";
import { teamsOf } from "../../tuning/lanes.ts";
import type { Binding, Expr, KernelText, Stmt } from "../kernel.ts";
import { wgsl } from "../kernel.ts";
import { type QuantizedLayout, quantizedRow } from "../quantize.ts";
import type { BytesDecoder } from "./bytes_decoder.ts";

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

/** A weight and the properties of its elements. */
export interface BytesForm extends BytesWeight {
  /** Its number among the weights. */
  readonly i: number;
  readonly sign: "signed" | "unsigned";
  /** Factor from integers to elements. */
  readonly step: number;
  /** Elements of an integer sum, and elements that share a scale. */
  readonly sumOf: 16 | 32;
  readonly perScale: number;
  /** Whether the parts of a word are next to each other in quantized rows, or parts of the sum. */
  readonly alternate: boolean;
}

/** A weight with the decoder of its layout. */
export interface BytesOperand extends BytesForm, BytesDecoder {}

/** The form of quantized rows that a weight requires. */
export function quantizedLayoutOf(stored: PackedDType): QuantizedLayout {
  const packing: Packing = PACKINGS[stored];
  const sumOf = q8SumOf(packing);
  invariant(sumOf, "weights are integers");
  const alternate = packing.perWord === 8;
  return { order: alternate ? "alternate" : "consecutive", sumOf };
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
