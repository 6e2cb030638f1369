/** Rows of f32 in the formats of exchanges, and back. See `spec/wire.ts`. */

import { Q8_NAN } from "../../spec/weights/activations.ts";
import { packBits } from "../../spec/kernel/build.ts";
import {
  FP8_BLOCK,
  FP8_ZERO,
  type WireFormat,
  wireWords,
} from "../../spec/wire.ts";
import type {
  Binding,
  Expr,
  Hole,
  Kernel,
  KernelText,
  Stmt,
} from "./kernel.ts";
import { elementwise, expr, INDEX, local, wgsl } from "./kernel.ts";
import { decoderOf } from "./pieces/decode.ts";

/** Rows of a length in a format. */
export interface WireRows {
  readonly format: WireFormat;
  readonly length: number;
}

/** Element `element` of row `row` of the encoded rows in `binding`, f32. */
export function encodedElement(
  binding: string,
  { format, length }: WireRows,
  { row, element }: { readonly row: Hole; readonly element: Hole },
): KernelText {
  const words = wireWords(format, length);
  const word = (index: Hole) => wgsl`${binding}[${row} * ${words} + ${index}]`;
  if (format === "bf16") {
    const pair = word(wgsl`(${element} >> 1)`);
    return wgsl`bitcast<f32>((${pair} >> ((${element} & 1) * 16)) << 16)`;
  }
  const four = word(wgsl`(${element} >> 2)`);
  const code = wgsl`(${four} >> ((${element} & 3) * 8))`;
  const scales = Math.ceil(length / 4);
  const scale = word(wgsl`(${scales} + ${element} / ${FP8_BLOCK})`);
  return wgsl`${decode(code)} * bitcast<f32>(${scale})`;
}

/** The value of the E4M3 code in the lowest bits. */
function decode(code: Hole): KernelText {
  return decoderOf("fp8x128").element(code);
}

/** Rows to round. */
interface RoundedRows extends WireRows {
  readonly name: string;
  /** The number of rows, u32. */
  readonly rows: Expr;
  readonly bindings: readonly Binding[];
  /** The f32 element `i` of a row. */
  load(row: Expr, i: Expr): Expr;
}

/** Rows to encode. */
export interface EncodeOptions extends RoundedRows {
  /** Written, u32 [row, `wireWords`]. */
  readonly to: string;
  /** The row in `to`. Default: the same. */
  rowTo?(row: Expr): Expr;
}

/** Invocations per row of `encodeRows` and of `roundRows`: one per word of bf16, one per block of FP8. */
export function wireUnits({ format, length }: WireRows): number {
  return format === "bf16"
    ? Math.ceil(length / 2)
    : Math.ceil(length / FP8_BLOCK);
}

const [ROW, J] = [local("row", "u32"), local("j", "u32")];

/** Encodes rows. Its grid is `elementwiseGrid(rows * wireUnits)`. */
export function encodeRows(o: EncodeOptions): Kernel {
  const { format, length, to } = o;
  const words = wireWords(format, length);
  const start = wgsl`let at = ${o.rowTo?.(ROW) ?? ROW} * ${words};`;
  if (format === "bf16") {
    return ofUnits(
      o,
      wgsl`
      ${start}
      var pair = 0u;
      for (var j = 2 * unit; j < ${endOf(length, wgsl`2 * unit + 2`, 2)}; j++) {
        let value = ${o.load(ROW, J)};
        pair |= ${packBits("bf16", local("value", "f32"))} << ((j & 1) * 16);
      }
      ${to}[at + unit] = pair;`,
    );
  }
  return ofUnits(
    o,
    wgsl`
    ${start}
    ${scaleOfBlock(o)}
    for (var word = first / 4; word < (end + 3) / 4; word++) {
      var codes = 0u;
      for (var j = word * 4; j < ${endOf(length, wgsl`word * 4 + 4`, 4)}; j++) {
        ${codeOf(o)}
        codes |= code << ((j & 3) * 8);
      }
      ${to}[at + word] = codes;
    }
    ${to}[at + (${Math.ceil(length / 4)} + unit)] = scale;`,
  );
}

/** Rows to round in place of an exchange. */
export interface RoundOptions extends RoundedRows {
  /** Stores element `i` of a row. */
  store(row: Expr, i: Expr, value: Expr): readonly Stmt[];
}

/** Rounds rows to the numbers that encoding preserves. Its grid is `elementwiseGrid(rows * wireUnits)`. */
export function roundRows(o: RoundOptions): Kernel {
  const { format, length } = o;
  if (format === "bf16") {
    const bits = packBits("bf16", local("value", "f32"));
    return ofUnits(
      o,
      wgsl`
      for (var j = 2 * unit; j < ${endOf(length, wgsl`2 * unit + 2`, 2)}; j++) {
        let value = ${o.load(ROW, J)};
        ${o.store(ROW, J, expr`bitcast<f32>(${bits} << 16)`)}
      }`,
    );
  }
  const value = expr`${decode(local("code", "u32"))} * bitcast<f32>(${
    local("scale", "u32")
  })`;
  return ofUnits(
    o,
    wgsl`
    ${scaleOfBlock(o)}
    for (var j = first; j < end; j++) {
      ${codeOf(o)}
      ${o.store(ROW, J, value)}
    }`,
  );
}

/** Executes `body` for each `unit` of each `row`. */
function ofUnits(o: RoundedRows, body: KernelText): Kernel {
  const units = wireUnits(o);
  return elementwise({
    name: o.name,
    count: wgsl`${o.rows} * ${units}`,
    bindings: o.bindings,
    body: wgsl`
      let row = i / ${units};
      let unit = i % ${units};
      ${body}`,
  });
}

/** The end of a part of a row; rows that consist of equal parts need no minimum. */
function endOf(length: number, end: KernelText, part: number): KernelText {
  return length % part === 0 ? end : wgsl`min(${end}, ${length}u)`;
}

/** Declares the range of a block, its largest magnitude, `zero`, `inverse` and the bits of its scale. */
function scaleOfBlock(o: RoundedRows): KernelText {
  return wgsl`
    let first = unit * ${FP8_BLOCK};
    let end = ${endOf(o.length, wgsl`first + ${FP8_BLOCK}`, FP8_BLOCK)};
    var largest = 0u;
    for (var j = first; j < end; j++) {
      largest = max(largest, bitcast<u32>(${o.load(ROW, J)}) & 0x7fffffffu);
    }
    let none = largest >= 0x7f800000u;
    let zero = none || largest < ${FP8_ZERO}u;
    let more = select(8u, 7u, (largest & 0x7fffffu) > 0x600000u);
    let exponent = select((largest >> 23) - more, 127u, zero);
    let inverse = bitcast<f32>((254 - exponent) << 23);
    let scale = select(select(exponent << 23, 0u, zero), ${Q8_NAN}u, none);`;
}

/** Declares `code`, the E4M3 code of element `j`: to nearest, ties to even. */
function codeOf(o: RoundedRows): KernelText {
  return wgsl`
    let scaled = bitcast<u32>(${o.load(ROW, J)} * inverse);
    let size = scaled & 0x7fffffffu;
    let normal = ((size + (0x7ffffu + ((size >> 20) & 1))) >> 20) - ${120 << 3};
    let tiny = size < ${121 << 23}u;
    let steps = select(0.0, round(bitcast<f32>(size) * 512.0), tiny);
    let magnitude = select(normal, u32(steps), tiny);
    let code = select(magnitude | ((scaled >> 24) & 0x80u), 0u, zero);`;
}

/** Encoded rows to decode. */
export interface DecodeOptions extends WireRows {
  readonly name: string;
  /** The number of decoded rows, u32. */
  readonly rows: Expr;
  readonly bindings: readonly Binding[];
  /** The encoded rows, u32 [row, `wireWords`]. */
  readonly from: string;
  /** The encoded row of a decoded one. */
  rowFrom(row: Expr): Expr;
  /** Stores element `i` of all decoded rows. */
  store(i: Expr, value: Expr): readonly Stmt[];
}

/** Decodes rows. Its grid is `elementwiseGrid(rows * length)`. */
export function decodeRows(o: DecodeOptions): Kernel {
  const { length } = o;
  const element = encodedElement(o.from, o, {
    row: local("source", "u32"),
    element: local("element", "u32"),
  });
  return elementwise({
    name: o.name,
    count: wgsl`${o.rows} * ${length}`,
    bindings: o.bindings,
    body: wgsl`
      let row = i / ${length};
      let element = i % ${length};
      let source = ${o.rowFrom(ROW)};
      let value = ${element};
      ${o.store(INDEX, local("value", "f32"))}`,
  });
}
