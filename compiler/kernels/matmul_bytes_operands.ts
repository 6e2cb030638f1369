/**
 * Operands of a matrix multiplication of bytes: the locations of weights, scales and quantized rows, and one integer
 * sum of them.
 */

import { Q8_MIN, q8SumOf } from "../../spec/activations.ts";
import { invariant } from "../../spec/errors.ts";
import {
  PACKED_ELEMENTS,
  type PackedDType,
  type PackedElement,
  type Packing,
  PACKINGS,
} from "../../spec/packed.ts";
import type { TiledMatmul } from "../tuning/tile.ts";
import type { BytesArithmetic } from "../tuning/table.ts";
import { teamsOf } from "../tuning/lanes.ts";
import type { Binding, Expr, KernelText, Stmt } from "./kernel.ts";
import { wgsl } from "./kernel.ts";
import { type Bytes, bytesOf } from "./pieces/bytes.ts";
import { type QuantizedLayout, quantizedRow } from "./quantize.ts";

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
  /** Default: guarded. */
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
  readonly bytes: Bytes;
  readonly step: number;
  /** Elements of an integer sum, and elements that share a scale. */
  readonly sumOf: 16 | 32;
  readonly perScale: number;
  readonly perWord: number;
}

/** The form of quantized rows that a weight requires. */
export function quantizedLayoutOf(stored: PackedDType): QuantizedLayout {
  const packing: Packing = PACKINGS[stored];
  const sumOf = q8SumOf(packing);
  invariant(sumOf, "weights are integers");
  return {
    order: packing.perWord === 8 ? "alternate" : "consecutive",
    sumOf,
  };
}

/** The weights of a matrix multiplication. */
export function operandsOf(
  { weights, k, arithmetic }: BytesMatmulOptions,
): readonly BytesOperand[] {
  return weights.map((weight, i) => {
    const { element, perWord, perScale = k }: Packing = PACKINGS[weight.stored];
    const { step = 1 }: PackedElement = PACKED_ELEMENTS[element];
    return {
      ...weight,
      i,
      bytes: bytesOf(
        element,
        arithmetic === "unsigned" ? "unsigned" : "signed",
      ),
      step,
      sumOf: quantizedLayoutOf(weight.stored).sumOf,
      perScale,
      perWord,
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
function indexOf(
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

/** A word of a weight. */
export function wordOf(
  o: BytesMatmulOptions,
  weight: BytesOperand,
  at: { readonly c: number; readonly n: KernelText },
): KernelText {
  const each = o.k / weight.perWord;
  return wgsl`${weight.binding}[${indexOf(o, weight, { each, ...at })}]`;
}

/** Declares <name>[c]: the factor of the integers of sum `n` of a column. Tiny scales and offsets count as 0. */
export function factorAt(
  o: BytesMatmulOptions,
  weight: BytesOperand,
  { name, c, n, part }: {
    readonly name: string;
    readonly c: number;
    readonly n: KernelText;
    readonly part: "scales" | "offsets";
  },
): KernelText {
  const { perScale, sumOf, step } = weight;
  const each = o.k / perScale;
  const at = perScale === o.k
    ? wgsl`0u`
    : perScale === sumOf
    ? n
    : wgsl`((${n}) / ${perScale / sumOf})`;
  const index = indexOf(o, weight, { each, c, n: at });
  const binding = weight[part]!;
  const scale = {
    f32: wgsl`${binding}[${index}]`,
    u8:
      wgsl`bitcast<f32>(((${binding}[${index} >> 2] >> ((${index} & 3) << 3)) & 255) << 23u)`,
  }[PACKINGS[weight.stored].scale];
  const by = part === "scales" ? step : 1;
  return wgsl`
    let stored_${name}[${c}] = ${by === 1 ? scale : wgsl`${scale} * ${by}`};
    let ${name}[${c}] = select(0.0, stored_${name}[${c}], abs(stored_${name}[${c}]) >= ${Q8_MIN});`;
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
  { arithmetic = "guarded" }: BytesMatmulOptions,
  { integer, factor, scale }: {
    readonly integer: KernelText;
    readonly factor: KernelText;
    readonly scale: KernelText;
  },
): KernelText {
  const product = wgsl`f32(${integer}) * (${factor} * bitcast<f32>(${scale}))`;
  return arithmetic === "guarded"
    ? wgsl`bitcast<f32>(bitcast<u32>(${product}) ^ (${scale} & 0x80000000u))`
    : product;
}

/** The product of words of bytes. */
export function product(
  { arithmetic }: BytesMatmulOptions,
  weight: KernelText,
  left: KernelText,
): KernelText {
  return arithmetic === "unsigned"
    ? wgsl`dot4U8I8(${weight}, ${left})`
    : wgsl`dot4I8Packed(${weight}, ${left})`;
}
