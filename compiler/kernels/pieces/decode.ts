/** Stored weights as f32: 16-bit floats, two to a u32, and elements that share words along the contracted axis. */

import { type FileDType, isHalf } from "../../../spec/dtype.ts";
import { type PackedDType, packingOf } from "../../../spec/packed.ts";
export { unpackHalves } from "../../../spec/kernel/build.ts";
import { type Hole, type KernelText, wgsl } from "../../../spec/kernel/text.ts";

/** Elements of a weight in one word of its binding. */
export function perWord(stored: FileDType): number {
  return isHalf(stored) ? 2 : packingOf(stored)?.perWord ?? 1;
}

/** The float in the lowest four bits (E2M1: sign, two bits of exponent, one of mantissa), of which only 0.5 is subnormal. */
function fp4(bits: Hole): KernelText {
  const magnitude = wgsl`(${bits} & 7)`;
  const half = wgsl`${126 << 23}u`;
  const small = wgsl`select(0u, ${half}, ${magnitude} == 1)`;
  const normal = wgsl`(${magnitude} << 22u) + ${half}`;
  return wgsl`bitcast<f32>(((${bits} & 8) << 28u) | select(${normal}, ${small}, ${magnitude} < 2))`;
}

/** How a kernel decodes a weight. */
interface Decoder {
  /** The element whose bits are the lowest of `bits`, f32. */
  element(bits: Hole): KernelText;
  /** What it is multiplied by, of the scale that is loaded, f32. */
  scale(stored: Hole): KernelText;
}

/** The decoders. */
export const DECODERS: { readonly [P in PackedDType]: Decoder } = {
  mxfp4: { element: fp4, scale: powerOfTwo },
  int8: {
    element: (bits) => wgsl`f32(i32((${bits} & 255) ^ 128) - 128)`,
    scale: (stored) => wgsl`${stored}`,
  },
};

/** The power of two that an E8M0 scale stands for: its bits are the exponent of an f32. */
function powerOfTwo(exponent: Hole): KernelText {
  return wgsl`bitcast<f32>(${exponent} << 23u)`;
}
