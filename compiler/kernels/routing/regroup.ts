/**
 * Assigns received rows to local experts by the counts, and lists the tiles of the grouped matmuls. No data moves: one
 * invocation per grouped row searches the counts.
 */

import { expertRanges } from "../../../spec/plan/bytes.ts";
import { pick } from "../../../spec/kernel/pick.ts";
import { listTiles } from "../pieces/list_tiles.ts";
import type { Size } from "../../../spec/size.ts";
import type { Grid, Kernel, KernelText } from "../kernel.ts";
import {
  bindings,
  foldGrid,
  GROUP_XY,
  kernelOf,
  local,
  wgsl,
} from "../kernel.ts";

const LANES = 64;

/** Maximum number of counts in workgroup memory. */
const MAX_STAGED = 2048;

/** A regroup. Its grid is `regroupGrid(rows)`. */
export interface RegroupOptions {
  readonly name: string;
  /** Experts splits[p] to splits[p + 1] belong to group rank p. */
  readonly splits: readonly number[];
  /** Source ranks, each with a row of counts. Default: the group. */
  readonly sources?: number;
  /**
   * Only these experts of each group rank have been received. Default: all. Rows are numbered within them, experts
   * within the rank.
   */
  readonly experts?: readonly (readonly [first: number, end: number])[];
  /** Counts per rank. Default: one per expert, and with `once` one per unit. */
  readonly countsPerRank?: number;
  /** Tokens are deduplicated; set for each chunk. */
  readonly once?: { readonly chunk: number; readonly chunks: number };
  /** Rows per tile: `matmulShape(…).rows` of the matmuls that use the list. */
  readonly tileRows: number;
  /** For a wide device: counts are loaded into workgroup memory, if it has room. Default: false. */
  readonly wide?: boolean | undefined;
}

/** The grid of `regroup` for at most `rows` received rows. There is always a workgroup to write the tile count. */
export function regroupGrid(rows: Size): Grid {
  return [...foldGrid({ ceilDiv: [{ add: [rows, 1] }, LANES] }), 1];
}

/** Maximum number of tiles: every expert may have one partly filled tile, and no tile is empty. */
export function tileBound(
  rows: Size,
  localExperts: number,
  tileRows: number,
): Size {
  return {
    min: [rows, { add: [{ ceilDiv: [rows, tileRows] }, localExperts] }],
  };
}

const ME = local("me", "u32");

/**
 * tiles = [count, then (local expert, first grouped row, rows) of each tile]; rowOf[g] = the received row of grouped
 * row g, expertOf[g] = its local expert, tokenOf[g] = the number of tokens of earlier sources, plus its index among
 * those of its own. Received rows are ordered by source, local expert, token; grouped ones by local expert, source,
 * token.
 */
export function regroup(o: RegroupOptions): Kernel {
  const groupSize = o.splits.length - 1;
  const sources = o.sources ?? groupSize;
  const experts = o.splits.at(-1)!;
  const { chunk = 0, chunks = 0 } = o.once ?? {};
  const { countsPerRank: each = experts + groupSize * chunks } = o;
  const tokensFrom = (source: string) =>
    wgsl`counts[${source} * ${each} + ${experts + chunk} + me * ${chunks}]`;
  const parts = expertRanges(o);
  const skipped = parts.map(([first], p) => first - o.splits[p]!);
  const skips = skipped.some((n) => n > 0);
  const expert = skips ? wgsl`skipped + e` : wgsl`e`;
  const allTokens = wgsl`
    var all = 0u;
    for (var s = 0u; s < ${sources}; s++) { all += ${tokensFrom("s")}; }
    rowCount[1] = all;`;
  const most = Math.max(...parts.map(([first, end]) => end - first));
  const staged = o.wide === true && sources * most <= MAX_STAGED;
  const count = wgsl`counts[s * ${each} + first + e]`;
  /** Adds counts in bindings: predictions know them, but not those in workgroup memory. */
  const rowsOfExpert = (name: string) =>
    wgsl`
    var ${name} = 0u;
    for (var s = 0u; s < ${sources}; s++) { ${name} += ${count}; }`;
  const tilesOfExpert = (listed?: KernelText) =>
    listTiles({ ...o, expert, lanes: LANES, listed });
  return kernelOf({
    name: o.name,
    workgroupSize: LANES,
    bindings: bindings({
      // After the counts of experts, the tokens per unit if they are deduplicated.
      counts: "u32 [group rank, expert, then unit]",
      groupRank: "u32 [1]",
      // The token indices of choices, as received.
      tokenIndices: "u32 [row]",
    }, {
      tiles: "u32 [1 + 3 * tile bound]",
      rowOf: "u32 [row]",
      expertOf: "u32 [row]",
      rowCount: "u32 [rows, tokens]",
      tokenOf: "u32 [row]",
    }),
    body: wgsl`
      let group_number = ${GROUP_XY};
      let g = group_number * ${LANES} + lane;
      let me = ${groupSize === 1 ? wgsl`0u` : wgsl`groupRank[0]`};
      let first = ${pick(parts.map(([first]) => first), ME)};
      let experts = ${pick(parts.map(([, end]) => end), ME)} - first;
      ${skips && wgsl`let skipped = ${pick(skipped, ME)};`}

      ${
      staged ? stagedSearch({ sources, most, each }) : wgsl`
      // Searches the grouped order for the block (expert, source) that contains row g.
      var before = 0u;
      var expert = 0u;
      var source = 0u;
      var row = 0u;
      for (var e = 0u; e < experts; e++) {
        for (var s = 0u; s < ${sources}; s++) {
          let here = ${count};
          if (g >= before && g < before + here) {
            expert = e;
            source = s;
            row = g - before;
          }
          before += here;
        }
      }`
    }
      if (g < before) {
        ${
      staged ? stagedRow({ sources, most }) : wgsl`
        // In received order: all rows of earlier sources, then this source's rows for earlier experts.
        for (var s = 0u; s < ${sources}; s++) {
          for (var e = 0u; e < experts; e++) {
            if (s < source || (s == source && e < expert)) { row += ${count}; }
          }
        }`
    }
        ${
      o.once && wgsl`
        var tokens = 0u;
        for (var s = 0u; s < min(source, ${sources}); s++) { tokens += ${
        tokensFrom("s")
      }; }`
    }
        rowOf[g] = row;
        ${o.once && wgsl`tokenOf[g] = tokens + tokenIndices[row];`}
        expertOf[g] = ${skips ? wgsl`skipped + expert` : "expert"};
      }
      if (g == 0) {
        rowCount[0] = before;
        ${o.once && allTokens}
      }

      // One invocation of the first workgroup per expert lists its tiles, after those of earlier experts.
      if (group_number == 0) {
        ${
      staged
        ? stagedTiles(o.tileRows, tilesOfExpert(rowsOfExpert("of_lane")))
        : wgsl`
        var tile = 0u;
        var first_row = 0u;
        for (var e = 0u; e < experts; e++) {
          ${rowsOfExpert("of_expert")}
          ${tilesOfExpert()}
          first_row += of_expert;
        }
        if (lane == 0) { tiles[0] = tile; }`
    }
      }`,
  });
}

/** Source ranks, the most experts of a rank, and counts per rank. */
interface Staged {
  readonly sources: number;
  readonly most: number;
  readonly each: number;
}

/**
 * Loads the counts into workgroup memory, with their sums per expert and per source, and searches the experts in order
 * for row g: `before` is the number of all rows, `row` the index within the expert.
 */
function stagedSearch({ sources, most, each }: Staged): KernelText {
  return wgsl`
    var<workgroup> received: array<u32, ${sources * most}>;
    var<workgroup> per_expert: array<u32, ${most}>;
    var<workgroup> per_source: array<u32, ${sources}>;
    for (var i = lane; i < ${sources * most}; i += ${LANES}) {
      let of_expert = i % ${most};
      if (of_expert < experts) {
        received[i] = counts[i / ${most} * ${each} + first + of_expert];
      }
    }
    workgroupBarrier();
    for (var e = lane; e < experts; e += ${LANES}) {
      var sum = 0u;
      for (var s = 0u; s < ${sources}; s++) { sum += received[s * ${most} + e]; }
      per_expert[e] = sum;
    }
    for (var s = lane; s < ${sources}; s += ${LANES}) {
      var sum = 0u;
      for (var e = 0u; e < experts; e++) { sum += received[s * ${most} + e]; }
      per_source[s] = sum;
    }
    workgroupBarrier();
    var before = 0u;
    var expert = 0u;
    var row = 0u;
    for (var e = 0u; e < experts; e++) {
      let here = per_expert[e];
      if (g >= before && g < before + here) {
        expert = e;
        row = g - before;
      }
      before += here;
    }`;
}

/**
 * Finds the source of a row of an expert. The row becomes that of all received rows, which are ordered by source. The
 * minimum is a bound for predictions.
 */
function stagedRow(
  { sources, most }: Pick<Staged, "sources" | "most">,
): KernelText {
  return wgsl`
    let place = row;
    var passed = 0u;
    var source = 0u;
    var earlier = 0u;
    var of_sources = 0u;
    for (var s = 0u; s < ${sources}; s++) {
      let here = received[s * ${most} + expert];
      if (place >= passed && place < passed + here) {
        source = s;
        row = place - passed;
        earlier = of_sources;
      }
      passed += here;
      of_sources += per_source[s];
    }
    row += earlier;
    for (var e = 0u; e < min(expert, ${most}); e++) { row += received[source * ${most} + e]; }`;
}

/** Lists the tiles of the experts of a lane, after those of earlier experts. */
function stagedTiles(tileRows: number, tilesOfExpert: KernelText): KernelText {
  return wgsl`
    for (var e = lane; e < experts; e += ${LANES}) {
      var tile = 0u;
      var first_row = 0u;
      for (var n = 0u; n < e; n++) {
        let rows = per_expert[n];
        tile += (rows + ${tileRows - 1}) / ${tileRows};
        first_row += rows;
      }
      let of_expert = per_expert[e];
      ${tilesOfExpert}
      if (e == experts - 1) { tiles[0] = tile; }
    }
    if (lane == 0 && experts == 0) { tiles[0] = 0; }`;
}
