/** Sums of a matrix multiplication of bytes: the state of a lane, its additions and its results. */

import { Q8_BLOCK } from "../../../spec/weights/activations.ts";
import { u32 } from "../../../spec/kernel/build.ts";
import { clamped, whereBelow } from "../../../spec/kernel/guards.ts";
import {
  declareEach,
  indicesBelow,
  letRegister,
  type Register,
  register,
  setEach,
} from "../../../spec/kernel/registers.ts";
import type { Expr, KernelText, Stmt } from "../kernel.ts";
import { expr, local, wgsl } from "../kernel.ts";
import {
  type BytesMatmul,
  type BytesOperand,
  isGuarded,
  leftStarts,
  product,
  term,
} from "./bytes_operands.ts";
import type { FactorPart } from "./bytes_decoder.ts";
import { operandsOf } from "./bytes_weights.ts";
import { u } from "./left.ts";
import { range } from "../../../spec/range.ts";
import { sumTree } from "../pieces/sum_tree.ts";

/** Words of workgroup memory for the scales of a part of a sum, if lanes load along k. */
export const SCALE_WORDS = 1024;

/**
 * Partial sums, added as a tree into sum<i>[r][c]: `body` adds those of `part_number` to part<i>[r][c], which start at
 * 0. No sum from 0 is -0, but drivers may remove the addition of 0, so GPUs replace -0.
 */
export function addedParts(
  o: BytesMatmul,
  { parts, totals, body }: {
    readonly parts: number;
    readonly totals: readonly Register[];
    readonly body: KernelText;
  },
): KernelText {
  const results = totals.map(({ base, indices }) => ({
    base: base.replace("part", "sum"),
    indices,
  }));
  const done = totals.flatMap((total, at) =>
    setEach([results[at]!], "", () => register(total.base, total.indices))
  );
  const tree = sumTree(totals, parts);
  const fromZero = setEach(
    totals,
    "",
    (of) => expr`select(${of("")}, 0.0, ${of("")} == 0.0)`,
  );
  return wgsl`
    ${declareEach(results)}
    ${tree.declare}
    for (var part_number = 0u; part_number < ${parts}; part_number++) {
      ${declareEach(totals)}
      ${body}
      ${isGuarded(o) && fromZero}
      ${tree.add(local("part_number", "u32"), done)}
    }`;
}

/** Declares row[r] and left_row[r], from `team_first` on. Rows beyond the end read the last row and write nothing. */
export function rowsFrom(o: BytesMatmul, rows: number): KernelText {
  return wgsl`
    ${
    range(rows).flatMap((r) => [
      letRegister("row", [r], expr`${u("team_first")} + ${r}`),
      letRegister(
        "left_row",
        [r],
        o.leftRow(clamped(register("row", [r], "u32"), u("end"))),
      ),
    ])
  }
    ${operandsOf(o).map((weight) => leftStarts(o, weight, rows))}`;
}

/** Sums of a weight in some columns of a lane. */
export interface Sums {
  readonly rows: number;
  readonly weight: BytesOperand;
  readonly columns: readonly number[];
}

/** The registers of sums. */
export function registersOf(
  base: string,
  { rows, weight, columns }: Sums,
): readonly Register[] {
  return range(rows).flatMap((r) =>
    columns.map((c) => ({ base: `${base}${weight.i}`, indices: [r, c] }))
  );
}

/** Loads of quantized rows: of row r, with names of `rowsFrom`. */
export interface QuantizedRows {
  scale(block: KernelText): KernelText;
  /** The sum of the integers of sum `n`, as a word. */
  sum(n: KernelText): KernelText;
  /** A word of four integers; `inSums`: its number in sums that are computed together. */
  word(word: KernelText, inSums: KernelText): KernelText;
}

function rowsInBinding({ i, left }: BytesOperand): QuantizedRows {
  return {
    scale: (block) => wgsl`${left}[scale_at${i}[r] + ${block}]`,
    sum: (n) => wgsl`${left}[sum_at${i}[r] + ${n}]`,
    word: (word) => wgsl`${left}[word_at${i}[r] + ${word}]`,
  };
}

/** The operands of sums, for `addSums`. */
export interface SumOperands {
  /** The number of the first sum. */
  readonly n: KernelText;
  /** Sums that are computed together, their stored words, and words of bytes in each. Default: those of the weight. */
  readonly stored?: Pick<BytesOperand, "together" | "words" | "parts">;
  /** Declarations before the words. */
  readonly before?: KernelText;
  /** The number of a word of quantized rows in the sums. */
  codes(word: KernelText, part: number): KernelText;
  /** The sources of quantized rows. Default: the binding. */
  readonly rows?: QuantizedRows;
  /** Declares bytes<i>_<part>[c]: the words of bytes in a column's word `word`. */
  readonly words: KernelText;
  /** Declares <name>[c], the scales or offsets of a sum. */
  factors(part: FactorPart, at: SumName): KernelText;
}

/** One of the sums that are computed together: its number, and the names of its factors. */
export interface SumName {
  /** 0, or 1 for the second. */
  readonly next: 0 | 1;
  readonly n: KernelText;
  readonly name: string;
}

/** part<i>[r][c] += the products of sums for the rows with their numbers. */
export function addSums(
  o: BytesMatmul,
  sums: Sums,
  { n, stored = sums.weight, before, words, codes, factors, ...more }:
    SumOperands,
): KernelText {
  const { rows, weight, columns } = sums;
  const { rows: left = rowsInBinding(weight) } = more;
  const { i, sumOf, above, hasOffsets } = weight;
  const { together, words: count, parts } = stored;
  const all = (text: (r: number, c: number) => KernelText) =>
    range(rows).flatMap((r) => columns.map((c) => text(r, c)));
  const needsSum = above !== 0 || hasOffsets;
  const perBlock = Q8_BLOCK / sumOf;
  const every = range(together).map((next) => {
    const number = next === 0 ? n : wgsl`(${n} + 1)`;
    const end = next === 0 ? `${i}` : `${i}_next`;
    const at = (name: string): SumName => ({
      next: next as 0 | 1,
      n: number,
      name: `${name}${end}`,
    });
    const block = perBlock === 1 ? number : wgsl`((${number}) / ${perBlock})`;
    const add = (integer: string, name: string) =>
      all((r, c) =>
        wgsl`part${i}[${r}][${c}] += ${
          term(o, {
            integer: integer === "dot"
              ? wgsl`${`dot${end}`}[${r}][${c}]`
              : wgsl`${`all${end}`}[${r}]`,
            factor: wgsl`${name}[${c}]`,
            scale: wgsl`${`scale${end}`}[${r}]`,
          })
        };`
      );
    return {
      end,
      begin: wgsl`
        @unroll (r < ${rows}) {
          let ${`scale${end}`}[r] = ${left.scale(block)};
          ${
        needsSum &&
        wgsl`let ${`all${end}`}[r] = bitcast<i32>(${left.sum(number)});`
      }
        }
        ${
        all((r, c) =>
          wgsl`var ${`dot${end}`}[${r}][${c}] = ${
            above === 0 ? wgsl`0i` : wgsl`${`all${end}`}[${r}] * ${-above}i`
          };`
        )
      }`,
      finish: wgsl`
        ${factors("scales", at("factor"))}
        ${add("dot", `factor${end}`)}
        ${
        hasOffsets && wgsl`
          ${factors("offsets", at("offset"))}
          ${add("all", `offset${end}`)}`
      }`,
    };
  });
  const productOf = (part: number, r: number, c: number) =>
    product(
      weight,
      wgsl`bytes${i}_${part}[${c}]`,
      wgsl`codes${i}_${part}[${r}]`,
    );
  // Products of one sum are added in one statement, in fewer bits where they fit.
  const products = every.flatMap(({ end }, next) =>
    all((r, c) => {
      const terms = range(parts)
        .filter((part) => together === 1 || part === next)
        .map((part) => productOf(part, r, c));
      return wgsl`${`dot${end}`}[${r}][${c}] += ${
        terms.reduce((sum, term) => wgsl`${sum} + ${term}`)
      };`;
    })
  );
  return wgsl`
    ${every.map(({ begin }) => begin)}
    ${before}
    let first_word${i} = ${n} * ${sumOf / 4};
    for (var word = 0u; word < ${count}; word++) {
      ${words}
      @unroll (r < ${rows}) {
        ${
    range(parts).map((part) => {
      const code = codes(wgsl`word`, part);
      const at = wgsl`(first_word${i} + ${code})`;
      return wgsl`let codes${i}_${part}[r] = ${left.word(at, code)};`;
    })
  }
      }
      ${products}
    }
    ${every.map(({ finish }) => finish)}`;
}

/** The use of the results of a lane's `rows` rows. */
export function finishAll(o: BytesMatmul, rows: number): readonly Stmt[] {
  return indicesBelow(rows, o.tile.columns).map(([r, c]) =>
    finish(o, {
      row: register("row", [r!], "u32"),
      column: register("column", [c!], "u32"),
      sum: (i) => register(`sum${i}`, [r!, c!]),
    })
  );
}

/** The use of one result, if it is below the end. */
export function finish(
  o: BytesMatmul,
  { row, column, sum }: {
    readonly row: Expr;
    readonly column: Expr;
    sum(weight: number): Expr;
  },
): Stmt {
  return whereBelow([[row, u("end")], [column, u32(o.columns)]], [
    letRegister("row", [], row),
    letRegister("column", [], column),
    ...o.weights.map((_, i) => letRegister(`result${i}`, [], sum(i))),
    ...o.used,
  ]);
}
