/** One element of a packed weight, as f32: its code, scale and offset, loaded by layout. */

import type { StoredDType } from "../../../spec/dtype.ts";
import {
  add,
  div,
  loadStored,
  mul,
  rem,
  u32,
} from "../../../spec/kernel/build.ts";
import { expr } from "../../../spec/kernel/text/resolve.ts";
import { type KernelText, wgsl } from "../../../spec/kernel/text/text.ts";
import type { Expr } from "../../../spec/kernel/tree.ts";
import type { BlockScales } from "../../../spec/weights/blocks.ts";
import {
  type PackedDType,
  type Packing,
  type ScaleKind,
  SCALES,
} from "../../../spec/weights/packed.ts";
import { blockCode, blockFactor } from "../../kernels/pieces/block.ts";
import { decoderOf, packedElement } from "../../kernels/pieces/decode.ts";
import { type BlockPacking, byLayout } from "../../kernels/pieces/layout.ts";

/** Buffers of a packed weight. */
export interface PackedBuffers {
  readonly codes: string;
  readonly scales: string;
  readonly offsets?: string | undefined;
  /** Factors of the scales of a row. */
  readonly factors?: string | undefined;
}

/** An element of a packed weight in a kernel under construction. */
export interface PackedAt {
  readonly stored: PackedDType;
  readonly buffers: PackedBuffers;
  /** Its index along the packed axis. */
  readonly k: Expr;
  /** Elements between neighbours along the packed axis. */
  readonly stride: number;
  /** Its index in the weight, with `per` elements along the packed axis as one. Default: all of them. */
  groupAt(per?: number): Expr;
  /** The index of its row: without the packed axis. */
  row(): Expr;
  /** Returns the binding of a buffer. */
  read(buffer: string): string;
  /** Computes a value once. */
  bind(value: Expr): Expr;
  /** Returns the expression of a text with the names of the bindings. */
  resolve(text: KernelText): Expr;
}

/** Returns the element, times its scale and plus its offset. */
export function packedElementAt(at: PackedAt): Expr {
  return byLayout(at.stored, {
    words: (packing) => elementInWord(at, packing),
    blocks: (packing) => elementInBlock(at, packing),
  });
}

function elementInWord(
  { stored, buffers, k, groupAt, row, read, bind }: PackedAt,
  { perWord, perScale, scale }: Packing,
): Expr {
  const load = (buffer: string, dtype: StoredDType, per?: number) =>
    loadStored(read(buffer), dtype, groupAt(per));
  const { codes, scales, offsets, factors } = buffers;
  const word = bind(load(codes, "u32", perWord));
  const shift = mul(rem(k, u32(perWord)), u32(32 / perWord));
  const decoder = decoderOf(stored);
  const { stored: scaleType, beforeZero }: ScaleKind = SCALES[scale];
  const factor = bind(expr`${
    decoder.scale(
      load(scales, scaleType, perScale),
      factors === undefined
        ? undefined
        : loadStored(read(factors), "f32", row()),
    )
  }`);
  return packedElement(stored, {
    bits: bind(expr`${word} >> ${shift}`),
    factor,
    offset: offsets === undefined ? undefined : expr`${
      decoder.offset(
        load(offsets, beforeZero ? "u32" : "f32", perScale),
        factor,
      )
    }`,
  });
}

function elementInBlock(
  { stored, buffers, k, stride, groupAt, read, bind, resolve }: PackedAt,
  { block, inWords }: BlockPacking,
): Expr {
  const { elements, bytes, group } = block;
  const nth = groupAt(elements);
  const from = bind(
    inWords
      ? add(
        mul(div(nth, u32(stride)), u32(stride * bytes / 4)),
        rem(nth, u32(stride)),
      )
      : mul(nth, u32(bytes)),
  );
  const index = bind(rem(k, u32(elements)));
  const binding = read(buffers.codes);
  const at = { binding, from, ...inWords ? { stride } : {} };
  const sum = bind(div(index, u32(group)));
  const factor = (part: BlockScales) =>
    resolve(blockFactor(block, part, {
      ...at,
      sum,
      flushes: true,
      header: (word) => wgsl`bytesAt(${binding}, ${from} + ${4 * word})`,
    }));
  return packedElement(stored, {
    bits: bind(resolve(blockCode(block, { ...at, index }))),
    factor: factor(block.scales),
    offset: block.offsets && factor(block.offsets),
  });
}
