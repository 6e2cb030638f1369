/** The right operand of a matrix multiplication in the loops over k: indices, and values of weights. */

import type { Expr, KernelText, Stmt } from "../kernel.ts";
import { expr, local, wgsl } from "../kernel.ts";
import { range } from "../../../spec/range.ts";
import { letRegister, register } from "../../../spec/kernel/registers.ts";
import type { DecodedMatmul, Parts } from "./decoder.ts";
import { scaledElement, scalesOfIteration } from "./scales.ts";

/** One product of an iteration for each sum: the prefix of its operand names, and the name of its index. */
export interface Term {
  readonly prefix: string;
  readonly k: string;
}

/** The only term of an iteration. */
export const SINGLE: Term = { prefix: "", k: "k" };

/** The products of an iteration. */
export function termsOf(
  { termCount }: Pick<DecodedMatmul, "termCount">,
): readonly Term[] {
  return termCount === 1 ? [SINGLE] : range(termCount).map(termAt);
}

/** Term `n` of several. */
export function termAt(n: number): Term {
  return { prefix: n === 0 ? "" : `next${n}_`, k: `k_term${n}` };
}

/** Declares the indices of the products of iteration `k`. */
export function indicesOfTerms(o: DecodedMatmul): KernelText {
  const terms = termsOf(o);
  return wgsl`
    ${
    terms.length > 1 &&
    terms.map(({ k }, n) => wgsl`let ${k} = k * ${terms.length} + ${n};`)
  }`;
}

const K = local("k", "u32");

/**
 * Declares <prefix>b<i>[c] of each term: the values of weight i for every column, or for some if it has k innermost.
 */
export function rightAt(
  o: DecodedMatmul,
  i: number,
  columns: readonly number[] = range(o.tile.columns),
): Parts {
  if (o.termCount > 1) {
    const { loaded, values } = wordsAlongK(o, i, columns);
    return [...loaded, ...termsOf(o).flatMap((_, n) => values(n))];
  }
  const decoder = o.decoders[i]!;
  const { loaded, element } = decoder.single();
  return [
    ...loaded,
    ...columns.flatMap((column) => scalesOfIteration(o, { i, column })),
    ...decoder.perWord === 1 ? [] : columns.map((column) =>
      letRegister(
        `b${i}`,
        [column],
        scaledElement(o, element(column), { i, column, k: K }),
      )
    ),
  ];
}

/** `rightAt` of several terms whose elements share words along k. */
export function wordsAlongK(
  o: DecodedMatmul,
  i: number,
  columns: readonly number[],
): {
  /** Loads the words of all terms. */
  readonly loaded: Parts;
  /** Declares <prefix>b<i>[c] of term `n`. */
  values(n: number): readonly Stmt[];
} {
  const { perWord, wordName, load, element, table } = o.decoders[i]!;
  const terms = termsOf(o);
  const count = terms.length / perWord;
  const first = expr`${K} * ${terms.length}`;
  const words = range(count).map((n) => ({
    name: perWord > 1 ? `word${n}_` : `${terms[n]!.prefix}${wordName}`,
    k: expr`${first} + ${n * perWord}`,
    word: expr`${K} * ${count} + ${n}`,
  }));
  const { before, of } = load(words, columns);
  const bytesName = (word: number, part: number) => `bytes${word}_${part}_${i}`;
  const looked = (column: number): Parts =>
    table === undefined ? [] : words.flatMap(({ name }, n) => {
      const word = register(`${name}${i}`, [column], "u32");
      return table.of(word).map((bytes, part) =>
        letRegister(bytesName(n, part), [column], bytes)
      );
    });
  const elementOf = (n: number, column: number): Expr => {
    const [at, inWord] = [Math.floor(n / perWord), n % perWord];
    if (!table) return element(words[at]!.name, { column, n: inWord });
    const [part, byte] = table.at(inWord);
    const bytes = register(bytesName(at, part), [column], "u32");
    return expr`f32(i32(${bytes} << ${24 - 8 * byte}u) >> 24u)`;
  };
  return {
    loaded: [
      ...before,
      ...columns.flatMap((column) => [
        ...of(column),
        ...scalesOfIteration(o, { i, column }),
        ...looked(column),
      ]),
    ],
    values: (n) =>
      perWord === 1 ? [] : columns.map((column) =>
        letRegister(
          `${terms[n]!.prefix}b${i}`,
          [column],
          scaledElement(o, elementOf(n, column), { i, column, k: first, n }),
        )
      ),
  };
}
