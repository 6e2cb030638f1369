/**
 * Assigns each choice its row in the send buffer, and counts rows per expert: a counting sort in which every lane
 * processes consecutive choices. `spec/kernels.md` explains it line by line.
 */

import { pick } from "../../../spec/kernel/pick.ts";
import type { Expr, Kernel, KernelText } from "../kernel.ts";
import { bindings, kernelOf, local, SHARED_WORDS, wgsl } from "../kernel.ts";
import {
  cellStride,
  lanesFor,
  laneShare,
  scanCells,
} from "../pieces/counting_sort.ts";
import { listTiles } from "../pieces/list_tiles.ts";

/** The send row of a dropped choice. */
export const DROPPED = 0xffffffff;

/** An assignment. Its grid is one workgroup. */
export interface AssignOptions {
  readonly name: string;
  readonly experts: number;
  readonly k: number;
  readonly tokens: Expr;
  readonly dropping: boolean;
  /**
   * Experts splits[p] to splits[p + 1] are those of group rank p; other choices are dropped. Default: no choice is
   * dropped.
   */
  readonly splits?: readonly number[];
  /** Send order differs from the order of expert numbers. */
  readonly ordered: boolean;
  /**
   * Deduplicated tokens are sent once to each unit, an owner of experts or a chunk of it: experts units[u] to units[u +
   * 1] belong to unit u.
   */
  readonly units?: readonly number[];
  /**
   * Rows stay on this rank, which has all experts: tokens and experts of rows, and tiles of this many rows, are listed
   * at once.
   */
  readonly grouped?: { readonly tileRows: number };
  /** Words of workgroup memory for the counts of lanes: more words allow more lanes. Default: those of all devices. */
  readonly words?: number;
}

/** The operands and results of assignments. */
export const ASSIGN_BINDINGS = bindings({
  index: "i32 [token, k]",
  // -1: the choice is dropped.
  slot: "i32 [token, k]",
  // Index of each expert in send order.
  order: "u32 [expert]",
  groupRank: "u32 [1]",
}, {
  // After the counts of experts, the number of tokens for each unit.
  counts: "u32 [expert, then unit]",
  sendRow: "u32 [token, k]",
  // The row in which a token is sent to the unit of this choice: at its first choice there, else DROPPED.
  tokenRow: "u32 [token, k]",
  // For the choice of a send row, the index of its token within the unit.
  tokenIndices: "u32 [row]",
  // Output of `regroup`, if rows are local.
  tiles: "u32 [1 + 3 * tile bound]",
  tokenOf: "u32 [row]",
  expertOf: "u32 [row]",
  rowCount: "u32 [1]",
});

/** Rows by expert, then token. */
export function assign(o: AssignOptions): Kernel {
  const { experts, k, tokens } = o;
  const units = (o.units?.length ?? 1) - 1;
  const stride = cellStride(experts);
  const lanes = lanesFor(o.units ? [experts, units] : [experts], {
    words: o.words ?? SHARED_WORDS,
    others: o.units ? 2 : 1,
  });
  const sent = o.units && tokensSent(o, { lanes, units: o.units });
  const counted = wgsl`
    cells[lane * ${stride} + expert]++;
    ${sent?.counted}`;
  const numbered = wgsl`
    let next = cells[lane * ${stride} + expert];
    sendRow[a] = next;
    ${o.grouped && wgsl`tokenOf[next] = a / ${k}; expertOf[next] = expert;`}
    cells[lane * ${stride} + expert] = next + 1;
    ${sent?.numbered}`;
  const dropped = wgsl`
    sendRow[a] = ${DROPPED};
    ${sent && wgsl`tokenRow[a] = ${DROPPED};`}`;
  const scan = scanCells({
    lanes,
    buckets: experts,
    bucket: "e",
    counts: "counts",
    totals: "experts",
  });
  return kernelOf({
    name: o.name,
    workgroupSize: lanes,
    bindings: ASSIGN_BINDINGS,
    body: wgsl`
      var<workgroup> cells: array<u32, ${lanes * stride}>;
      var<workgroup> experts: array<u32, ${experts}>;
      ${sent?.begin}

      let choices = ${tokens} * ${k};
      ${o.splits && localExperts(o.splits)}
      ${laneShare(wgsl`choices`, lanes, o.units && k)}

      // Number of this lane's choices per expert.
      for (var e = 0u; e < ${experts}; e++) { cells[lane * ${stride} + e] = 0; }
      ${eachChoice(o, counted)}
      workgroupBarrier();

      // For each expert: the number of choices of earlier lanes.
      ${scan}
      ${sent?.scan}
      workgroupBarrier();

      // Across experts: each lane adds to its own cells.
      var start = 0u;
      for (var e = 0u; e < ${experts}; e++) {
        let cell = lane * ${stride} + e;
        cells[cell] += start;
        start += experts[e];
      }

      // Each choice gets the next row of its cell.
      ${eachChoice(o, numbered, dropped)}
      ${o.grouped && tilesOf(experts, lanes, o.grouped)}`,
  });
}

/**
 * Deduplication: a choice is counted if no earlier choice of its token goes to its unit. Its token is numbered after
 * those of earlier units.
 */
function tokensSent(
  o: AssignOptions,
  { lanes, units }: {
    readonly lanes: number;
    readonly units: readonly number[];
  },
) {
  const { experts, k, dropping } = o;
  const count = units.length - 1;
  const stride = cellStride(count);
  const there = wgsl`unit_of[${indexOf(o, "b")}] == unit`;
  const found = wgsl`
    let unit = unit_of[expert];
    let cell = lane * ${stride} + unit;
    var fresh = 1u;
    for (var b = a / ${k} * ${k}; b < a; b++) {
      if (${dropping ? wgsl`slot[b] >= 0 && ${there}` : there}) { fresh = 0; }
    }`;
  return {
    begin: wgsl`
      var<workgroup> destined: array<u32, ${lanes * stride}>;
      var<workgroup> sent: array<u32, ${count}>;
      var<workgroup> unit_of: array<u32, ${experts}>;
      for (var u = 0u; u < ${count}; u++) { destined[lane * ${stride} + u] = 0; }
      for (var u = lane; u < ${count}; u += ${lanes}) {
        let end = ${pick(units.slice(1), U)};
        for (var e = ${pick(units.slice(0, -1), U)}; e < end; e++) {
          unit_of[e] = u;
        }
      }
      workgroupBarrier();`,
    counted: wgsl`
      ${found}
      if (fresh == 1) { destined[cell]++; }`,
    scan: scanCells({
      lanes,
      buckets: count,
      bucket: "u",
      cells: "destined",
      counts: "counts",
      first: experts,
      totals: "sent",
    }),
    numbered: wgsl`
      ${found}
      if (fresh == 1) {
        var first_token = 0u;
        for (var u = 0u; u < min(unit, ${count - 1}); u++) {
          first_token += sent[u];
        }
        tokenRow[a] = first_token + destined[cell];
        destined[cell]++;
      } else {
        tokenRow[a] = ${DROPPED};
      }
      // This token is the last of the unit so far.
      tokenIndices[next] = destined[cell] - 1;`,
  };
}

/** The index of the expert of a choice in send order. */
export function indexOf(
  o: Pick<AssignOptions, "ordered">,
  choice: string,
): KernelText {
  return inSendOrder(o, wgsl`u32(index[${choice}])`);
}

/** The index of an expert in send order. */
export function inSendOrder(
  { ordered }: Pick<AssignOptions, "ordered">,
  expert: KernelText,
): KernelText {
  return ordered ? wgsl`order[${expert}]` : expert;
}

/** The tiles of all experts, and the number of rows. */
export function tilesOf(
  experts: number,
  lanes: number,
  { tileRows }: { readonly tileRows: number },
): KernelText {
  return wgsl`
    var tile = 0u;
    var first_row = 0u;
    for (var e = 0u; e < ${experts}; e++) {
      let of_expert = experts[e];
      ${listTiles({ expert: wgsl`e`, lanes, tileRows })}
      first_row += of_expert;
    }
    if (lane == 0) {
      tiles[0] = tile;
      rowCount[0] = first_row;
    }`;
}

const [ME, U] = [local("me", "u32"), local("u", "u32")];

/** `first_own` and `end_own` of the experts of this rank. */
export function localExperts(splits: readonly number[]): KernelText {
  return wgsl`
    let me = groupRank[0];
    let first_own = ${pick(splits.slice(0, -1), ME)};
    let end_own = ${pick(splits.slice(1), ME)};`;
}

/** For each of this lane's choices `a`: executes `kept`, with its `expert`, or `dropped`. */
function eachChoice(
  o: AssignOptions,
  kept: KernelText,
  dropped: KernelText = wgsl``,
): KernelText {
  const { dropping, splits } = o;
  const expert = indexOf(o, "a");
  const taken = splits
    ? wgsl`
      let expert = ${expert};
      if (expert >= first_own && expert < end_own) { ${kept} } else { ${dropped} }`
    : wgsl`let expert = ${expert}; ${kept}`;
  const tested = wgsl`if (slot[a] >= 0) { ${taken} } else { ${dropped} }`;
  return wgsl`
    for (var a = from; a < to; a++) { ${dropping ? tested : taken} }`;
}
