/**
 * Rows of f32 as 8-bit integers with a scale per block of 32, computed with integer arithmetic. See `spec/numerics.md`.
 */

import {
  Q8_BLOCK,
  Q8_LIMITS,
  Q8_NAN,
  Q8_STEP,
} from "../../spec/weights/activations.ts";
import type { Binding, Expr, Kernel } from "./kernel.ts";
import { elementwise, wgsl } from "./kernel.ts";
import { u } from "./matmul/left.ts";

/** The layout of integers, and the elements per sum. */
export interface QuantizedLayout {
  /**
   * `consecutive`: a word has four neighbours. `alternate`: of eight elements, one word has the even ones and the next
   * word the odd ones. This matches the halves of bytes in words of eight elements.
   */
  readonly order: "consecutive" | "alternate";
  /** Elements per sum. */
  readonly sumOf: 16 | 32;
}

/** A quantization of rows. */
export interface QuantizeOptions extends QuantizedLayout {
  readonly name: string;
  /** A superset of the required ones. */
  readonly bindings: readonly Binding[];
  /** Number of 32-element blocks in all rows, u32. */
  readonly blocks: Expr;
  /** Element `j` of a block, f32. */
  at(block: Expr, j: Expr): Expr;
  /** Elements of a row. */
  readonly k: number;
  /** Written, u32: for each row its words, the bits of its scales, and its sums; see `quantizedRow`. */
  readonly to: string;
}

/** The start of each part of a quantized row, and its number of words. */
export function quantizedRow(
  k: number,
  { sumOf }: Pick<QuantizedLayout, "sumOf">,
): { readonly scales: number; readonly sums: number; readonly words: number } {
  const scales = k / 4;
  const sums = scales + k / Q8_BLOCK;
  return { scales, sums, words: sums + k / sumOf };
}

/** One invocation per block. Its grid is `elementwiseGrid(blocks)`. */
export function quantize(o: QuantizeOptions): Kernel {
  const { order, sumOf, to, k } = o;
  const row = quantizedRow(k, o);
  const blocks = k / Q8_BLOCK;
  const value = o.at(u("i"), u("j"));
  const quantized = wgsl`select(i32(round(${value} * inverse)), 0i, zero)`;
  const sums = Q8_BLOCK / sumOf;
  // Each element is shifted into the word from the top.
  const words = order === "consecutive"
    ? wgsl`
      for (var word = first_word; word < first_word + ${sumOf / 4}; word++) {
        var codes = 0u;
        let from = word * 4;
        for (var j = from; j < from + 4; j++) {
          let code = ${quantized};
          codes = (codes >> 8) | (u32(code) << 24);
          sum += code;
        }
        ${to}[words_at + word] = codes;
      }`
    : wgsl`
      for (var word = first_word; word < first_word + ${sumOf / 4}; word += 2) {
        var even = 0u;
        var odd = 0u;
        let from = word * 4;
        for (var j = from; j < from + 8; j++) {
          let code = ${quantized};
          let next = (even >> 8) | (u32(code) << 24);
          even = odd;
          odd = next;
          sum += code;
        }
        ${to}[words_at + word] = even;
        ${to}[words_at + word + 1] = odd;
      }`;
  return elementwise({
    name: o.name,
    count: o.blocks,
    bindings: o.bindings,
    body: wgsl`
      let row = i / ${blocks};
      let block = i % ${blocks};
      let row_at = row * ${row.words};
      let words_at = row_at + block * 8;
      var largest = 0u;
      for (var j = 0u; j < ${Q8_BLOCK}; j++) {
        largest = max(largest, bitcast<u32>(${value}) & 0x7fffffffu);
      }
      let none = largest >= ${Q8_LIMITS.none}u;
      let zero = none || largest < ${Q8_LIMITS.zero}u;
      let exponent = select(largest >> 23, 127u, zero);
      let m = (((largest & 0x7fffffu) | 0x800000u) + 0xffu) >> 8;
      let inverse = f32(0x7f000000u / m) * bitcast<f32>((245 - exponent) << 23);
      let step = f32(m) * bitcast<f32>(${Q8_STEP}u);
      let scale = bitcast<u32>(step * bitcast<f32>((exponent - 15) << 23));
      ${to}[row_at + (${row.scales} + block)] = select(select(scale, 0u, zero), ${Q8_NAN}u, none);
      for (var part = 0u; part < ${sums}; part++) {
        let first_word = part * ${sumOf / 4};
        var sum = 0i;
        ${words}
        ${to}[row_at + (${row.sums} + block * ${sums} + part)] = u32(sum);
      }`,
  });
}
