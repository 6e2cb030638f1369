/** Scales and offsets of sums of a matrix multiplication of bytes. */

import { Q8_MIN } from "../../../spec/weights/activations.ts";
import { type HalfDType, isHalf } from "../../../spec/dtype.ts";
import {
  PACKINGS,
  type ScaleKind,
  SCALES,
} from "../../../spec/weights/packed.ts";
import type { KernelText } from "../kernel.ts";
import { wgsl } from "../kernel.ts";
import {
  blockAt,
  type BytesMatmulOptions,
  type BytesOperand,
  type Header,
  indexOf,
  isGuarded,
} from "./bytes_operands.ts";
import { blockFactor, halfOf } from "../pieces/block.ts";
import { decoderOf } from "../pieces/decode.ts";

/** What declares the factors of sums. */
export interface FactorAt {
  readonly name: string;
  readonly c: number;
  readonly n: KernelText;
  /** 1 for the sum after that of `letBlocks`. Default: 0. */
  readonly next?: 0 | 1;
  readonly part: "scales" | "offsets";
  /** The start of the block, if it is stored. */
  readonly header?: Header | undefined;
}

/** Declares <name>[c]: the factor of the integers of sum `n` of a column. Tiny scales and offsets count as 0. */
export function factorAt(
  o: BytesMatmulOptions,
  weight: BytesOperand,
  at: FactorAt,
): KernelText {
  return factorFrom(weight, at, scaleAt(o, weight, at));
}

/** Declares <name>[c], from a loaded scale or offset. */
function factorFrom(
  weight: BytesOperand,
  { name, c, part }: Pick<FactorAt, "name" | "c" | "part">,
  scale: KernelText,
): KernelText {
  const by = part === "scales" ? weight.step : 1;
  // f16 has no tiny numbers, also in 32 bits.
  const { factor = "e8m0" } = weight.block?.layout[part] ?? {};
  if (factor !== "e8m0") {
    return wgsl`let ${name}[${c}] = ${scale};`;
  }
  return wgsl`
    let stored_${name}[${c}] = ${by === 1 ? scale : wgsl`${scale} * ${by}`};
    let ${name}[${c}] = select(0.0, stored_${name}[${c}], abs(stored_${name}[${c}]) >= ${Q8_MIN});`;
}

function scaleAt(
  o: BytesMatmulOptions,
  weight: BytesOperand,
  { c, n, next, part, header }: FactorAt,
): KernelText {
  const { perScale, sumOf, block } = weight;
  if (block) {
    const found = blockAt(weight, c, next);
    return blockFactor(block.layout, block.layout[part]!, {
      ...found,
      flushes: isGuarded(o),
      header: (word) =>
        header
          ? wgsl`${header.array}[${header.index(word)}]`
          : wgsl`bytesAt(${found.binding}, ${found.from} + ${4 * word})`,
    });
  }
  const each = o.k / perScale;
  const at = perScale === o.k
    ? wgsl`0u`
    : perScale === sumOf
    ? n
    : wgsl`((${n}) / ${perScale / sumOf})`;
  const index = indexOf(o, weight, { each, c, n: at });
  const { scale } = PACKINGS[weight.stored];
  const { stored, beforeZero }: ScaleKind = SCALES[scale];
  const loaded = wgsl`${weight[part]!}[${index}]`;
  if (beforeZero) {
    const [value] = halvesOf(o, beforeZero, loaded);
    return part === "scales"
      ? value
      : decoderOf(weight.stored).offset(loaded, value);
  }
  if (part === "offsets") return loaded;
  if (scale === "e8m0") {
    return wgsl`bitcast<f32>(((${weight.scales}[${index} >> 2] >> ((${index} & 3) << 3)) & 255) << 23u)`;
  }
  if (!isHalf(stored)) return loaded;
  const word = wgsl`(${weight.scales}[${index} >> 1] >> ((${index} & 1) << 4))`;
  return halvesOf(o, stored, word)[0];
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

/** Declares scales0[c] and scales1[c]: the factors of scales 2 `pair` and 2 `pair` + 1, which share a word. */
export function twoFactorsAt(
  o: BytesMatmulOptions,
  weight: BytesOperand,
  { c, pair }: { readonly c: number; readonly pair: KernelText },
): KernelText {
  const { stored, scales, perScale } = weight;
  const { stored: dtype } = SCALES[PACKINGS[stored].scale];
  const each = o.k / perScale / 2;
  return wgsl`
    let scale_word = ${scales}[${indexOf(o, weight, { each, c, n: pair })}];
    ${
    halvesOf(o, dtype as HalfDType, wgsl`scale_word`).map((scale, half) =>
      factorFrom(weight, { name: `scales${half}`, c, part: "scales" }, scale)
    )
  }`;
}
