/** Codes, scales and offsets of GGUF blocks in kernels, as `spec/blocks.ts` describes them. */

import type { Block, BlockScales, Plane } from "../../../spec/blocks.ts";
import { type Hole, type KernelText, wgsl } from "../../../spec/kernel/text.ts";
import { type Bytes, bytesOf } from "./bytes.ts";

/** Words that contain the six-bit scales and minimums of a block, and both factors, from its first byte on. */
export const HEADER_WORDS = 4;

/** A sum in a block. */
export interface InBlock {
  readonly binding: string;
  /** The first byte of the block. */
  readonly from: Hole;
  /** The number of a sum in the block. */
  readonly sum: Hole;
}

/** An element of a block. */
export interface ElementInBlock extends Pick<InBlock, "binding" | "from"> {
  /** The number of the element in the block. */
  readonly index: Hole;
}

/** The words of a sum's codes. */
export interface BlockWords {
  /** Sums whose codes share words: one after the other. */
  readonly together: 1 | 2;
  /** Stored words, and words of four bytes in each: of consecutive parts of the sums. */
  readonly words: number;
  readonly parts: 1 | 2;
  /** The offset of bytes from integers. */
  readonly above: number;
  /** The stored words of a word, plane by plane, each with the bits of four neighbours lowest. */
  load(at: InBlock, word: Hole): readonly KernelText[];
  /** A word's bytes from the names of its stored words, part by part. */
  of(stored: readonly Hole[], word: Hole): readonly KernelText[];
}

/** Codes of a block as bytes. `pairs`: two sums that share words are read together, from an even one on. */
export function blockWords(
  block: Block,
  { sign, pairs }: {
    readonly sign: "signed" | "unsigned";
    readonly pairs: boolean;
  },
): BlockWords {
  const { element, codes, group, above } = block;
  const [{ bits, stripe }, ...more] = codes as readonly [Plane, ...Plane[]];
  const together = pairs && bits === 4 && stripe === group ? 2 : 1;
  const parts = bits === 4 && stripe < group * together ? 2 : 1;
  const bytes: Bytes = above === undefined && element !== "uint8"
    ? bytesOf(element, sign)
    : { of: (word) => [wgsl`${word}`], above: above ?? 0 };
  const words = group * together / 4 / parts;
  return {
    together,
    words,
    parts,
    above: bytes.above,
    load: (at, word) =>
      codes.map((plane) =>
        plane.stripe === 1
          ? wgsl`bytesAt(${at.binding}, ${at.from} + ${plane.at})`
          : planeWord(block, plane, { ...at, word, together })
      ),
    of: ([low, ...high], word) => {
      if (more.length === 0) return bytes.of(low!).slice(0, parts);
      return Array.from({ length: parts }, (_, part) => {
        const first = wgsl`((${
          part === 0 ? low! : wgsl`(${low!} >> 4)`
        }) & 0x0f0f0f0fu)`;
        return more.reduce((sum, { stripe, bits }, i) => {
          const number = wgsl`(${word} * 4 + ${part * words * 4})`;
          const text = stripe === 1
            ? spread(high[i]!, number)
            : wgsl`((${high[i]!} >> ${together === 2 ? bits * part : 0}) & ${
              bits === 1 ? 0x01010101 : 0x03030303
            }u)`;
          return wgsl`(${sum} | (${text} << 4))`;
        }, first);
      });
    },
  };
}

/** The code of one element, in the lowest bits. */
export function blockCode(
  { codes, bytes, above = 0 }: Block,
  { binding, from, index }: ElementInBlock,
): KernelText {
  let low = 0;
  const code = codes.map(({ at, bits, stripe }) => {
    const round = stripe * 8 / bits;
    const byte =
      wgsl`(${at}u + ${index} / ${round} * ${stripe} + ${index} % ${stripe})`;
    // No load goes beyond the block.
    const first = wgsl`min(${byte}, ${bytes - 4}u)`;
    const shift =
      wgsl`((${byte} - ${first}) * 8 + ${index} % ${round} / ${stripe} * ${bits})`;
    const number =
      wgsl`((bytesAt(${binding}, ${from} + ${first}) >> ${shift}) & ${
        (1 << bits) - 1
      })`;
    const text = wgsl`(${number} << ${low})`;
    low += bits;
    return text;
  }).reduce((sum, text) => wgsl`(${sum} | ${text})`);
  return above > 0 ? wgsl`(${code} - ${above}u)` : code;
}

/** The word of a plane with the bits of four neighbours of a sum, lowest first. */
function planeWord(
  { group }: Block,
  { at, bits, stripe }: Plane,
  { binding, from, sum, word, together }: InBlock & {
    readonly word: Hole;
    readonly together: 1 | 2;
  },
): KernelText {
  const round = stripe * 8 / bits;
  if (round <= group) {
    const bytes = group / round * stripe;
    return wgsl`bytesAt(${binding}, ${from} + (${at} + ${sum} * ${bytes}) + ${word} * 4)`;
  }
  // Several sums share bytes.
  const [inRound, inStripe] = [round / group, stripe / group];
  const stored =
    wgsl`bytesAt(${binding}, ${from} + (${at} + ${sum} / ${inRound} * ${stripe} + ${sum} % ${inStripe} * ${group}) + ${word} * 4)`;
  return inRound === together
    ? stored
    : wgsl`(${stored} >> (${sum} % ${inRound} / ${inStripe} * ${bits}))`;
}

/** Four bits of a word, from bit `number` on, each in a byte. */
function spread(word: Hole, number: Hole): KernelText {
  return wgsl`((((${word} >> ${number}) & 15) * 0x00204081u) & 0x01010101u)`;
}

/** The scale or the offset of a sum. `header`: the first words of a block with six-bit integers. */
export function blockFactor(
  { bytes }: Block,
  { at, factor, integers, negative }: NonNullable<Block["offsets"]>,
  found: InBlock & { readonly header: (word: number) => KernelText },
): KernelText {
  const { binding, from, sum, header } = found;
  const six = integers && "six" in integers ? integers : undefined;
  // No load goes beyond the block.
  const first = Math.min(at, bytes - 4);
  const word = six
    ? header(at >> 2)
    : wgsl`bytesAt(${binding}, ${from} + ${first})`;
  const bitsBefore = six ? 8 * (at & 3) : 8 * (at - first);
  const value = factor === "e8m0"
    ? wgsl`bitcast<f32>(((${word} >> ${bitsBefore}) & 255) << 23u)`
    : bitsBefore === 16
    ? wgsl`unpack2x16float(${word}).y`
    : wgsl`unpack2x16float(${word}).x`;
  const integer = integers === undefined
    ? undefined
    : "six" in integers
    ? sixBits(integers.six, sum, header)
    : numberIn(integers, found);
  const product = integer ? wgsl`${value} * f32(${integer})` : value;
  return negative ? wgsl`-(${product})` : product;
}

/** The six-bit scale (0) or minimum (1) of a sum. */
function sixBits(
  which: 0 | 1,
  sum: Hole,
  header: (word: number) => KernelText,
): KernelText {
  const shift = wgsl`((${sum} & 3) * 8)`;
  const word = header(1 + which);
  const low = wgsl`((${word} >> ${shift}) & 63)`;
  const high = wgsl`(((${header(3)} >> (${shift} + ${
    4 * which
  })) & 15) | (((${word} >> (${shift} + 6)) & 3) << 4))`;
  return wgsl`select(${high}, ${low}, ${sum} < 4)`;
}

/** The integer of a sum, signed. */
function numberIn(
  integers: Extract<
    NonNullable<BlockScales["integers"]>,
    { readonly planes: readonly Plane[] }
  >,
  { binding, from, sum }: InBlock,
): KernelText {
  const { planes, above } = integers;
  if (planes[0]!.bits === 8) {
    // From three bytes before, because the last ones end the block.
    return wgsl`(i32(bytesAt(${binding}, ${from} + ${
      planes[0]!.at - 3
    } + ${sum})) >> 24)`;
  }
  let low = 0;
  const parts = planes.map(({ at, bits }) => {
    const inByte = 8 / bits;
    const byte =
      wgsl`bytesAt(${binding}, ${from} + ${at} + ${sum} / ${inByte})`;
    const shift = wgsl`(${sum} % ${inByte} * ${bits})`;
    const text = wgsl`(((${byte} >> ${shift}) & ${(1 << bits) - 1}) << ${low})`;
    low += bits;
    return text;
  });
  const all = parts.reduce((sum, part) => wgsl`(${sum} | ${part})`);
  return wgsl`(i32(${all}) - ${above}i)`;
}
