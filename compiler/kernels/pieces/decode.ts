/**
 * Stored weights as f32: 16-bit floats, two per u32, and packed elements that share words along the contracted axis.
 */

import { type FileDType, isHalf } from "../../../spec/dtype.ts";
import {
  IQ4_VALUES,
  PACKED_ELEMENTS,
  type PackedDType,
  type PackedElement,
  type PackedElementName,
  packingOf,
  PACKINGS,
  type ScaleKind,
  type ScaleName,
  SCALES,
} from "../../../spec/weights/packed.ts";
import { range } from "../../../spec/range.ts";
export { unpackHalves } from "../../../spec/kernel/build.ts";
import { expr } from "../../../spec/kernel/text/resolve.ts";
import {
  type Hole,
  type KernelText,
  wgsl,
} from "../../../spec/kernel/text/text.ts";
import type { Expr } from "../../../spec/kernel/tree.ts";

/** Elements of a weight in one word of its binding. */
export function perWord(stored: FileDType): number {
  return isHalf(stored) ? 2 : packingOf(stored)?.perWord ?? 1;
}

/** The float in the lowest four bits (E2M1: sign, two exponent bits, one mantissa bit). Only 0.5 is subnormal. */
function fp4(bits: Hole): KernelText {
  const magnitude = wgsl`(${bits} & 7)`;
  const half = wgsl`${126 << 23}u`;
  const small = wgsl`select(0u, ${half}, ${magnitude} == 1)`;
  const normal = wgsl`(${magnitude} << 22u) + ${half}`;
  return wgsl`bitcast<f32>(((${bits} & 8) << 28u) | select(${normal}, ${small}, ${magnitude} < 2))`;
}

/**
 * The float in the lowest eight bits (E4M3): a normal one is shifted to f32's exponent; a subnormal one is its mantissa
 * times 2^-9.
 */
function fp8(bits: Hole): KernelText {
  const magnitude = wgsl`(${bits} & 127)`;
  const normal = wgsl`bitcast<f32>((${magnitude} << 20u) + ${120 << 23}u)`;
  const small = wgsl`f32(${magnitude}) * ${2 ** -9}`;
  const value = wgsl`select(${normal}, ${small}, ${magnitude} < 8)`;
  return wgsl`bitcast<f32>(((${bits} & 128) << 24u) | bitcast<u32>(${value}))`;
}

/** An entry of a table of 16 small integers, four per word. */
function iq4(bits: Hole): KernelText {
  const words = [0, 1, 2, 3].map((word) =>
    IQ4_VALUES.slice(4 * word, 4 * word + 4).reduce(
      (n, value, i) => n + (value & 255) * 2 ** (8 * i),
      0,
    )
  );
  const [a, b, c, d] = words.map((word) => wgsl`${word}u`);
  const low = wgsl`select(${a!}, ${b!}, (${bits} & 4) != 0)`;
  const high = wgsl`select(${c!}, ${d!}, (${bits} & 4) != 0)`;
  const word = wgsl`select(${low}, ${high}, (${bits} & 8) != 0)`;
  return int8(wgsl`((${word}) >> ((${bits} & 3) * 8))`);
}

function int8(bits: Hole): KernelText {
  return wgsl`f32(i32((${bits} & 255) ^ 128) - 128)`;
}

/** The largest magnitude of the elements of a kind. */
export function largestElement(name: PackedElementName): number {
  const { bits, value, largest }: PackedElement = PACKED_ELEMENTS[name];
  return largest ??
    Math.max(...range(2 ** bits).map((code) => Math.abs(value(code))));
}

/** Decodes the element in the lowest bits to f32. */
const ELEMENTS: {
  readonly [E in PackedElementName]: (bits: Hole) => KernelText;
} = {
  fp4,
  fp8,
  int4: (bits) => wgsl`f32(i32(${bits} & 15) - 8)`,
  int8,
  uint4: (bits) => wgsl`f32(${bits} & 15)`,
  uint8: (bits) => wgsl`f32(${bits} & 255)`,
  iq4,
};

/** Decodes all elements of a word at once, with fewer instructions than one after another. */
export interface WordDecoder {
  /** Precedes the kernel's loops, for all lanes of a workgroup. */
  begin?(lanes: number): KernelText;
  /** Declares the elements of a word, f32, in the order of its bits. */
  elements(word: Hole, names: readonly string[]): KernelText;
}

/** Decodes all elements of a word, divided by a power of two. */
export interface ScaledDecoder extends WordDecoder {
  readonly times: number;
}

/** An entry of a table of the 16 floats: its entries are in separate banks of workgroup memory. */
const FP4_WORD: WordDecoder = {
  begin: (lanes) =>
    wgsl`
    var<workgroup> fp4_values: array<f32, 16>;
    for (var code = lane; code < 16; code += ${lanes}) {
      fp4_values[code] = ${fp4("code")};
    }
    workgroupBarrier();`,
  elements: (word, names) =>
    wgsl`${
      names.map((name, n) => {
        const code = n === 0 ? word : wgsl`(${word} >> ${4 * n}u)`;
        // Nothing is above the last code of a word.
        const low = n === 7 ? code : wgsl`${code} & 15`;
        return wgsl`let ${name} = fp4_values[${low}];`;
      })
    }`,
};

/**
 * Two floats at once, as f16: its exponent has a bias of 15 instead of 1, so they are 2^14 times smaller. 0.5 is
 * subnormal in both formats. Needs no load and two more instructions per float.
 */
const FP4_HALVES: ScaledDecoder = {
  times: 2 ** 14,
  elements: (word, names) => {
    const shifted = (by: number) =>
      by < 0 ? wgsl`(${word} >> ${-by}u)` : wgsl`(${word} << ${by}u)`;
    return wgsl`${
      names.slice(0, 4).map((name, n) => {
        const halves = `${name}_and_${names[n + 4]!}`;
        return wgsl`
      let ${halves} = (${shifted(9 - 4 * n)} & ${0x0e000e00}u) | (${
          shifted(12 - 4 * n)
        } & ${0x80008000}u);
      let ${name} = unpack2x16float(${halves}).x;
      let ${names[n + 4]!} = unpack2x16float(${halves}).y;`;
      })
    }`;
  },
};

/**
 * Normal floats: the sign is shifted with the magnitude, whose copies of the sign are cleared. Words with a subnormal
 * element are rare.
 */
const FP8_WORD: WordDecoder = {
  elements: (word, names) => {
    const normal = (n: number) => {
      const top = n === 3 ? word : wgsl`(${word} << ${24 - 8 * n}u)`;
      const bits = wgsl`bitcast<u32>(bitcast<i32>(${top}) >> 4u)`;
      return wgsl`bitcast<f32>((${bits} & ${0x87f00000}u) + ${120 << 23}u)`;
    };
    // A byte without exponent borrows; its neighbour may borrow too, and is decoded again without need.
    const borrows =
      wgsl`((${word} & ${0x78787878}u) - ${0x08080808}u) & ${0x80808080}u`;
    return wgsl`
      ${names.map((name, n) => wgsl`var ${name} = ${normal(n)};`)}
      if ((${borrows}) != 0) {
        ${
      names.map((name, n) =>
        wgsl`${name} = ${fp8(wgsl`(${word} >> ${8 * n}u)`)};`
      )
    }
      }`;
  },
};

/** Decoder of a weight. */
interface Decoder {
  /** The element in the lowest bits of `bits`, f32. */
  element(bits: Hole): KernelText;
  /** All elements of a word. */
  readonly word: WordDecoder;
  /**
   * All elements of a word in kernels whose workgroup memory is busy, if the scale and `times` have a finite product.
   */
  readonly scaledWord?: ScaledDecoder;
  /** The f32 scale, from the loaded one and the factor of the row. */
  scale(loaded: Hole, factor?: Hole): KernelText;
  /** The f32 offset, from the loaded one, or from the loaded scale with its zero point and the f32 scale. */
  offset(loaded: Hole, scale: Hole): KernelText;
}

const WORDS: { readonly [E in PackedElementName]?: WordDecoder } = {
  fp4: FP4_WORD,
  fp8: FP8_WORD,
};

function oneByOne(element: PackedElementName): WordDecoder {
  return {
    elements: (word, names) =>
      wgsl`${
        names.map((name, n) => {
          const bits = wgsl`(${word} >> ${n * 32 / names.length}u)`;
          return wgsl`let ${name} = ${ELEMENTS[element](bits)};`;
        })
      }`,
  };
}

/** The decoder of an encoding. */
export function decoderOf(stored: PackedDType): Decoder {
  const { element, scale } = PACKINGS[stored];
  const { beforeZero }: ScaleKind = SCALES[scale];
  return {
    element: ELEMENTS[element],
    word: WORDS[element] ?? oneByOne(element),
    ...element === "fp4" ? { scaledWord: FP4_HALVES } : {},
    scale: (loaded, factor) => {
      const value = SCALE_VALUES[scale](loaded);
      return factor === undefined ? value : wgsl`${value} * ${factor}`;
    },
    offset: (loaded, scale) =>
      beforeZero ? wgsl`-(f32(${loaded} >> 16u) * ${scale})` : wgsl`${loaded}`,
  };
}

/** The scale of an element, and its offset if it has one. */
interface ElementScale {
  readonly factor: Expr;
  readonly offset?: Expr | undefined;
}

/** An element times its scale, plus its offset. */
export function scaled(
  element: Hole,
  { factor, offset }: ElementScale,
): Expr {
  const product = expr`${element} * ${factor}`;
  return offset ? expr`${product} + ${offset}` : product;
}

/** An element from its code in the lowest bits, with its scale. */
export function packedElement(
  stored: PackedDType,
  { bits, ...of }: { readonly bits: Expr } & ElementScale,
): Expr {
  return scaled(decoderOf(stored).element(wgsl`(${bits})`), of);
}

/** The value of a loaded scale: a float, a byte, or a word with a zero point. */
const SCALE_VALUES: {
  readonly [S in ScaleName]: (loaded: Hole) => KernelText;
} = {
  f32: (value) => wgsl`${value}`,
  f16: (value) => wgsl`${value}`,
  bf16: (value) => wgsl`${value}`,
  f16_zero: (word) => wgsl`unpack2x16float(${word}).x`,
  bf16_zero: (word) => wgsl`bitcast<f32>(${word} << 16u)`,
  // The exponent of an f32.
  e8m0: (byte) => wgsl`bitcast<f32>(${byte} << 23u)`,
  e4m3: (byte) => fp8(wgsl`(${byte})`),
};
