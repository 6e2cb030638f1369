/** Sums of a matrix multiplication of bytes: the state of a lane, its additions and its results. */

import { Q8_BLOCK, q8PartsOf } from "../../spec/activations.ts";
import { EXACT } from "../../spec/numerics.ts";
import { u32 } from "../../spec/kernel/build.ts";
import { clamped, whereBelow } from "../../spec/kernel/guards.ts";
import {
  indicesBelow,
  letRegister,
  type Register,
  register,
} from "../../spec/kernel/registers.ts";
import type { KernelText, Stmt } from "./kernel.ts";
import { expr, wgsl } from "./kernel.ts";
import {
  type BytesMatmul,
  type BytesOperand,
  leftStarts,
  operandsOf,
  product,
  term,
} from "./matmul_bytes_operands.ts";
import { u } from "./matmul_left.ts";
import { range } from "./pieces/numbers.ts";

/** Words of workgroup memory for the scales of a part of a sum, if lanes load along k. */
export const SCALE_WORDS = 1024;

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

/**
 * part<i>[r][c] += the products of sum `n` for the rows with that number. `words` returns the bytes of a column's words
 * `word`, starting at `first_word`.
 */
export function addSum(
  o: BytesMatmul,
  sums: Sums,
  { n, words, factors, offsets }: {
    readonly n: KernelText;
    /** Declares bytes<i>_0[c], and bytes<i>_1[c] if a word contains two words of bytes. */
    readonly words: KernelText;
    readonly factors: KernelText;
    readonly offsets?: KernelText | undefined;
  },
): KernelText {
  const { rows, weight, columns } = sums;
  const { i, left, sumOf, perWord, bytes, offsets: minimum } = weight;
  const inWord = perWord / 4;
  const all = (text: (r: number, c: number) => KernelText) =>
    range(rows).flatMap((r) => columns.map((c) => text(r, c)));
  const needsSum = bytes.above !== 0 || minimum !== undefined;
  const perBlock = Q8_BLOCK / sumOf;
  const block = perBlock === 1 ? n : wgsl`((${n}) / ${perBlock})`;
  const products = all((r, c) =>
    wgsl`${
      range(inWord).map((part) =>
        wgsl`dot${i}[${r}][${c}] += ${
          product(
            o,
            wgsl`bytes${i}_${part}[${c}]`,
            wgsl`codes${i}_${part}[${r}]`,
          )
        };`
      )
    }`
  );
  return wgsl`
    @unroll (r < ${rows}) {
      let scale${i}[r] = ${left}[scale_at${i}[r] + ${block}];
      ${
    needsSum &&
    wgsl`let all${i}[r] = bitcast<i32>(${left}[sum_at${i}[r] + ${n}]);`
  }
    }
    ${
    all((r, c) =>
      wgsl`var dot${i}[${r}][${c}] = ${
        bytes.above === 0 ? wgsl`0i` : wgsl`all${i}[${r}] * ${-bytes.above}i`
      };`
    )
  }
    let first_word${i} = ${n} * ${sumOf / perWord};
    for (var word = 0u; word < ${sumOf / perWord}; word++) {
      ${words}
      @unroll (r < ${rows}) {
        ${
    range(inWord).map((part) =>
      wgsl`let codes${i}_${part}[r] = ${left}[word_at${i}[r] + ${
        inWord === 1
          ? wgsl`(first_word${i} + word)`
          : wgsl`((first_word${i} + word) * 2 + ${part})`
      }];`
    )
  }
      }
      ${products}
    }
    ${factors}
    ${
    all((r, c) =>
      wgsl`part${i}[${r}][${c}] += ${
        term(o, {
          integer: wgsl`dot${i}[${r}][${c}]`,
          factor: wgsl`factor${i}[${c}]`,
          scale: wgsl`scale${i}[${r}]`,
        })
      };`
    )
  }
    ${offsets}
    ${
    minimum !== undefined && all((r, c) =>
      wgsl`part${i}[${r}][${c}] += ${
        term(o, {
          integer: wgsl`all${i}[${r}]`,
          factor: wgsl`offset${i}[${c}]`,
          scale: wgsl`scale${i}[${r}]`,
        })
      };`
    )
  }`;
}

/** Partial sums with the given number of products. */
export function partsOf(
  { k, segments = EXACT.segments }: BytesMatmul,
): number {
  return q8PartsOf(k / Q8_BLOCK, EXACT.segments / segments);
}

/** The use of the results of a lane's `rows` rows. */
export function finishAll(
  o: BytesMatmul,
  rows: number,
): readonly Stmt[] {
  return indicesBelow(rows, o.tile.columns).map(([r, c]) => {
    const [row, column] = [
      register("row", [r!], "u32"),
      register("column", [c!], "u32"),
    ];
    return whereBelow([[row, u("end")], [column, u32(o.columns)]], [
      letRegister("row", [], row),
      letRegister("column", [], column),
      ...o.weights.map((_, i) =>
        letRegister(`result${i}`, [], register(`sum${i}`, [r!, c!]))
      ),
      ...o.used,
    ]);
  });
}
