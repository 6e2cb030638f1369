/**
 * Several indices of k at once: their weights are loaded before the first product, and elements that share a word are
 * decoded together.
 */

import { sum } from "../../../spec/sum.ts";
import { letRegister, register } from "../../../spec/kernel/registers.ts";
import { sumBlocks } from "../../tuning/tile.ts";
import type { KernelText } from "../kernel.ts";
import { local, wgsl } from "../kernel.ts";
import type { DecodedMatmul, Parts } from "./decoder.ts";
import { allOf, wordOfIndex } from "./dense_weights.ts";
import { rightAt, SINGLE, type Term, termAt } from "./right.ts";
import { scaleOf, scalesInBlock } from "./scales.ts";
import { range } from "../../../spec/range.ts";

/** Most words of weights that a lane of a team loads at once: GPUs have at most 255 registers per lane. */
const WORDS_AT_ONCE = 16;

/**
 * Indices of k whose elements share a word of packed weights. 1: elements are decoded one after another, because blocks
 * of a sum or groups with a scale are not whole words.
 */
export function termsInWord(o: DecodedMatmul): number {
  const { length = 1, last = 1 } = sumBlocks(o) ?? {};
  const inWord = Math.max(...o.decoders.map(({ alongK }) => alongK));
  const segment = Number(o.k) / (o.segments ?? 1);
  const apart = o.decoders.some(({ scales }) =>
    scales !== undefined &&
    (scalesInBlock(o, scales) === 0 || scales.elements % inWord !== 0)
  );
  const whole = [length, last, segment].every((n) => n % inWord === 0);
  return apart || !whole ? 1 : inWord;
}

/**
 * Consecutive indices of k whose weights a lane of a team loads at once: a power of two, whole words if several
 * elements along k share one. 1: one after another.
 */
export function termsAtOnce(o: DecodedMatmul): number {
  const { length = 1, last = 1 } = sumBlocks(o) ?? {};
  const inWord = termsInWord(o);
  if (inWord === 1 && o.decoders.some(({ scales }) => scales)) return 1;
  const each = wordsOfIndex(o);
  let count = Math.min(
    2 ** Math.floor(Math.log2(WORDS_AT_ONCE / each)),
    length,
  );
  // Short blocks are whole iterations of the same loop.
  while (count > inWord && last % count > 0) count /= 2;
  return Math.max(inWord, count);
}

/** Words of an index of k that a lane loads; a part of one if others share it. */
function wordsOfIndex(o: DecodedMatmul): number {
  return sum(o.decoders.map(({ perWord }) => o.tile.columns / perWord));
}

/** Whether a lane of a team loads the weights of a block of k at once. Only packed weights have so few words. */
export function loadsBlock(o: DecodedMatmul): boolean {
  const { length = Infinity } = sumBlocks(o) ?? {};
  return termsInWord(o) > 1 && length * wordsOfIndex(o) <= WORDS_AT_ONCE;
}

/** Terms of which only the first ones exist in some lanes. */
export interface ShortTerms {
  /** Number of the first ones. */
  readonly count: number;
  /** The condition of these lanes. */
  readonly condition: KernelText;
}

/**
 * The products of `count` consecutive indices from `k`, whole words of them. `together`: indices whose left operand is
 * loaded at once. Lanes with `short` terms load the first ones again instead of the others.
 */
export function nextTerms(
  o: DecodedMatmul,
  count: number,
  { together, short }: {
    readonly together: number;
    readonly short?: ShortTerms | undefined;
  },
): {
  readonly terms: readonly Term[];
  /** Declares their indices and loads the words of all weights. */
  readonly loaded: Parts;
  /** Declares <prefix>b<i>[c] of a term, and of others that share its words. */
  values(n: number): Parts;
} {
  const columns = range(o.tile.columns);
  if (count === 1) {
    const loaded = o.decoders.flatMap((_, i) => rightAt(o, i));
    return { terms: [SINGLE], loaded, values: () => [] };
  }
  const terms = range(count).map(termAt);
  const inWords = o.decoders.every(({ alongK }) => alongK > 1);
  return {
    terms,
    loaded: [
      ...terms.flatMap(({ k }, n) =>
        n % together !== 0 && inWords ? [] : [
          wgsl`let ${k} = k + ${
            short && n >= short.count
              ? wgsl`select(${n}u, ${n % short.count}, ${short.condition})`
              : n
          };`,
        ]
      ),
      ...o.decoders.flatMap(({ alongK, wordName, load }) =>
        terms.filter((_, n) => n % alongK === 0).flatMap(({ prefix, k }) => {
          const word = wordOfIndex(`${prefix}${wordName}`, k, alongK);
          return allOf(load([word], columns), columns);
        })
      ),
    ],
    values: (n) =>
      o.decoders.flatMap(({ alongK }, i) =>
        n % alongK === 0 ? valuesOfWord(o, i, terms.slice(n, n + alongK)) : []
      ),
  };
}

/** Declares <prefix>b<i>[c] of the terms whose elements share the words of the first, unless words are elements. */
function valuesOfWord(
  o: DecodedMatmul,
  i: number,
  terms: readonly Term[],
): Parts {
  const { perWord, wordName, element, word, scales } = o.decoders[i]!;
  const [first] = terms as readonly [Term];
  const name = `${first.prefix}${wordName}`;
  const columns = range(o.tile.columns);
  if (perWord === 1) return [];
  if (!word || !scales) {
    return columns.flatMap((column) =>
      terms.map(({ prefix }, n) =>
        letRegister(`${prefix}b${i}`, [column], element(name, { column, n }))
      )
    );
  }
  const times = "times" in word ? word.times : 1;
  return columns.flatMap((column) => {
    const names = terms.map(({ prefix }) => `${prefix}element${i}_${column}`);
    // Groups begin at words, so the elements of a word share a scale.
    const at = { i, column, k: local(first.k, "u32") };
    const scale = scaleOf(o, "factor", at);
    const [factor, offset] = ["factor", "offset"].map((part) =>
      `${first.prefix}${part}${i}_${column}`
    );
    return [
      word.elements(register(`${name}${i}`, [column], "u32"), names),
      wgsl`let ${factor} = ${times === 1 ? scale : wgsl`${scale} * ${times}`};`,
      ...scales.hasOffsets
        ? [wgsl`let ${offset} = ${scaleOf(o, "offset", at)};`]
        : [],
      ...terms.map(({ prefix }, n) =>
        scales.hasOffsets
          ? wgsl`let ${prefix}b${i}[${column}] = ${
            names[n]
          } * ${factor} + ${offset};`
          : wgsl`let ${prefix}b${i}[${column}] = ${names[n]} * ${factor};`
      ),
    ];
  });
}

/** Precedes the loops of a kernel that decodes words. */
export function beginWords(
  { decoders, tile }: DecodedMatmul,
): readonly KernelText[] {
  return [...new Set(decoders.map(({ word }) => word?.begin))]
    .flatMap((begin) => begin ? [begin(tile.lanes)] : []);
}
