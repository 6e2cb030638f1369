/** Codes, scales and offsets of GGUF blocks in kernels, as `spec/weights/blocks.ts` describes them. */

import type {
  Block,
  BlockScales,
  Plane,
} from "../../../spec/weights/blocks.ts";
import {
  type Hole,
  type KernelText,
  wgsl,
} from "../../../spec/kernel/text/text.ts";
import { type Bytes, elementBytes } from "./bytes.ts";

/** Largest stripe of a plane of one word per sum. */
const ONE_WORD = 4;

/** Words that contain the six-bit scales and minimums of a block, and both factors, from its first byte on. */
export const HEADER_WORDS = 4;

/** The location of a block. */
export interface BlockAt {
  readonly binding: string;
  /** The first byte of the block; its first word, if it has words. */
  readonly from: Hole;
  /** Words between consecutive words of a block in words. Absent: it has bytes. */
  readonly stride?: number | undefined;
  /**
   * Loads four bytes of the block. `index` counts its bytes, or its words if it has words. Default: from the binding.
   */
  readonly load?: (index: KernelText) => KernelText;
}

/** A sum in a block. */
export interface InBlock extends BlockAt {
  /** The number of a sum in the block. */
  readonly sum: Hole;
  /** The first of its run of sums. Default: unknown. */
  readonly first?: Hole | undefined;
}

/** An element of a block. */
export interface ElementInBlock extends BlockAt {
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
  /** Sums of a run, which is a block or a part of it. Indices of loads are linear in the number of a sum in its run. */
  readonly run: number;
  /** The offset of bytes from integers. */
  readonly above: number;
  /** The stored words of a word, plane by plane, each with the bits of four neighbours lowest. */
  load(at: InBlock, word: Hole): readonly KernelText[];
  /** A word's bytes from the names of its stored words, part by part. */
  of(stored: readonly Hole[], word: Hole): readonly KernelText[];
}

/** Numbers, each times a number of bytes: a multiple of words, or a divisor for the word that contains them. */
type Terms = readonly (readonly [n: Hole, bytes: number])[];

/** Four bytes of a block from byte `at` on, plus `terms`, plus `word` words: whole words if the block has words. */
function loadAt(
  { binding, from, stride, load }: BlockAt,
  { at, terms = [], word }: {
    readonly at: number;
    readonly terms?: Terms;
    readonly word?: Hole;
  },
): KernelText {
  const unit = stride === undefined ? 1 : 4;
  const inner = terms.reduce(
    (sum, [n, bytes]) =>
      bytes === unit
        ? wgsl`${sum} + ${n}`
        : bytes < unit
        ? wgsl`${sum} + ${n} / ${unit / bytes}`
        : wgsl`${sum} + ${n} * ${bytes / unit}`,
    wgsl`${at / unit}u`,
  );
  const index = terms.length > 0 ? wgsl`(${inner})` : inner;
  if (load) return load(index);
  if (stride === undefined) {
    return word === undefined
      ? wgsl`bytesAt(${binding}, ${from} + ${index})`
      : wgsl`bytesAt(${binding}, ${from} + ${index} + ${word} * 4)`;
  }
  const words = word === undefined ? index : wgsl`(${index} + ${word})`;
  return wgsl`${binding}[${from} + ${words} * ${stride}]`;
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
  const bytes: Omit<Bytes, "step"> = above === undefined && element !== "uint8"
    ? elementBytes(element, sign)
    : { of: (word) => [wgsl`${word}`], above: above ?? 0 };
  const words = group * together / 4 / parts;
  const rounds = more.map(({ stripe, bits }) => stripe * 8 / bits / group);
  return {
    together,
    words,
    parts,
    run: Math.min(
      block.elements / group,
      ...rounds.filter((sums) => sums > together),
    ),
    above: bytes.above,
    load: (at, word) =>
      codes.map((plane) =>
        plane.stripe <= ONE_WORD
          ? loadAt(at, { at: plane.at })
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
          const shift = stripe === ONE_WORD
            ? wgsl`(${word} + ${part * words})`
            : wgsl`${together === 2 ? bits * part : 0}`;
          const text = stripe === 1
            ? spread(high[i]!, number)
            : wgsl`((${high[i]!} >> ${shift}) & ${
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
  { index, ...found }: ElementInBlock,
): KernelText {
  let low = 0;
  const code = codes.map(({ at, bits, stripe }) => {
    const round = stripe * 8 / bits;
    const byte =
      wgsl`(${at}u + ${index} / ${round} * ${stripe} + ${index} % ${stripe})`;
    // No load goes beyond the block.
    const first = found.stride === undefined
      ? wgsl`min(${byte}, ${bytes - 4}u)`
      : wgsl`(${byte} / 4 * 4)`;
    const stored = loadAt(found, { at: 0, terms: [[first, 1]] });
    const shift =
      wgsl`((${byte} - ${first}) * 8 + ${index} % ${round} / ${stripe} * ${bits})`;
    const number = wgsl`((${stored} >> ${shift}) & ${(1 << bits) - 1})`;
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
  { sum, first = sum, word, together, ...found }: InBlock & {
    readonly word: Hole;
    readonly together: 1 | 2;
  },
): KernelText {
  const round = stripe * 8 / bits;
  const load = (terms: Terms) => loadAt(found, { at, terms, word });
  if (round <= group) return load([[sum, group / round * stripe]]);
  // Several sums share bytes.
  const [inRound, inStripe] = [round / group, stripe / group];
  const stored = found.stride === undefined
    ? load([
      [wgsl`${sum} / ${inRound}`, stripe],
      [wgsl`${sum} % ${inStripe}`, group],
    ])
    : load([
      inRound === together
        ? [sum, stripe / inRound]
        : [wgsl`${first} / ${inRound}`, stripe],
    ]);
  return inRound === together
    ? stored
    : wgsl`(${stored} >> (${sum} % ${inRound} / ${inStripe} * ${bits}))`;
}

/** Four bits of a word, from bit `number` on, each in a byte. */
export function spread(word: Hole, number: Hole): KernelText {
  return wgsl`((((${word} >> ${number}) & 15) * 0x00204081u) & 0x01010101u)`;
}

/** The scale or the offset of a sum. */
export function blockFactor(
  { bytes }: Block,
  { at, factor, apart, integers, negative }: NonNullable<Block["offsets"]>,
  found: InBlock & {
    /** The first words of a block with six-bit integers. */
    readonly header: (word: number) => KernelText;
    /** Whether the device may treat subnormal f16 numbers as 0. */
    readonly flushes: boolean;
  },
): KernelText {
  const { sum, header, flushes } = found;
  const six = integers && "six" in integers ? integers : undefined;
  // No load goes beyond the block.
  const first = found.stride === undefined ? Math.min(at, bytes - 4) : at & ~3;
  const word = six ? header(at >> 2) : loadAt(found, { at: first });
  const bitsBefore = six ? 8 * (at & 3) : 8 * (at - first);
  const shift = apart === undefined
    ? wgsl`${bitsBefore}`
    : wgsl`(${sum} * ${8 * apart})`;
  const value = factor === "f32"
    ? wgsl`bitcast<f32>(${word})`
    : factor === "e8m0"
    ? wgsl`bitcast<f32>(((${word} >> ${shift}) & 255) << 23u)`
    : flushes || found.stride !== undefined
    ? halfOf(wgsl`(${word} << (16u - ${shift}))`, flushes)
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

/**
 * The finite f16 in the upper half of a word. As an f32, its bits are too small by 2^112. `flushes`: a subnormal number
 * is not that f32, but 1 + m / 1024 less 1, times 2^-14.
 */
export function halfOf(word: KernelText, flushes: boolean): KernelText {
  const bits = wgsl`(u32(i32(${word}) >> 3) & 0x8fffe000u)`;
  if (!flushes) return wgsl`(bitcast<f32>(${bits}) * ${2 ** 112})`;
  const small = wgsl`((${bits} & 0x0f800000u) == 0)`;
  const added = wgsl`select(${112 << 23}u, ${113 << 23}u, ${small})`;
  const taken = wgsl`select(0.0, ${2 ** -14}, ${small})`;
  const magnitude =
    wgsl`(bitcast<f32>((${bits} & 0x7fffffffu) + ${added}) - ${taken})`;
  return wgsl`bitcast<f32>(bitcast<u32>(${magnitude}) | (${bits} & 0x80000000u))`;
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
  { sum, ...found }: InBlock,
): KernelText {
  const { planes, above } = integers;
  const { at, bits } = planes[0]!;
  if (bits === 8 && found.stride !== undefined) {
    const word = loadAt(found, { at, terms: [[sum, 1]] });
    return wgsl`(i32(${word} << ((3 - ${sum} % 4) * 8)) >> 24)`;
  }
  if (bits === 8) {
    // From three bytes before, because the last ones end the block.
    return wgsl`(i32(${
      loadAt(found, { at: at - 3, terms: [[sum, 1]] })
    }) >> 24)`;
  }
  let low = 0;
  const parts = planes.map(({ at, bits }) => {
    const inByte = 8 / bits;
    const byte = loadAt(found, { at, terms: [[wgsl`${sum} / ${inByte}`, 1]] });
    const shift = wgsl`(${sum} % ${inByte} * ${bits})`;
    const text = wgsl`(((${byte} >> ${shift}) & ${(1 << bits) - 1}) << ${low})`;
    low += bits;
    return text;
  });
  const all = parts.reduce((sum, part) => wgsl`(${sum} | ${part})`);
  return wgsl`(i32(${all}) - ${above}i)`;
}
