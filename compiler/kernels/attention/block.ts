/**
 * A block of 32 keys in attention: weights and sums of the queries of a workgroup, which load keys and values once. For
 * weights, lane j takes key j of the block; for sums, lane d takes dimension d of the values.
 */

import { type HalfDType, isHalf } from "../../../spec/dtype.ts";
import {
  KEY_BLOCK,
  type QueryShape,
  type QueryTile,
} from "../../tuning/queries.ts";
import type { Binding, Expr, Hole, KernelText } from "../kernel.ts";
import { bindings, wgsl } from "../kernel.ts";
import type { Cache, CacheShape } from "../pieces/cache.ts";
import { loadStored } from "../../../spec/kernel/build.ts";
import { range } from "../../../spec/range.ts";
import type { Seen } from "../../../spec/pages.ts";
import { firstSeenText } from "../pieces/seen_keys.ts";
import { countSelected, kvHeadOf, selectedOf } from "./selected.ts";

/** Attention over a cache. */
export interface AttentionOptions extends QueryShape, Seen, CacheShape {
  readonly name: string;
  /** Values are the first elements of the keys; there is no binding `values`. */
  readonly shared?: boolean;
  /** Each head has a sink: the score of an additional key without a value, the first block of the sum. */
  readonly sinks?: boolean;
  /** Storage dtype of the sinks. Default: f32. */
  readonly sinksStored?: "f32" | HalfDType;
  /**
   * Storage dtype of the cache. In 16 bits, two elements share a word, and `keys` and `values` are u32. Default: f32.
   */
  readonly stored?: "f32" | HalfDType;
  /** Entries of a second cache, to which tokens attend too: the selected ones, or all up to the last that each sees. */
  readonly entries?: number;
  /** Each key head has its own list of selected keys. */
  readonly selectedPerHead?: boolean | undefined;
  readonly scale: number;
  readonly tokens: Expr;
  /** Words of keys, and of values, that a lane loads at once. Default: those of one element. */
  readonly atOnce?: number;
  /**
   * Ranks share the positions of a sequence, in blocks: the sums of this rank's keys are added to those of earlier
   * ones.
   */
  readonly shard?: KeyShard;
}

/** The positions of a rank, and the sums that it continues. */
export interface KeyShard {
  /** Index of the first position in the constants `parts`. */
  readonly start: number;
  /** Whether earlier ranks have positions, whose sums are `sumsBefore`. */
  readonly continues: boolean;
}

/** Name of the first position of this rank, if ranks share positions. */
const FIRST_POSITION = "first_position";

/** Declares the first position of this rank, if ranks share positions. */
export function beginShard({ shard }: AttentionOptions): KernelText | false {
  return shard !== undefined &&
    wgsl`let ${FIRST_POSITION} = parts[${shard.start}];`;
}

/**
 * Offset of the sums of a query in `sumsBefore` and `sumsAfter`: of `width` values, then the maximum and the sum of
 * weights.
 */
export function sumsOf(row: Hole, width: number): KernelText {
  return wgsl`${row} * ${width + 2}`;
}

/** The positions from `first` to before `end` that are on this rank. */
export function onRank(
  { shard, context }: AttentionOptions,
  first: KernelText,
  end: KernelText,
): readonly [first: KernelText, end: KernelText] {
  if (!shard) return [first, end];
  return [
    wgsl`max(${first}, ${FIRST_POSITION})`,
    wgsl`min(${end}, ${FIRST_POSITION} + ${context})`,
  ];
}

/** The sink of a head. */
export function sinkOf(
  { sinksStored = "f32" }: AttentionOptions,
  head: Expr,
): Expr {
  return loadStored("sinks", sinksStored, head);
}

/** Read bindings of attention. Paged caches start with [page, within]. */
export function operandsOf(o: AttentionOptions): readonly Binding[] {
  const cached = isHalf(o.stored ?? "f32") ? "u32" : "f32";
  return bindings({
    q: "f32 [token, head, dim]",
    keys: `${cached} [sequence, context, kvHead, dim]`,
    values: `${cached} [sequence, context, kvHead, valueDim]`,
    sequence: "i32 [token]",
    position: "i32 [token]",
    sinks: `${isHalf(o.sinksStored ?? "f32") ? "u32" : "f32"} [head]`,
    selected: o.selectedPerHead
      ? "i32 [token, kvHead, selected]"
      : "i32 [token, selected]",
    entries: "f32 [sequence, entry, dim]",
    last: "i32 [token]",
    pages: "i32 [sequence, block]",
    parts: "u32 [part]",
    sumsBefore: "f32 [token, head, sums]",
  });
}

/** Consecutive tokens of one sequence. */
export interface TokenRun {
  /** The variable with the first token's index. */
  readonly token: string;
  /** The variable with their number, if they may be fewer than those of the tile. */
  readonly run?: string | undefined;
}

/**
 * Executes `body` for the tokens of each sequence in a tile: `run` of them from `token` on, before `end_token`. The
 * minimum is a bound for predictions.
 */
export function eachTokenRun(
  o: AttentionOptions,
  tile: QueryTile,
  body: KernelText,
): KernelText {
  const begins = (token: string) =>
    wgsl`${token} == first_token || sequence[max(${token}, 1) - 1] != sequence[${token}]`;
  return wgsl`
    let end_token = min(first_token + ${tile.tokens}, ${o.tokens});
    var runs = 0u;
    for (var other = first_token; other < end_token; other++) {
      if (${begins("other")}) { runs += 1u; }
    }
    var token = first_token;
    for (var nth_run = 0u; nth_run < min(runs, ${tile.tokens}); nth_run++) {
      var run = 1u;
      for (var other = token + 1; other < end_token; other++) {
        if (other == token + run && sequence[other] == sequence[token]) { run += 1u; }
      }
      ${body}
      token += run;
    }`;
}

/** Queries of one workgroup. Register `top[t][h]` belongs to head h of token t. */
export interface Queries extends QueryTile, TokenRun {
  readonly o: AttentionOptions;
  readonly cache: Cache;
  /** The binding of keys, their stored dtype, and the variable with the end of the keys that each token sees. */
  readonly keys: string;
  readonly stored: "f32" | HalfDType;
  readonly end: string;
  /** Iterations of loops over all queries. */
  readonly each: KernelText;
  /** Teams of a workgroup, and its lanes. */
  readonly teams: number;
  readonly lanes: number;
  /** Elements of a value, in parts with one element per lane: see `dimensionOf`. */
  readonly width: number;
  readonly parts: number;
  /** The first position that token t attends to, if it is not always 0. */
  readonly firstSeen: KernelText | undefined;
  /** As in the options. */
  readonly atOnce: number;
  /** Whether the workgroup computes queries and key of the only token: see `newToken`. */
  readonly isNew: boolean;
}

/** The queries of a tile. */
export function queriesOf(
  o: AttentionOptions,
  { heads, tokens, teams = 1 }: QueryTile,
  { token, run, isNew = false }: TokenRun & { readonly isNew?: boolean },
): Queries {
  const { valueDim: width = o.dim } = o;
  const lanes = teams * KEY_BLOCK;
  return {
    o,
    token,
    run,
    heads,
    tokens,
    teams,
    lanes,
    width,
    parts: Math.ceil(width / lanes),
    cache: selectedOf(o, {
      token,
      kvHead: kvHeadOf(o, heads),
      begin: o.shard && wgsl`${FIRST_POSITION}`,
    }),
    keys: "keys",
    stored: o.stored ?? "f32",
    end: "end",
    each: wgsl`t < ${tokens}, h < ${heads}`,
    firstSeen: firstSeenOf(o),
    atOnce: o.atOnce ?? 1,
    isNew,
  };
}

/** The first position that token t attends to, if it is not always 0. */
function firstSeenOf(o: AttentionOptions): KernelText | undefined {
  return firstSeenText(o, { position: wgsl`(end[t] - 1)`, next: "end[t]" });
}

/** Declares the end of the keys of each token, `end[t]`, and where they start, `first[t]`, if that is not always 0. */
export function keysOfTokens(
  o: AttentionOptions,
  { token, tokens, heads, run }: TokenRun & QueryTile,
): KernelText {
  const firstSeen = firstSeenOf(o);
  const { selected } = o;
  const listed = (end: string) =>
    selected === undefined
      ? wgsl`let ${end}[0] = u32(last[${token}] + 1);`
      : countSelected(o, { token, selected, heads, end });
  const ends = wgsl`
    @unroll (t < ${tokens}) {
      let end[t] = u32(position[${tokenAt({ token, run })}]) + 1;
      ${firstSeen && wgsl`let first[t] = ${firstSeen};`}
    }`;
  return wgsl`
    ${
    o.selected !== undefined && o.entries === undefined ? listed("end") : ends
  }
    ${o.entries !== undefined && listed("entry_end")}`;
}

/** The index of token t. After the last token, the last one again. */
function tokenAt({ token, run }: TokenRun): KernelText {
  return run === undefined
    ? wgsl`${token} + t`
    : wgsl`${token} + min(t, ${run} - 1)`;
}

/** Declares the keys of each token, and the offset of each query. */
export function beginQueries(of: Queries): KernelText {
  const { o, heads, each } = of;
  return wgsl`
    ${keysOfTokens(o, of)}
    @unroll (${each}) {
      let row[t][h] = (${tokenAt(of)}) * ${o.heads} + (group.x * ${heads} + h);
      let q_at[t][h] = row[t][h] * ${o.dim};
    }`;
}

/**
 * Storage dtype of words whose two elements a lane uses: keys in pairs, and values of adjacent dimensions. Other lanes
 * load one word per element.
 */
export function pairsOf(
  { stored = "f32", dim, valueDim = dim, entries }: AttentionOptions,
): HalfDType | undefined {
  const inPairs = entries === undefined && dim % KEY_BLOCK === 0 &&
    valueDim % (2 * KEY_BLOCK) === 0;
  return isHalf(stored) && inPairs ? stored : undefined;
}

/** Offset of the scores and weights of a query in workgroup memory. */
export function offsetOf({ heads }: Queries): KernelText {
  return wgsl`(t * ${heads} + h) * ${KEY_BLOCK}`;
}

/**
 * Lane j weights key j: exp(score - the maximum score of the block). A token attends to keys low to high - 1 of the
 * block.
 */
export function weights(of: Queries): KernelText {
  const { tokens, each, firstSeen } = of;
  const offset = offsetOf(of);
  const many = tokens > 1;
  // `largest` is not used after this phase, so CPU devices have it in a register.
  const begin = many ? wgsl`min(low[t], ${KEY_BLOCK - 1})` : wgsl`low[t]`;
  const larger =
    wgsl`largest[t][h] = max(largest[t][h], scores[j + ${offset}]);`;
  const before = wgsl`
    for (var j = low[t]; j < min(shared_low, high[t]); j++) { ${larger} }`;
  const after = wgsl`
    for (var j = max(shared_high, low[t]); j < high[t]; j++) { ${larger} }`;
  return wgsl`
    ${visibleKeys(of)}
    @unroll (${each}) { var largest[t][h] = scores[${begin} + ${offset}]; }
    for (var j = shared_low; j < shared_high; j++) {
      @unroll (${each}) { ${larger} }
    }
    @unroll (${each}) {
      ${many && firstSeen && before}
      ${many && after}
      let block_top[t][h] = largest[t][h];
      weights[lane + ${offset}] = exp(score[t][h] - block_top[t][h]);
    }`;
}

/** The same weights for one token, by several teams: each lane weights one key for some heads. */
export function weightsInTeams(of: Queries): KernelText {
  const { heads, lanes } = of;
  return wgsl`
    for (var cell = lane; cell < ${heads * KEY_BLOCK}; cell += ${lanes}) {
      let of_head = cell / ${KEY_BLOCK} * ${KEY_BLOCK};
      @unroll (n < ${KEY_BLOCK}) { let of_key[n] = scores[of_head + n]; }
      let top = ${
    range(KEY_BLOCK).map((n) => wgsl`of_key[${n}]`)
      .reduce((a, b) => wgsl`max(${a}, ${b})`)
  };
      weights[cell] = exp(scores[cell] - top);
      if (cell == of_head) { block_tops[cell / ${KEY_BLOCK}] = top; }
    }`;
}

/** Declares the keys of the block that tokens attend to: `low[t]` to before `high[t]`, and those of all tokens. */
export function visibleKeys(of: Queries): KernelText {
  const { tokens, firstSeen } = of;
  const first = firstSeen ? wgsl`max(start, first[t]) - start` : wgsl`0u`;
  // A block that is completely masked for one of several tokens has low >= high for it.
  const many = tokens > 1;
  const low = many && firstSeen ? wgsl`min(${first}, ${KEY_BLOCK})` : first;
  const end = many ? wgsl`max(${of.end}[t], start)` : wgsl`${of.end}[t]`;
  return wgsl`
    @unroll (t < ${tokens}) {
      let low[t] = ${low};
      let high[t] = min(${end} - start, ${KEY_BLOCK});
    }
    let shared_low = ${ofTokens("max", "low", of)};
    let shared_high = ${ofTokens("min", "high", of)};`;
}

/** The dimension of a lane in part c. */
export function plainDimension({ lanes }: Queries): KernelText {
  return wgsl`lane + c * ${lanes}`;
}

/** The dimension of values that a lane sums in part c. In pairs, those of parts 2n and 2n + 1 are adjacent. */
export function dimensionOf(of: Queries): KernelText {
  return pairsOf(of.o)
    ? wgsl`lane * 2 + (c / 2 * ${2 * of.lanes} + c % 2)`
    : plainDimension(of);
}

/** Executes `body` for the dimensions of a lane that values have. */
export function insideValue(of: Queries, body: KernelText): KernelText {
  return of.width % of.lanes === 0
    ? body
    : wgsl`if (${plainDimension(of)} < ${of.width}) { ${body} }`;
}

/** The minimum or maximum of a variable over all tokens. */
export function ofTokens(
  pick: "min" | "max",
  name: string,
  { tokens }: Queries,
): KernelText {
  return range(tokens).map((t) => wgsl`${name}[${t}]`)
    .reduce((a, b) => wgsl`${pick}(${a}, ${b})`);
}
