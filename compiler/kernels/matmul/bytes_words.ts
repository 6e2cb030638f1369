/** Weights in words, with scales in another buffer, in a matrix multiplication of bytes. */

import { type HalfDType, isHalf, STORED_BYTES } from "../../../spec/dtype.ts";
import {
  type Packing,
  PACKINGS,
  type ScaleKind,
  SCALES,
} from "../../../spec/weights/packed.ts";
import type { KernelText } from "../kernel.ts";
import { wgsl } from "../kernel.ts";
import { halfOf } from "../pieces/block.ts";
import { elementBytes } from "../pieces/bytes.ts";
import { decoderOf } from "../pieces/decode.ts";
import type { BytesDecoder, FactorOfSum } from "./bytes_decoder.ts";
import {
  type BytesForm,
  type BytesMatmulOptions,
  indexOf,
  isGuarded,
} from "./bytes_operands.ts";

/** The decoder of a weight in words. */
export function bytesInWords(
  o: BytesMatmulOptions,
  weight: BytesForm,
): BytesDecoder {
  const { binding, stored, sign, sumOf } = weight;
  const { element, perWord, scale }: Packing = PACKINGS[stored];
  const { stored: dtype }: ScaleKind = SCALES[scale];
  const bytes = elementBytes(element, sign);
  const words = sumOf / perWord;
  return {
    above: bytes.above,
    together: 1,
    words,
    parts: perWord / 4,
    hasOffsets: weight.offsets !== undefined,
    scalesPerWord: 4 / STORED_BYTES[dtype],
    load: ({ c, sum, word }) => {
      const n = wgsl`(${sum} * ${words} + ${word})`;
      const index = indexOf(o, weight, { each: o.k / perWord, c, n });
      return [wgsl`${binding}[${index}]`];
    },
    bytes: ([word]) => bytes.of(word!),
    factor: (at) => factorAt(o, weight, at),
    ...isHalf(dtype)
      ? { twoScales: (word: KernelText) => halvesOf(o, dtype, word) }
      : {},
    ...dtype === "u8"
      ? {
        scaleOfByte: (byte: KernelText) =>
          decoderOf(stored).scale(wgsl`(${byte})`),
      }
      : {},
    mayBeTiny: () => true,
  };
}

/** Loads the number at an index of a binding into the lowest bits, by its dtype in memory. */
const LOADS: {
  readonly [D in ScaleKind["stored"]]: (
    binding: string,
    index: KernelText,
  ) => KernelText;
} = {
  f32: wholeWord,
  u32: wholeWord,
  f16: halfWord,
  bf16: halfWord,
  u8: (binding, index) =>
    wgsl`((${binding}[${index} >> 2] >> ((${index} & 3) << 3)) & 255)`,
};

function wholeWord(binding: string, index: KernelText): KernelText {
  return wgsl`${binding}[${index}]`;
}

function halfWord(binding: string, index: KernelText): KernelText {
  return wgsl`(${binding}[${index} >> 1] >> ((${index} & 1) << 4))`;
}

/** The scale or the offset of a sum. Offsets without a scale in their word are f32, and so are their scales. */
function factorAt(
  o: BytesMatmulOptions,
  weight: BytesForm,
  { c, n, part }: FactorOfSum,
): KernelText {
  const { stored, perScale, sumOf } = weight;
  const at = perScale === o.k
    ? wgsl`0u`
    : perScale === sumOf
    ? n
    : wgsl`((${n}) / ${perScale / sumOf})`;
  const index = indexOf(o, weight, { each: o.k / perScale, c, n: at });
  const { stored: dtype, beforeZero }: ScaleKind =
    SCALES[PACKINGS[stored].scale];
  const loaded = LOADS[dtype](weight[part]!, index);
  const half = beforeZero ?? (isHalf(dtype) ? dtype : undefined);
  const decoder = decoderOf(stored);
  const scale = half ? halvesOf(o, half, loaded)[0] : decoder.scale(loaded);
  return part === "scales" ? scale : decoder.offset(loaded, scale);
}

/** The two 16-bit floats in a word, in memory order, as f32. */
function halvesOf(
  o: BytesMatmulOptions,
  dtype: HalfDType,
  word: KernelText,
): readonly [KernelText, KernelText] {
  if (dtype === "bf16") {
    return [
      wgsl`bitcast<f32>(${word} << 16u)`,
      wgsl`bitcast<f32>(${word} & 0xffff0000u)`,
    ];
  }
  return isGuarded(o)
    ? [halfOf(wgsl`(${word} << 16u)`, true), halfOf(word, true)]
    : [wgsl`unpack2x16float(${word}).x`, wgsl`unpack2x16float(${word}).y`];
}
