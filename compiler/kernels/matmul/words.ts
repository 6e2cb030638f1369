/**
 * Several indices of k at once: their weights are loaded before the first product, and elements that share a word are
 * decoded together.
 */

import { type PackedDType, packingOf } from "../../../spec/weights/packed.ts";
import { sum } from "../../../spec/sum.ts";
import { register } from "../../../spec/kernel/registers.ts";
import { sumBlocks } from "../../tuning/tile.ts";
import type { KernelText, Stmt } from "../kernel.ts";
import { local, wgsl } from "../kernel.ts";
import {
  codesOfBlocks,
  elementInWord,
  hasBlocks,
  hasOffsets,
} from "./block_weights.ts";
import type { MatmulOptions, MatmulWeight } from "./options.ts";
import {
  codesAt,
  rightAt,
  SINGLE,
  type Term,
  termAt,
  valuesAt,
  wordsAt,
} from "./right.ts";
import { perScaleOf, scaleOf, scalesInBlock } from "./scales.ts";
import {
  decoderOf,
  perWord,
  type ScaledDecoder,
  type WordDecoder,
} from "../pieces/decode.ts";
import { range } from "../../../spec/range.ts";

/** Most words of weights that a lane of a team loads at once: GPUs have at most 255 registers per lane. */
const WORDS_AT_ONCE = 16;

/**
 * Indices of k whose elements share a word of packed weights. 1: elements are decoded one after another, because blocks
 * of a sum or groups with a scale are not whole words.
 */
export function termsInWord(o: MatmulOptions): number {
  const { length = 1, last = 1 } = sumBlocks(o) ?? {};
  const inWord = Math.max(
    ...o.weights.map(({ stored }) => packingOf(stored)?.perWord ?? 1),
  );
  const segment = Number(o.k) / (o.segments ?? 1);
  const apart = o.weights.some(({ scales }, i) =>
    scales !== undefined &&
    (scalesInBlock(o, i) === 0 || perScaleOf(o, i) % inWord !== 0)
  );
  const whole = [length, last, segment].every((n) => n % inWord === 0);
  return apart || !whole ? 1 : inWord;
}

/**
 * Consecutive indices of k whose weights a lane of a team loads at once: a power of two, whole words if several
 * elements along k share one. 1: one after another.
 */
export function termsAtOnce(o: MatmulOptions): number {
  const { length = 1, last = 1 } = sumBlocks(o) ?? {};
  const inWord = termsInWord(o);
  if (inWord === 1 && o.weights.some(({ stored }) => packingOf(stored))) {
    return 1;
  }
  const each = sum(
    o.weights.map(({ stored }) => o.tile.columns / perWord(stored)),
  );
  let count = Math.min(
    2 ** Math.floor(Math.log2(WORDS_AT_ONCE / each)),
    length,
  );
  // Short blocks are whole iterations of the same loop.
  while (count > inWord && last % count > 0) count /= 2;
  return Math.max(inWord, count);
}

/** Whether a lane of a team loads the weights of a block of k at once. Only packed weights have so few words. */
export function loadsBlock(o: MatmulOptions): boolean {
  const words = sum(
    o.weights.map(({ stored }) => o.tile.columns / perWord(stored)),
  );
  const { length = Infinity } = sumBlocks(o) ?? {};
  const inWord = termsInWord(o);
  return inWord > 1 && length / inWord * words <= WORDS_AT_ONCE;
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
  o: MatmulOptions,
  count: number,
  { together, short }: {
    readonly together: number;
    readonly short?: ShortTerms | undefined;
  },
): {
  readonly terms: readonly Term[];
  /** Declares their indices and loads the words of all weights. */
  readonly loaded: readonly (Stmt | KernelText)[];
  /** Declares <prefix>b<i>[c] of a term, and of others that share its words. */
  values(n: number): readonly (Stmt | KernelText)[];
} {
  const columns = range(o.tile.columns);
  if (count === 1) {
    const loaded = o.weights.flatMap((_, i) => rightAt(o, i));
    return { terms: [SINGLE], loaded, values: () => [] };
  }
  const terms = range(count).map(termAt);
  const isPacked = o.weights.every(({ stored }) => packingOf(stored));
  return {
    terms,
    loaded: [
      ...terms.flatMap(({ k }, n) =>
        n % together !== 0 && isPacked ? [] : [
          wgsl`let ${k} = k + ${
            short && n >= short.count
              ? wgsl`select(${n}u, ${n % short.count}, ${short.condition})`
              : n
          };`,
        ]
      ),
      ...o.weights.flatMap(({ stored }, i) => {
        const { perWord = 1 } = packingOf(stored) ?? {};
        return terms.filter((_, n) => n % perWord === 0).flatMap((term) => {
          const k = local(term.k, "u32");
          return hasBlocks(o, i)
            ? codesOfBlocks(o, i, { name: `${term.prefix}codes`, k })
            : perWord > 1
            ? codesAt(o, { i, prefix: term.prefix, k })
            : wordsAt(o, { i, columns, prefix: term.prefix, k });
        });
      }),
    ],
    values: (n) =>
      o.weights.flatMap(({ stored }, i) => {
        const { perWord } = packingOf(stored) ?? {};
        const { prefix } = terms[n]!;
        if (perWord === undefined) return valuesAt(o, { i, columns, prefix });
        if (n % perWord !== 0) return [];
        return elementsOfWord(o, i, terms.slice(n, n + perWord));
      }),
  };
}

/** Declares <prefix>b<i>[c] of the terms whose elements share <prefix of the first>codes<i>[c]. */
function elementsOfWord(
  o: MatmulOptions,
  i: number,
  terms: readonly Term[],
): readonly (Stmt | KernelText)[] {
  const offsets = hasOffsets(o.weights[i]!);
  const decoder = wordDecoderOf(o.weights[i]!);
  const times = "times" in decoder ? decoder.times : 1;
  return range(o.tile.columns).flatMap((column) => {
    const word = register(`${terms[0]!.prefix}codes${i}`, [column], "u32");
    const names = terms.map(({ prefix }) => `${prefix}element${i}_${column}`);
    // Groups begin at words, so the elements of a word share a scale.
    const k = local(terms[0]!.k, "u32");
    const at = { i, column, k };
    const scale = scaleOf(o, "factor", at);
    const [factor, offset] = ["factor", "offset"].map((part) =>
      `${terms[0]!.prefix}${part}${i}_${column}`
    );
    return [
      decoder.elements(word, names),
      wgsl`let ${factor} = ${times === 1 ? scale : wgsl`${scale} * ${times}`};`,
      ...offsets ? [wgsl`let ${offset} = ${scaleOf(o, "offset", at)};`] : [],
      ...terms.map(({ prefix }, n) =>
        offsets
          ? wgsl`let ${prefix}b${i}[${column}] = ${
            names[n]
          } * ${factor} + ${offset};`
          : wgsl`let ${prefix}b${i}[${column}] = ${names[n]} * ${factor};`
      ),
    ];
  });
}

/** The decoder of whole words of packed weights. */
function wordDecoderOf(
  { stored, largestScale }: MatmulWeight,
): WordDecoder | ScaledDecoder {
  if (packingOf(stored)?.block) {
    return {
      elements: (word, names) =>
        wgsl`${
          names.map((name, n) =>
            wgsl`let ${name} = ${elementInWord(stored, word, n)};`
          )
        }`,
    };
  }
  const { word, scaledWord } = decoderOf(stored as PackedDType);
  return largestScale === undefined ? word : scaledWord ?? word;
}

/** Precedes the loops of a kernel that decodes words. */
export function beginWords(
  { weights, tile }: MatmulOptions,
): readonly KernelText[] {
  const packed = weights.filter(({ stored }) => packingOf(stored));
  return [...new Set(packed.map(wordDecoderOf))].flatMap(({ begin }) =>
    begin ? [begin(tile.lanes)] : []
  );
}
