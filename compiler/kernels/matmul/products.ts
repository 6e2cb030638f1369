/** The products of one iteration of the sums of a matrix multiplication. */

import { invariant } from "../../../spec/errors.ts";
import { fma, let_ } from "../../../spec/kernel/build.ts";
import { registerName } from "../../../spec/kernel/register_name.ts";
import {
  letRegister,
  type Register,
  register,
  setEach,
} from "../../../spec/kernel/registers.ts";
import { range } from "../../../spec/range.ts";
import { isStaged } from "../../tuning/lanes.ts";
import type { KernelText, Stmt } from "../kernel.ts";
import { wgsl } from "../kernel.ts";
import type { Left } from "./left.ts";
import type { DecodedMatmul, Parts } from "./decoder.ts";
import {
  indicesOfTerms,
  rightAt,
  SINGLE,
  type Term,
  termsOf,
  wordsAlongK,
} from "./right.ts";
import { nextTerms, type ShortTerms } from "./words.ts";
import { ADJACENT } from "../pieces/adjacent.ts";

/** Sums of a lane for some columns of a weight. */
export interface SumsOfWeight {
  readonly weight: number;
  readonly columns: readonly number[];
}

/** All sums of a lane. */
export function allSums(
  { weights, tile }: Pick<DecodedMatmul, "weights" | "tile">,
): readonly SumsOfWeight[] {
  return weights.map((_, weight) => ({ weight, columns: range(tile.columns) }));
}

/** Declares the locations of the words of a run from index `start` on. */
export function beforeRun(
  { decoders }: DecodedMatmul,
  start: KernelText,
  sums: readonly SumsOfWeight[],
): Parts {
  return sums.flatMap(({ weight, columns }) =>
    decoders[weight]!.beforeRun?.(start, columns) ?? []
  );
}

/** The products of one iteration of a sum, for one index k, or for all indices whose elements share words. */
export function products(
  o: DecodedMatmul,
  left: Pick<Left, "at">,
  { rows, sums = allSums(o) }: {
    readonly rows: number;
    readonly sums?: readonly SumsOfWeight[];
  },
): KernelText {
  const terms = termsOf(o);
  invariant(
    terms.length === 1 || !isStaged(o),
    "several terms are summed in a plain tile",
  );
  const leftAt = ({ prefix, k }: Term, r: number) =>
    letRegister(`${prefix}a`, [r], left.at(r, k));
  if (terms.length === 1) {
    return wgsl`
    ${range(rows).map((r) => leftAt(SINGLE, r))}
    ${sums.flatMap(({ weight, columns }) => rightAt(o, weight, columns))}
    ${addProducts(o, range(rows), { prefixes: [""], sums })}`;
  }
  const right = sums.map(({ weight, columns }) =>
    wordsAlongK(o, weight, columns)
  );
  // Term by term and row by row: the operands of all do not fit into registers.
  return wgsl`
    ${indicesOfTerms(o)}
    ${right.flatMap(({ loaded }) => loaded)}
    ${
    terms.flatMap((term, n) => [
      ...right.flatMap(({ values }) => values(n)),
      ...range(rows).flatMap((r) => [
        leftAt(term, r),
        ...addProducts(o, [r], { prefixes: [term.prefix], sums }),
      ]),
    ])
  }`;
}

/** Consecutive indices of k whose products are added at once. */
interface TermsAtOnce {
  readonly rows: number;
  readonly count: number;
  readonly short?: ShortTerms | undefined;
}

/**
 * The products of `count` consecutive indices from k: all loads come before the first sum. Lanes with `short` terms add
 * only these.
 */
export function productsOfTerms(
  o: DecodedMatmul,
  left: Pick<Left, "at" | "adjacent">,
  at: TermsAtOnce,
): KernelText {
  const parts = partsOfTerms(o, left, at);
  return wgsl`
    ${parts.loaded}
    ${parts.left}
    ${parts.added}`;
}

/** Products in three parts: loads of weights, the left operand, and sums. */
export function partsOfTerms(
  o: DecodedMatmul,
  left: Pick<Left, "at" | "adjacent">,
  { rows, count, short }: TermsAtOnce,
): {
  /** Names of the indices of k. */
  readonly indices: readonly string[];
  readonly loaded: Parts;
  readonly left: readonly Stmt[];
  readonly added: KernelText;
} {
  const together = left.adjacent && count % ADJACENT === 0 ? ADJACENT : 1;
  const { terms, loaded, values } = nextTerms(o, count, {
    together,
    short,
  });
  const leftOf = (n: number, r: number) => {
    const { k } = terms[n]!;
    const names = terms.slice(n, n + together).map(({ prefix }) =>
      registerName(`${prefix}a`, [r])
    );
    return together > 1
      ? left.adjacent!(r, k, names)
      : [let_(names[0]!, left.at(r, k))];
  };
  const added = terms.map(({ prefix }, n) => [
    ...values(n),
    ...addProducts(o, range(rows), { prefixes: [prefix] }),
  ]);
  const always = short?.count ?? count;
  return {
    indices: terms.map(({ k }) => k),
    loaded,
    left: range(count / together).flatMap((n) =>
      range(rows).flatMap((r) => leftOf(n * together, r))
    ),
    added: wgsl`
    ${added.slice(0, always).flat()}
    ${
      short &&
      wgsl`if (!(${short.condition})) { ${added.slice(always).flat()} }`
    }`,
  };
}

/** sum<i>_block[r][c] = fma(a[r], b<i>[c], sum<i>_block[r][c]), for each weight and each operand prefix. */
export function addProducts(
  o: DecodedMatmul,
  rows: readonly number[],
  { prefixes, sums = allSums(o) }: {
    readonly prefixes: readonly string[];
    readonly sums?: readonly SumsOfWeight[];
  },
): readonly Stmt[] {
  return sums.flatMap((of) =>
    registersOf(rows, [of]).flatMap((sum) =>
      prefixes.flatMap((prefix) =>
        setEach([sum], "_block", (sumOf, { indices: [r, c] }) =>
          fma(
            register(`${prefix}a`, [r!]),
            register(`${prefix}b${of.weight}`, [c!]),
            sumOf("_block"),
          ))
      )
    )
  );
}

/** The sums of a lane for some rows. */
export function registersOf(
  rows: readonly number[],
  sums: readonly SumsOfWeight[],
): readonly Register[] {
  return sums.flatMap(({ weight, columns }) =>
    rows.flatMap((r) =>
      columns.map((c) => ({ base: `sum${weight}`, indices: [r, c] }))
    )
  );
}
