/** Weights of a matrix multiplication of bytes: their decoders, words of bytes and factors. */

import { Q8_MIN } from "../../../spec/weights/activations.ts";
import {
  PACKED_ELEMENTS,
  type PackedElement,
  type Packing,
  PACKINGS,
} from "../../../spec/weights/packed.ts";
import type { BytesArithmetic } from "../../tuning/table.ts";
import type { KernelText } from "../kernel.ts";
import { wgsl } from "../kernel.ts";
import { byLayout } from "../pieces/layout.ts";
import { bytesInBlocks } from "./bytes_blocks.ts";
import type { FactorOfSum, WordOfSum } from "./bytes_decoder.ts";
import {
  type BytesForm,
  type BytesMatmulOptions,
  type BytesOperand,
  indexOf,
  quantizedLayoutOf,
} from "./bytes_operands.ts";
import { bytesInWords } from "./bytes_words.ts";

/** The weights of a matrix multiplication. */
export function operandsOf(
  o: BytesMatmulOptions,
): readonly BytesOperand[] {
  return o.weights.map((weight, i) => {
    const packing: Packing = PACKINGS[weight.stored];
    const { element, perScale = o.k } = packing;
    const { step = 1 }: PackedElement = PACKED_ELEMENTS[element];
    const { sumOf, order } = quantizedLayoutOf(weight.stored);
    const form: BytesForm = {
      ...weight,
      i,
      sign: signOf(packing, o.arithmetic),
      step,
      sumOf,
      perScale,
      alternate: order === "alternate",
    };
    const decoder = byLayout(weight.stored, {
      words: () => bytesInWords(o, form),
      blocks: (packing) => bytesInBlocks(o, form, packing),
    });
    return { ...form, ...decoder };
  });
}

/** Whether the bytes of weights are signed. */
function signOf(
  { element }: Packing,
  arithmetic: BytesArithmetic | undefined,
): "signed" | "unsigned" {
  const fits = arithmetic === "pairs" && PACKED_ELEMENTS[element].bits < 8;
  return arithmetic === "unsigned" || fits ? "unsigned" : "signed";
}

/**
 * Declares bytes<i>_<part>[c]: the words of bytes of a sum's stored word. The names of `letBlocks` are declared before.
 */
export function letBytes(weight: BytesOperand, at: WordOfSum): KernelText {
  const { i } = weight;
  const { c, word } = at;
  const loads = weight.load(at);
  const names = loads.map((_, plane) =>
    plane === 0 ? `stored${i}` : `stored${i}_${plane}`
  );
  const bytes = weight.bytes(names.map((name) => wgsl`${name}[${c}]`), word);
  return wgsl`
    ${loads.map((load, at) => wgsl`let ${names[at]!}[${c}] = ${load};`)}
    ${bytes.map((text, part) => wgsl`let bytes${i}_${part}[${c}] = ${text};`)}`;
}

/**
 * Declares the block of a sum in each column, if the weight has blocks. `run`: the first sum of its run is declared.
 */
export function letBlocks(
  weight: BytesOperand,
  { run = false, ...at }: {
    readonly columns: readonly number[];
    readonly sum: KernelText;
    readonly run?: boolean;
  },
): KernelText {
  return weight.locate?.({ ...at, run }) ?? wgsl``;
}

/** Declares <name>[c]: the factor of the integers of sum `n` of a column. Tiny scales and offsets count as 0. */
export function letFactor(
  weight: BytesOperand,
  { name, ...at }: FactorOfSum & { readonly name: string },
): KernelText {
  return factorFrom(weight, { ...at, name, stored: weight.factor(at) });
}

/** Declares scales0[c] and scales1[c]: the factors of scales 2 `pair` and 2 `pair` + 1, which share a word. */
export function letTwoFactors(
  o: BytesMatmulOptions,
  weight: BytesOperand,
  { c, pair }: { readonly c: number; readonly pair: KernelText },
): KernelText {
  const each = o.k / weight.perScale / 2;
  const index = indexOf(o, weight, { each, c, n: pair });
  return wgsl`
    let scale_word = ${weight.scales}[${index}];
    ${
    weight.twoScales!(wgsl`scale_word`).map((stored, half) =>
      factorFrom(weight, { name: `scales${half}`, c, part: "scales", stored })
    )
  }`;
}

/** Declares <name>[c], from a loaded scale or offset. */
export function factorFrom(
  weight: BytesOperand,
  { name, c, part, stored }: Pick<FactorOfSum, "c" | "part"> & {
    readonly name: string;
    readonly stored: KernelText;
  },
): KernelText {
  if (!weight.mayBeTiny(part)) return wgsl`let ${name}[${c}] = ${stored};`;
  const step = part === "scales" ? weight.step : 1;
  return wgsl`
    let stored_${name}[${c}] = ${
    step === 1 ? stored : wgsl`${stored} * ${step}`
  };
    let ${name}[${c}] = select(0.0, stored_${name}[${c}], abs(stored_${name}[${c}]) >= ${Q8_MIN});`;
}
