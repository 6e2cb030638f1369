/** Packed words with separate scales as right operands of a matrix multiplication. */

import { type PackedDType, PACKINGS } from "../../../spec/weights/packed.ts";
import { MAX_F16 } from "../../../spec/kernel/matrices.ts";
import { register } from "../../../spec/kernel/registers.ts";
import { range } from "../../../spec/range.ts";
import type { Hole } from "../kernel.ts";
import { expr, local, wgsl } from "../kernel.ts";
import { type Bytes, elementBytes } from "../pieces/bytes.ts";
import { decoderOf, largestElement } from "../pieces/decode.ts";
import type { LoadedMatmul, WeightDecoder } from "./decoder.ts";
import { allOf, loadWords, wordOfIndex } from "./dense_weights.ts";
import { separateScales } from "./packed_scales.ts";

/**
 * The elements of weight i as bytes, if a device whose vectors load along k looks them up in a table of 16. `step` is
 * multiplied with the scale, not with each element: the same bits, because it is 1 or a power of two, and so are
 * scales, or they are not tiny.
 */
export function lookedUp(o: LoadedMatmul, i: number): Bytes | undefined {
  const { stored, inside } = o.weights[i]!;
  if (o.tile.right !== "workgroup" || inside !== "k") return undefined;
  const { element } = PACKINGS[stored as PackedDType];
  return element === "iq4" || element === "fp4"
    ? elementBytes(element, "signed")
    : undefined;
}

/** The decoder of weight i in packed words. */
export function packedDecoder(o: LoadedMatmul, i: number): WeightDecoder {
  const { inside, rowStride, offsets } = o.weights[i]!;
  const stored = o.weights[i]!.stored as PackedDType;
  const { perWord, perScale = Number(o.k), element } = PACKINGS[stored];
  const decoder = decoderOf(stored);
  const table = lookedUp(o, i);
  // Elements with offsets are limited one by one.
  const largestScale = o.operands === "f16" && offsets === undefined
    ? MAX_F16 / largestElement(element)
    : undefined;
  const wordName = "codes";
  const load = loadWords(o, i, {
    apart: inside === "k" ? 1 : rowStride,
    across: 1,
  });
  const elementFrom = (name: string, column: number, bit: Hole) => {
    const word = register(`${name}${i}`, [column], "u32");
    return expr`${decoder.element(wgsl`(${word} >> ${bit})`)}`;
  };
  const columns = range(o.tile.columns);
  return {
    perWord,
    alongK: perWord,
    rowWords: rowStride / perWord,
    rowScales: inside === "k" ? Number(o.k) / perScale : rowStride / perScale,
    wordName,
    load,
    element: (name, { column, n }) =>
      elementFrom(name, column, wgsl`${n * 32 / perWord}u`),
    single: () => ({
      loaded: [
        ...allOf(
          load([wordOfIndex(wordName, "k", perWord)], columns),
          columns,
        ),
        wgsl`let bit${i} = (k & ${perWord - 1}) * ${32 / perWord};`,
      ],
      element: (column) =>
        elementFrom(wordName, column, local(`bit${i}`, "u32")),
    }),
    word: largestScale === undefined
      ? decoder.word
      : decoder.scaledWord ?? decoder.word,
    // A word of eight codes gives their lower and their upper halves.
    table: table && {
      of: (word) => table.of(word).map((bytes) => expr`${bytes}`),
      at: (n) => [n % 2, n >> 1],
    },
    scales: separateScales(o, i, { step: table?.step ?? 1, largestScale }),
    ...largestScale === undefined ? {} : { f16: "limited" },
  };
}
