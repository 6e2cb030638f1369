/**
 * Deduplicated dispatch: to which group ranks a token goes, whatever the number of its experts there. Rows to send, each once,
 * by a counting sort in which every lane takes consecutive tokens; and where choices find them.
 */

import type { Expr, Kernel, KernelText } from "./kernel.ts";
import { bindings, kernelOf, SHARED_WORDS, wgsl } from "./kernel.ts";
import { DROPPED } from "./assign.ts";
import { lanesFor, laneShare, scanCells } from "./pieces/counting_sort.ts";

/**
 * The ranks that tokens go to. Bindings: `index` i32 and `sendRow` u32 [token, k]; `order` u32 [expert] if `ordered`: the
 * index of each expert in send order; written: `destinationCounts` u32 [group rank]: tokens for each; `tokenRow` u32
 * [token, k]: the row in which the token is sent to the rank of this choice, at its first choice there, else DROPPED;
 * `places` u32 [row]: for the choice of a send row, its token among those sent to the same rank. Its grid is one
 * workgroup.
 */
export interface DestinationsOptions {
  readonly name: string;
  /** Experts splits[p] to splits[p + 1] belong to group rank p. */
  readonly splits: readonly number[];
  readonly k: number;
  readonly tokens: Expr;
  readonly ordered: boolean;
}

/** Rows by group rank, then token. */
export function destinations(o: DestinationsOptions): Kernel {
  const groupSize = o.splits.length - 1;
  const lanes = lanesFor(groupSize, { words: SHARED_WORDS, others: 2 });
  const cell = wgsl`cells[lane * ${groupSize} + p]`;
  const counted = eachChoice(
    o,
    wgsl`
    if (fresh == 1) { cells[lane * ${groupSize} + p]++; }`,
  );
  const scan = scanCells({
    ...{ lanes, buckets: groupSize, bucket: "q" },
    ...{ counts: "destinationCounts", totals: "totals" },
  });
  const numbered = eachChoice(
    o,
    wgsl`
      var start = 0u;
      for (var q = 0u; q < p; q++) { start += totals[q]; }
      if (fresh == 1) {
        let next = ${cell};
        cells[lane * ${groupSize} + p] = next + 1;
        tokenRow[a] = start + next;
      } else {
        tokenRow[a] = ${DROPPED};
      }
      // The last one for this rank so far is this token.
      places[sendRow[a]] = ${cell} - 1;`,
    wgsl`tokenRow[a] = ${DROPPED};`,
  );
  return kernelOf({
    name: o.name,
    workgroupSize: lanes,
    bindings: bindings(
      { index: "i32", sendRow: "u32", order: "u32" },
      { destinationCounts: "u32", tokenRow: "u32", places: "u32" },
    ),
    body: wgsl`
      var<workgroup> cells: array<u32, ${lanes * groupSize}>;
      var<workgroup> totals: array<u32, ${groupSize}>;

      let tokens = ${o.tokens};
      ${laneShare(wgsl`tokens`, lanes)}

      // How many tokens of this lane go to each rank.
      for (var q = 0u; q < ${groupSize}; q++) { cells[lane * ${groupSize} + q] = 0; }
      ${counted}
      workgroupBarrier();

      // For each rank: how many tokens earlier lanes have.
      ${scan}
      workgroupBarrier();

      // Each token takes the next row of its cell, behind those of lower group ranks.
      ${numbered}`,
  });
}

/**
 * For each choice `a` of this lane's tokens that is not dropped: `then`, with `p`, its group rank, and `fresh`, 1 if no
 * choice before it goes there; else `dropped`.
 */
function eachChoice(
  o: DestinationsOptions,
  then: KernelText,
  dropped: KernelText = wgsl``,
): KernelText {
  const { k, ordered } = o;
  const expert = (a: string) =>
    ordered ? wgsl`order[u32(index[${a}])]` : wgsl`u32(index[${a}])`;
  return wgsl`
    for (var t = from; t < to; t++) {
      for (var j = 0u; j < ${k}; j++) {
        let a = t * ${k} + j;
        if (sendRow[a] != ${DROPPED}) {
          let expert = ${expert("a")};
          let p = ${groupRankOf(o, "expert")};
          var fresh = 1u;
          for (var i = 0u; i < j; i++) {
            let b = t * ${k} + i;
            if (sendRow[b] != ${DROPPED}) {
              let other = ${expert("b")};
              if (${groupRankOf(o, "other")} == p) { fresh = 0; }
            }
          }
          ${then}
        } else {
          ${dropped}
        }
      }
    }`;
}

/** The group rank that owns a expert: how many end before it. */
function groupRankOf(
  { splits }: DestinationsOptions,
  expert: string,
): KernelText {
  return splits.slice(1, -1).reduce(
    (p, end) => wgsl`${p} + select(1u, 0u, ${expert} < ${end})`,
    wgsl`0u`,
  );
}
