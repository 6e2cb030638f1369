/**
 * Assigns each choice its row in the send buffer, and counts rows per expert: a counting sort in which every lane
 * processes consecutive choices. `spec/kernels.md` explains it line by line.
 */

import { id } from "../../../spec/kernel/build.ts";
import { pick } from "../../../spec/kernel/pick.ts";
import { range } from "../../../spec/range.ts";
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

/** An assignment. Its grid is one workgroup, or one for each of its `ranges`. */
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
  /**
   * Several workgroups: workgroup g numbers choices of experts ranges[g] to ranges[g + 1], all experts of some units.
   * Not if rows are `grouped`. Default: one workgroup numbers all.
   */
  readonly ranges?: readonly number[];
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

/** Maximum lanes of one workgroup, and of one of several. */
const LANES = 64, LANES_OF_RANGE = 256;

/** Maximum number of experts of a workgroup that is one of several. */
const RANGE = 32;

/** Rows by expert, then token. */
export function assign(o: AssignOptions): Kernel {
  const { experts, k, tokens, ranges } = o;
  const buckets = bucketsOf(experts, "e", ranges);
  const units = o.units && bucketsOf(
    o.units.length - 1,
    "u",
    ranges && unitRanges(o.units, ranges),
  );
  const stride = cellStride(buckets.count);
  const lanes = lanesFor([buckets.count, ...units ? [units.count] : []], {
    max: ranges ? LANES_OF_RANGE : LANES,
    words: o.words ?? SHARED_WORDS,
    others: buckets.count + (units ? units.count + experts : 0),
  });
  const sent = o.units && units &&
    tokensSent(o, { lanes, units: o.units, buckets: units });
  const bucket = buckets.found ? "bucket" : "expert";
  const found = buckets.found?.("expert", bucket);
  const counted = wgsl`
    ${found}
    cells[lane * ${stride} + ${bucket}]++;
    ${sent?.counted}`;
  const numbered = wgsl`
    ${found}
    let next = cells[lane * ${stride} + ${bucket}];
    sendRow[a] = next;
    ${o.grouped && wgsl`tokenOf[next] = a / ${k}; expertOf[next] = expert;`}
    cells[lane * ${stride} + ${bucket}] = next + 1;
    ${sent?.numbered}`;
  const dropped = wgsl`
    sendRow[a] = ${DROPPED};
    ${sent && wgsl`tokenRow[a] = ${DROPPED};`}`;
  const scan = scanCells({
    lanes,
    buckets: buckets.count,
    bucket: "e",
    total: wgsl`
      ${buckets.stored("e", 0)}
      experts[e] = count;`,
  });
  return kernelOf({
    name: o.name,
    workgroupSize: lanes,
    bindings: ASSIGN_BINDINGS,
    body: wgsl`
      var<workgroup> cells: array<u32, ${lanes * stride}>;
      var<workgroup> experts: array<u32, ${buckets.count}>;
      ${buckets.begin}
      ${sent?.begin}

      let choices = ${tokens} * ${k};
      ${o.splits && localExperts(o.splits)}
      ${laneShare(wgsl`choices`, lanes, o.units && k)}

      // Number of this lane's choices per expert.
      for (var e = 0u; e < ${buckets.count}; e++) { cells[lane * ${stride} + e] = 0; }
      ${sent?.seen}
      ${
      eachChoice(o, {
        each: sent?.each,
        kept: ranges ? wgsl`if (expert < end_e) { ${counted} }` : counted,
      })
    }
      workgroupBarrier();

      // For each expert: the number of choices of earlier lanes.
      ${scan}
      ${sent?.scan}
      workgroupBarrier();

      // Across experts: each lane adds to its own cells.
      var start = 0u;
      for (var e = 0u; e < ${buckets.count}; e++) {
        let cell = lane * ${stride} + e;
        cells[cell] += start;
        start += experts[e];
      }

      // Each choice gets the next row of its cell.
      ${
      eachChoice(o, {
        each: sent?.each,
        kept: ranges
          ? wgsl`if (expert >= begin_e && expert < end_e) { ${numbered} }`
          : numbered,
        dropped: ranges ? wgsl`if (group.x == 0) { ${dropped} }` : dropped,
      })
    }
      ${o.grouped && tilesOf(experts, lanes, o.grouped)}`,
  });
}

/**
 * Deduplication: a choice is counted if no earlier choice of its token goes to its unit. Its token is numbered after
 * those of earlier units.
 */
function tokensSent(
  o: AssignOptions,
  { lanes, units, buckets }: {
    readonly lanes: number;
    readonly units: readonly number[];
    readonly buckets: Buckets;
  },
) {
  const { experts, k, dropping } = o;
  const count = units.length - 1;
  const stride = cellStride(buckets.count);
  const bucket = buckets.found ? "unit_bucket" : "unit";
  // The units of earlier choices as bits, or compared one by one.
  const marked = o.ranges !== undefined && count <= 32;
  const there = wgsl`unit_of[${indexOf(o, "b")}] == unit`;
  const found = wgsl`
    let unit = unit_of[expert];
    ${buckets.found?.("unit", bucket)}
    let cell = lane * ${stride} + ${bucket};
    ${
    marked
      ? wgsl`
    let fresh = 1 - ((seen >> unit) & 1);
    seen |= 1u << unit;`
      : wgsl`
    var fresh = 1u;
    for (var b = a / ${k} * ${k}; b < a; b++) {
      if (${dropping ? wgsl`slot[b] >= 0 && ${there}` : there}) { fresh = 0; }
    }`
  }`;
  return {
    begin: wgsl`
      var<workgroup> destined: array<u32, ${lanes * stride}>;
      var<workgroup> sent: array<u32, ${buckets.count}>;
      var<workgroup> unit_of: array<u32, ${experts}>;
      ${buckets.begin}
      for (var u = 0u; u < ${buckets.count}; u++) {
        destined[lane * ${stride} + u] = 0;
      }
      for (var u = lane; u < ${count}; u += ${lanes}) {
        let end = ${pick(units.slice(1), U)};
        for (var e = ${pick(units.slice(0, -1), U)}; e < end; e++) {
          unit_of[e] = u;
        }
      }
      workgroupBarrier();`,
    seen: marked ? wgsl`var seen = 0u;` : undefined,
    each: marked ? wgsl`if (a % ${k} == 0) { seen = 0; }` : undefined,
    counted: wgsl`
      ${found}
      if (fresh == 1) { destined[cell]++; }`,
    scan: scanCells({
      lanes,
      buckets: buckets.count,
      bucket: "u",
      cells: "destined",
      total: wgsl`
        ${buckets.stored("u", experts)}
        sent[u] = count;`,
    }),
    numbered: wgsl`
      ${found}
      if (fresh == 1) {
        var first_token = 0u;
        for (var u = 0u; u < min(${bucket}, ${buckets.count - 1}); u++) {
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

/** The buckets of a workgroup's items, experts or units. */
interface Buckets {
  readonly count: number;
  /** Declares the workgroup's range of items: `begin_` and `end_` with the name of the items. */
  readonly begin?: KernelText;
  /** Declares `at`: the bucket of the item `item`. */
  readonly found?: (item: string, at: string) => KernelText;
  /** Stores the `count` of a bucket in the counts from `first` on. */
  readonly stored: (bucket: string, first: number) => KernelText;
}

/** A bucket per item. With `ranges`, a workgroup has one for the items of earlier ranges, then one per item of its own. */
function bucketsOf(
  items: number,
  name: string,
  ranges?: readonly number[],
): Buckets {
  if (!ranges) {
    return {
      count: items,
      stored: (bucket, first) => wgsl`counts[${first} + ${bucket}] = count;`,
    };
  }
  const [starts, ends] = [ranges.slice(0, -1), ranges.slice(1)];
  const [begin, end] = [`begin_${name}`, `end_${name}`];
  return {
    count: 1 + Math.max(...ends.map((e, g) => e - starts[g]!)),
    begin: wgsl`
      let ${begin} = ${pick(starts, GROUP)};
      let ${end} = ${pick(ends, GROUP)};`,
    found: (item, at) =>
      wgsl`let ${at} = max(${item} + 1, ${begin}) - ${begin};`,
    stored: (bucket, first) =>
      wgsl`
      if (${bucket} > 0 && ${begin} + ${bucket} <= ${end}) {
        counts[${first} + ${begin} + ${bucket} - 1] = count;
      }`,
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

const [ME, U, GROUP] = [local("me", "u32"), local("u", "u32"), id("group.x")];

/** `first_own` and `end_own` of the experts of this rank. */
export function localExperts(splits: readonly number[]): KernelText {
  return wgsl`
    let me = groupRank[0];
    let first_own = ${pick(splits.slice(0, -1), ME)};
    let end_own = ${pick(splits.slice(1), ME)};`;
}

/** For each of this lane's choices `a`: executes `each`, and `kept`, with its `expert`, or `dropped`. */
function eachChoice(
  o: AssignOptions,
  { each, kept, dropped = wgsl`` }: {
    readonly each: KernelText | undefined;
    readonly kept: KernelText;
    readonly dropped?: KernelText;
  },
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
    for (var a = from; a < to; a++) { ${each} ${dropping ? tested : taken} }`;
}

/**
 * Ranges of at most `RANGE` experts, each of whole units; a larger unit is a range of its own. Default: units of one
 * expert. Returns undefined for a single range.
 */
export function rangesOf(
  { experts, units = range(experts + 1) }: Pick<
    AssignOptions,
    "experts" | "units"
  >,
): number[] | undefined {
  const bounds = [0];
  units.forEach((end, u) => {
    if (u > 0 && end - bounds.at(-1)! > RANGE) {
      const before = units[u - 1]!;
      if (before > bounds.at(-1)!) bounds.push(before);
    }
  });
  return bounds.length > 1 ? [...bounds, experts] : undefined;
}

/** The units of ranges of experts. */
function unitRanges(
  units: readonly number[],
  ranges: readonly number[],
): number[] {
  return ranges.map((end, g) =>
    g === ranges.length - 1 ? units.length - 1 : units.indexOf(end)
  );
}
