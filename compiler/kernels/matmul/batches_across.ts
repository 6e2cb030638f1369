/**
 * Sums of `contractBatches` whose words are along columns: row by row, or from decoded elements in workgroup memory.
 */

import { letRegister, register } from "../../../spec/kernel/registers.ts";
import { sharedStore } from "../../../spec/kernel/build.ts";
import { range } from "../../../spec/range.ts";
import type { KernelText } from "../kernel.ts";
import { expr, wgsl } from "../kernel.ts";
import { blockedSum } from "../pieces/blocked_sum.ts";
import { scaled } from "../pieces/decode.ts";
import {
  AT_K,
  BATCH,
  type Batches,
  leftAt,
  ofResult,
  partsOf,
  rowsFrom,
  startsOf,
} from "./batch_tile.ts";
import { u } from "./left.ts";
import { addProducts, registersOf } from "./products.ts";

/** The rows of a workgroup, from row `first` on. */
export function rowsAcross(o: Batches): KernelText {
  const { most, fewest } = o.tile;
  const each = wgsl`
    for (var one = first; one < rows_end; one++) { ${oneRow(o)} }`;
  return wgsl`
    let rows_end = min(end, first + ${most});
    ${
    o.staged > 0
      ? wgsl`
    if (rows_end - first < ${fewest}) { ${each} } else { ${stagedRows(o)} }`
      : each
  }`;
}

/** Row `one` of a lane that decodes for itself: its sums and epilogues. */
function oneRow(o: Batches): KernelText {
  const first = u("one");
  return wgsl`
    ${rowsFrom(first, 1)}
    ${sumsAcrossWords(o)}
    ${
    range(o.each).map((c) =>
      ofResult(o, { first, r: 0, c, column: expr`${u("first_column")} + ${c}` })
    )
  }`;
}

/** Rows that read elements in workgroup memory, which lanes decode for some columns at once. */
function stagedRows(o: Batches): KernelText {
  const { k, segments, lanes, each, staged, columns, tile } = o;
  const { perWord } = o.right.decoders[0]!;
  const [rows, ofLane] = [range(tile.rows), range(staged / lanes)];
  const inRow = staged / perWord;
  const sums = [{ weight: 0, columns: ofLane }];
  const columnOf = (c: number) => expr`lane + ${c * lanes}`;
  const first = u("some");
  return wgsl`
    var<workgroup> elements: array<f32, ${k * staged}>;
    let part = group.y % ${partsOf(o)} * ${lanes * each};
    for (var from = part; from < min(part + ${
    lanes * each
  }, ${columns}u); from += ${staged}) {
      for (var turn = lane; turn < ${k * inRow}; turn += ${lanes}) {
        let at_k = turn / ${inRow};
        let k = min(from / ${perWord} + turn % ${inRow}, ${
    columns / perWord - 1
  });
        ${decodedWords(o, 1)}
        ${
    range(perWord).map((n) =>
      sharedStore(
        "elements",
        expr`${u("turn")} * ${perWord} + ${n}`,
        register("b0", [n]),
      )
    )
  }
      }
      workgroupBarrier();
      for (var some = first; some < rows_end; some += ${tile.rows}) {
        ${rowsFrom(first, tile.rows)}
        ${
    blockedSum(
      registersOf(rows, sums),
      { over: "at_k", length: k, segments },
      wgsl`
        ${leftAt(o, { prefix: "", k: AT_K, rows })}
        ${
        ofLane.map((c) =>
          wgsl`let b0[${c}] = elements[at_k * ${staged} + ${columnOf(c)}];`
        )
      }
        ${addProducts(o.right, rows, { prefixes: [""], sums })}`,
    )
  }
        ${
    rows.flatMap((r) =>
      ofLane.map((c) =>
        ofResult(o, {
          first,
          r,
          c,
          column: expr`${u("from")} + ${columnOf(c)}`,
        })
      )
    )
  }
      }
      workgroupBarrier();
    }`;
}

/** Sums of adjacent columns of a row. They have the same scale. */
function sumsAcrossWords(o: Batches): KernelText {
  const { right, each, k, segments, columns } = o;
  const { perWord } = right.decoders[0]!;
  const sums = [{ weight: 0, columns: range(each) }];
  return wgsl`
    let k = min(first_column, ${columns - each}u) / ${perWord};
    ${
    blockedSum(
      registersOf([0], sums),
      { over: "at_k", length: k, segments },
      wgsl`
      ${leftAt(o, { prefix: "", k: AT_K, rows: [0] })}
      ${decodedWords(o, each / perWord)}
      ${addProducts(right, [0], { prefixes: [""], sums })}`,
    )
  }`;
}

/** Declares b0[c]: the elements of some words from word `k` of row `at_k` on, which share a scale. */
function decodedWords(o: Batches, count: number): KernelText {
  const { right } = o;
  const { perWord, wordName, load, element, scales } = right.decoders[0]!;
  const words = range(count).map((n) => ({
    name: `${wordName}${n}_`,
    k: expr`${u("k")} * ${perWord} + ${n * perWord}`,
    word: expr`${u("k")} + ${n}`,
  }));
  const { before, of } = load(words, [0]);
  const { elements, hasOffsets } = scales!;
  const factors = elements === Number(right.k)
    ? scales!.ofBlock(1, { columns: [0], start: wgsl`0u` })
    : scales!.ofIteration(0);
  const values = range(count * perWord).map((c) => {
    const [word, n] = [Math.floor(c / perWord), c % perWord];
    const part = (name: string) =>
      register(`${name}${Math.floor(n / elements)}_0`, [0]);
    return letRegister(
      "b0",
      [c],
      scaled(element(words[word]!.name, { column: 0, n }), {
        factor: part("factor"),
        offset: hasOffsets ? part("offset") : undefined,
      }),
    );
  });
  return wgsl`
    ${o.weightRow({ batch: BATCH, outer: AT_K }, (row) => startsOf(o, row))}
    ${before}
    ${of(0)}
    ${factors}
    ${values}`;
}
