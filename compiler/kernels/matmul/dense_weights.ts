/** Words of weights in memory, and weights without scales: f32, and 16-bit floats, two per word. */

import { isHalf } from "../../../spec/dtype.ts";
import { loadRegisters, register } from "../../../spec/kernel/registers.ts";
import { range } from "../../../spec/range.ts";
import { expr, local } from "../kernel.ts";
import { perWord as perWordOf, unpackHalves } from "../pieces/decode.ts";
import type {
  Loaded,
  LoadedMatmul,
  Parts,
  WeightDecoder,
  WordAt,
} from "./decoder.ts";

/** The words of a weight in rows of words: with n innermost, rows of adjacent columns. */
export interface WordRows {
  /** Words between words that follow each other along k. */
  readonly apart: number;
  /** Adjacent columns in a word. */
  readonly across: number;
}

/** Loads words of weight i: one for each column, or several for adjacent columns. */
export function loadWords(
  o: LoadedMatmul,
  i: number,
  { apart, across }: WordRows,
): WeightDecoder["load"] {
  const { binding, inside } = o.weights[i]!;
  const width = inside === "k" ? 1 : o.width;
  const { type } = o.bindings.find(({ name }) => name === binding)!;
  return (words, columns): Loaded => ({
    before: [],
    of: (c) =>
      !columns.includes(c) || c % (width * across) !== 0
        ? []
        : words.map(({ name, word }) =>
          loadRegisters(
            `${name}${i}`,
            range(width).map((n) => c + n * across),
            {
              binding,
              type,
              index: expr`${register(`at${i}`, [c], "u32")} + ${word} * ${
                apart / width
              }`,
            },
          )
        ),
  });
}

/** All statements of loads. */
export function allOf(
  { before, of }: Loaded,
  columns: readonly number[],
): Parts {
  return [...before, ...columns.flatMap(of)];
}

/** The word with index `k` of the loop, if `alongK` elements share one. */
export function wordOfIndex(name: string, k: string, alongK: number): WordAt {
  const at = local(k, "u32");
  return {
    name,
    k: at,
    word: alongK === 1 ? at : expr`${at} >> ${Math.log2(alongK)}u`,
  };
}

/** The decoder of weight i without scales. */
export function denseDecoder(o: LoadedMatmul, i: number): WeightDecoder {
  const { stored, inside, rowStride } = o.weights[i]!;
  const perWord = perWordOf(stored);
  const alongK = inside === "k" ? perWord : 1;
  const across = perWord / alongK;
  const rowWords = rowStride / perWord;
  const wordName = perWord === 1 ? "b" : "word";
  const load = loadWords(o, i, {
    apart: inside === "k" ? 1 : rowWords,
    across,
  });
  const element: WeightDecoder["element"] = (name, { column, n }) => {
    if (!isHalf(stored)) return register(`${name}${i}`, [column]);
    const first = column - column % across;
    const word = register(`${name}${i}`, [first], "u32");
    return unpackHalves(stored, word)[column - first + n]!;
  };
  const columns = range(o.tile.columns);
  return {
    perWord,
    alongK,
    rowWords,
    wordName,
    load,
    element,
    single: () => ({
      loaded: allOf(load([wordOfIndex(wordName, "k", 1)], columns), columns),
      element: (column) => element(wordName, { column, n: 0 }),
    }),
    ...stored === "f16" ? { f16: "exact" } : {},
  };
}
