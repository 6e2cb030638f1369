/** The right operand of a matrix multiplication: loads and decoding of weights. */

import { isHalf } from "../../../spec/dtype.ts";
import { type PackedDType, packingOf } from "../../../spec/weights/packed.ts";
import { invariant } from "../../../spec/errors.ts";
import type { Expr, KernelText, Stmt } from "../kernel.ts";
import { expr, local, wgsl } from "../kernel.ts";
import { byteTableOf, termCount, widthOf } from "./columns.ts";
import {
  codesOfBlocks,
  elementInWord,
  elementOfBlock,
  hasBlocks,
  hasOffsets,
} from "./block_weights.ts";
import type { MatmulOptions } from "./options.ts";
import { scaleOf, scalesOfIteration } from "./scales.ts";
import { decoderOf, perWord, unpackHalves } from "../pieces/decode.ts";
import { range } from "../../../spec/range.ts";
import {
  letRegister,
  loadRegisters,
  register,
} from "../../../spec/kernel/registers.ts";

/** One product of an iteration for each sum: the prefix of its operand names, and the name of its index. */
export interface Term {
  readonly prefix: string;
  readonly k: string;
}

/** The only term of an iteration. */
export const SINGLE: Term = { prefix: "", k: "k" };

/** The products of an iteration. */
export function termsOf(
  o: Pick<MatmulOptions, "weights" | "tile">,
): readonly Term[] {
  const count = termCount(o);
  return count === 1 ? [SINGLE] : range(count).map(termAt);
}

/** Term `n` of several. */
export function termAt(n: number): Term {
  return { prefix: n === 0 ? "" : `next${n}_`, k: `k_term${n}` };
}

/** Declares the indices of the products of iteration `k`. */
export function indicesOfTerms(o: MatmulOptions): KernelText {
  const terms = termsOf(o);
  return wgsl`
    ${
    terms.length > 1 &&
    terms.map(({ k }, n) => wgsl`let ${k} = k * ${terms.length} + ${n};`)
  }`;
}

/** Loads of a binding with this many words, by an index per column. */
function loadsOf(
  o: MatmulOptions,
  { binding, width, index }: {
    readonly binding: string;
    readonly width: number;
    index(column: number): Expr;
  },
) {
  const { type } = o.bindings.find(({ name }) => name === binding)!;
  return (base: string, column: number, apart = 1): Stmt =>
    loadRegisters(base, range(width).map((n) => column + n * apart), {
      binding,
      type,
      index: index(column),
    });
}

const K = local("k", "u32");

/**
 * Declares <prefix>b<i>[c] of each term: the values of weight i for every column, or for some if it has k innermost.
 */
export function rightAt(
  o: MatmulOptions,
  i: number,
  columns: readonly number[] = range(o.tile.columns),
): readonly (Stmt | KernelText)[] {
  const { stored } = o.weights[i]!;
  if (termCount(o) > 1) {
    const { loaded, values } = wordsAlongK(o, i, columns);
    return [...loaded, ...termsOf(o).flatMap((_, n) => values(n))];
  }
  if (packingOf(stored)) return packedRow(o, i);
  const at = { i, columns, prefix: "", k: K };
  return [...wordsAt(o, at), ...valuesAt(o, at)];
}

/** Values of a weight at one index of k. */
interface RightTerm {
  /** The weight. */
  readonly i: number;
  readonly columns: readonly number[];
  readonly prefix: string;
}

/** Declares <prefix>b<i>[c], or <prefix>word<i>[c] if two columns share a word. */
export function wordsAt(
  o: MatmulOptions,
  { i, columns, prefix, k }: RightTerm & { readonly k: Expr },
): readonly Stmt[] {
  const { binding, stored, inside, rowStride } = o.weights[i]!;
  const width = inside === "k" ? 1 : widthOf(o);
  const apart = inside === "k" ? 1 : rowStride / perWord(stored) / width;
  const half = isHalf(stored);
  const load = loadsOf(o, {
    binding,
    width,
    index: (c) => expr`${register(`at${i}`, [c], "u32")} + ${k} * ${apart}`,
  });
  return columns.filter((c) => c % (width * (half ? 2 : 1)) === 0).map((c) =>
    half ? load(`${prefix}word${i}`, c, 2) : load(`${prefix}b${i}`, c)
  );
}

/** Declares <prefix>b<i>[c] of both elements of <prefix>word<i>[c], which are adjacent columns. */
export function valuesAt(
  o: MatmulOptions,
  { i, columns, prefix }: RightTerm,
): readonly Stmt[] {
  const { stored } = o.weights[i]!;
  if (!isHalf(stored)) return [];
  return columns.filter((c) => c % 2 === 0).flatMap((c) =>
    unpackHalves(stored, register(`${prefix}word${i}`, [c], "u32")).map(
      (value, n) => letRegister(`${prefix}b${i}`, [c + n], value),
    )
  );
}

/** `rightAt` for elements that share words along k, with scales. */
function packedRow(
  o: MatmulOptions,
  i: number,
): readonly (Stmt | KernelText)[] {
  const { stored } = o.weights[i]!;
  const { perWord } = packingOf(stored)!;
  const isBlocks = hasBlocks(o, i);
  const elementAt = (column: number) => {
    const codes = register(`codes${i}`, [column], "u32");
    const bit = local(`bit${i}`, "u32");
    return isBlocks
      ? elementOfBlock(stored, codes)
      : decoderOf(stored as PackedDType).element(wgsl`(${codes} >> ${bit})`);
  };
  return [
    ...isBlocks ? codesOfBlocks(o, i, { name: "codes", k: K, codes: 1 }) : [
      ...codesAt(o, { i, prefix: "", k: K }),
      wgsl`let bit${i} = (k & ${perWord - 1}) * ${32 / perWord};`,
    ],
    ...range(o.tile.columns)
      .flatMap((column) => scalesOfIteration(o, { i, column })),
    ...range(o.tile.columns).map((column) =>
      letRegister(
        `b${i}`,
        [column],
        scaled(elementAt(column), {
          factor: scaleOf(o, "factor", { i, column, k: K }),
          offset: hasOffsets(o.weights[i]!)
            ? scaleOf(o, "offset", { i, column, k: K })
            : undefined,
        }),
      )
    ),
  ];
}

/** Declares <prefix>codes<i>[c]: the words with index `k` of weight i. */
export function codesAt(
  o: MatmulOptions,
  { i, prefix, k }: {
    readonly i: number;
    readonly prefix: string;
    readonly k: Expr;
  },
): readonly Stmt[] {
  const { binding, stored, rowStride } = o.weights[i]!;
  const width = widthOf(o);
  const codes = loadsOf(o, {
    binding,
    width,
    index: (c) =>
      expr`${register(`at${i}`, [c], "u32")} + (${k} >> ${
        Math.log2(perWord(stored))
      }u) * ${rowStride / width}`,
  });
  return range(o.tile.columns).filter((c) => c % width === 0)
    .map((c) => codes(`${prefix}codes${i}`, c));
}

/** `rightAt` of several terms whose elements share words along k. */
export function wordsAlongK(
  o: MatmulOptions,
  i: number,
  columns: readonly number[],
): {
  /** Loads the words of all terms. */
  readonly loaded: readonly (Stmt | KernelText)[];
  /** Declares <prefix>b<i>[c] of term `n`. */
  values(n: number): readonly Stmt[];
} {
  const { stored, inside, binding } = o.weights[i]!;
  const isBlocks = hasBlocks(o, i);
  invariant(
    inside === "k" || isBlocks,
    "all weights of a matmul are laid out equally",
  );
  const terms = termsOf(o);
  const per = perWord(stored);
  const words = terms.length / per;
  const loads = range(words).map((n) => {
    const base = per > 1 ? `word${n}_${i}` : `${terms[n]!.prefix}b${i}`;
    const load = loadsOf(o, {
      binding,
      width: 1,
      index: (c) =>
        expr`${register(`at${i}`, [c], "u32")} + (${K} * ${words} + ${n})`,
    });
    return (c: number) => load(base, c);
  });
  const table = byteTableOf(o, i);
  const bytesName = (word: number, half: number) => `bytes${word}_${half}_${i}`;
  const k = expr`${K} * ${terms.length}`;
  const valueOf = (n: number, c: number) => {
    const [at, inWord] = [Math.floor(n / per), n % per];
    const word = register(`word${at}_${i}`, [c], "u32");
    if (isHalf(stored)) return unpackHalves(stored, word)[inWord]!;
    const element = () => {
      if (!table) {
        if (isBlocks) return elementInWord(stored, word, inWord);
        const bits = wgsl`(${word} >> ${inWord * 32 / per}u)`;
        return decoderOf(stored as PackedDType).element(bits);
      }
      // A word of blocks has a code per byte, others have two.
      const [half, byte] = isBlocks ? [0, inWord] : [inWord % 2, inWord >> 1];
      const bytes = register(bytesName(at, half), [c], "u32");
      const above = 24 - 8 * byte;
      return wgsl`f32(i32(${bytes} << ${above}u) >> 24u)`;
    };
    return scaled(element(), {
      factor: scaleOf(o, "factor", { i, column: c, k, n }),
      offset: hasOffsets(o.weights[i]!)
        ? scaleOf(o, "offset", { i, column: c, k, n })
        : undefined,
    });
  };
  const codes = isBlocks
    ? range(words).flatMap((n) =>
      codesOfBlocks(o, i, {
        name: `word${n}_`,
        columns,
        k: expr`${k} + ${n * per}`,
      })
    )
    : [];
  return {
    loaded: [
      ...codes,
      ...columns.flatMap((c) => [
        ...isBlocks ? [] : loads.map((load) => load(c)),
        ...scalesOfIteration(o, { i, column: c }),
        ...table === undefined ? [] : loads.flatMap((_, n) => {
          const word = register(`word${n}_${i}`, [c], "u32");
          const halves = table.of(word).slice(0, isBlocks ? 1 : 2);
          return halves.map((bytes, half) =>
            letRegister(bytesName(n, half), [c], expr`${bytes}`)
          );
        }),
      ]),
    ],
    values: (n) =>
      per === 1
        ? []
        : columns.map((c) =>
          letRegister(`${terms[n]!.prefix}b${i}`, [c], valueOf(n, c))
        ),
  };
}

/** An element from its code in the lowest bits, times its scale, plus its offset if there is one. */
export function packedElement(
  stored: PackedDType,
  { bits, ...scales }: { readonly bits: Expr } & Scales,
): Expr {
  return scaled(decoderOf(stored).element(wgsl`(${bits})`), scales);
}

/** The scale and the offset of an element. */
interface Scales {
  readonly factor: Expr;
  readonly offset: Expr | undefined;
}

function scaled(element: KernelText, { factor, offset }: Scales): Expr {
  const product = expr`${element} * ${factor}`;
  return offset ? expr`${product} + ${offset}` : product;
}
