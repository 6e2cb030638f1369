/**
 * Causal attention over a cache, one block of 32 keys at a time: the running softmax of Milakov and Gimelshein ("Online
 * normalizer calculation for softmax", 2018), as in FlashAttention. A workgroup computes one query, or several that
 * share loads of keys and values: heads of a token with the same key head (decode), and such heads of several tokens of
 * one sequence (prefill). For scores, lane j processes key j of the block; for sums, lane d processes dimension d of
 * the values. `spec/kernels.md` explains it line by line.
 */

import { KEY_BLOCK, type QueryTile, queryTile } from "../../tuning/queries.ts";
import {
  type AttentionOptions,
  beginQueries,
  beginShard,
  dimensionOf,
  eachTokenRun,
  insideValue,
  ofTokens,
  onRank,
  operandsOf,
  type Queries,
  queriesOf,
  sinkOf,
  sumsOf,
  type TokenRun,
  weights,
} from "./block.ts";
import { blockSums } from "./block_sums.ts";
import { scores } from "./scores.ts";
import type { Kernel, KernelText } from "../kernel.ts";
import { bindings, GROUP_YZ, kernelOf, wgsl } from "../kernel.ts";
import { register } from "../../../spec/kernel/registers.ts";
import { LOWEST } from "../pieces/numbers.ts";

/**
 * Creates the attention kernel. The result of a head depends only on its query and the keys up to its position. If
 * ranks share the positions of a sequence, the result is the running sums after this rank, `sumsAfter`.
 */
export function attention(o: AttentionOptions): Kernel {
  const tile = queryTile(o);
  const room = tile.heads * tile.tokens * KEY_BLOCK;
  return kernelOf({
    name: o.name,
    workgroupSize: KEY_BLOCK,
    bindings: [
      ...operandsOf(o),
      ...bindings(
        {},
        o.shard
          ? { sumsAfter: "f32 [token, head, sums]" }
          : { y: "f32 [token, head, valueDim]" },
      ),
    ],
    body: wgsl`
      var<workgroup> scores: array<f32, ${room}>;
      var<workgroup> weights: array<f32, ${room}>;

      ${beginShard(o)}
      let first_token = ${GROUP_YZ} * ${tile.tokens};
      if (first_token < ${o.tokens}) {
        ${together(o, tile)}
      }`,
  });
}

/**
 * Processes consecutive tokens of one sequence together: one, at most half of the tile, or more. After the last of
 * them, it is computed again and not written.
 */
function together(o: AttentionOptions, tile: QueryTile): KernelText {
  if (tile.tokens === 1) return attend(o, tile, { token: "first_token" });
  const half = Math.ceil(tile.tokens / 2);
  const run = (tokens: number) =>
    attend(o, { ...tile, tokens }, {
      token: "token",
      run: tokens > 1 ? "run" : undefined,
    });
  const few = half > 1
    ? wgsl`if (run > 1) { ${run(half)} } else { ${run(1)} }`
    : run(1);
  return eachTokenRun(
    o,
    tile,
    wgsl`if (run > ${half}) { ${run(tile.tokens)} } else { ${few} }`,
  );
}

/** The heads of tokens of one sequence. */
function attend(
  o: AttentionOptions,
  tile: QueryTile,
  tokens: TokenRun,
): KernelText {
  const of = queriesOf(o, tile, tokens);
  return wgsl`
    ${of.cache.begin}
    ${beginQueries(of)}
    ${beginSums(of)}
    ${eachBlock(of)}
    ${o.entries !== undefined && eachBlock(entriesOf(of, o.entries))}
    ${results(of)}`;
}

/** Declares the running maximum and sums of each query: those of no keys, of its sink, or of earlier ranks. */
function beginSums(of: Queries): KernelText {
  const { o, heads, each, parts, width } = of;
  if (o.shard?.continues) {
    return wgsl`
      @unroll (${each}) {
        let sums_at[t][h] = ${sumsOf("row[t][h]", width)};
        var top[t][h] = sumsBefore[sums_at[t][h] + ${width}];
        var sum[t][h] = sumsBefore[sums_at[t][h] + ${width + 1}];
        @unroll (c < ${parts}) {
          var value_sum[t][h][c] = sumsBefore[sums_at[t][h] + min(${
      dimensionOf(of)
    }, ${width - 1})];
        }
      }`;
  }
  const sink = sinkOf(o, register("sink_of", ["t", "h"], "u32"));
  return wgsl`
    @unroll (${each}) {
      ${o.sinks && wgsl`let sink_of[t][h] = group.x * ${heads} + h;`}
      var top[t][h] = ${o.sinks ? sink : wgsl`f32(${LOWEST})`};
      var sum[t][h] = ${o.sinks ? wgsl`1.0` : wgsl`0.0`};
      @unroll (c < ${parts}) { var value_sum[t][h][c] = 0.0; }
    }`;
}

/** All blocks of keys. */
function eachBlock(of: Queries): KernelText {
  const [first, end] = onRank(
    of.o,
    of.firstSeen
      ? wgsl`${ofTokens("min", "first", of)} / ${KEY_BLOCK} * ${KEY_BLOCK}`
      : wgsl`0u`,
    ofTokens("max", of.end, of),
  );
  return wgsl`
    for (var start = ${first}; start < ${end}; start += ${KEY_BLOCK}) {
      ${of.cache.ofBlock}
      ${scores(of)}
      workgroupBarrier();
      ${weights(of)}
      workgroupBarrier();
      ${scalesOf(of)}
      ${blockSums(of)}
      ${mergeBlock(of)}
    }`;
}

/** The same queries, with entries as their keys. */
function entriesOf(of: Queries, size: number): Queries {
  const { selected } = of.o;
  const entry = (key: KernelText) =>
    selected === undefined
      ? wgsl`${key}`
      : wgsl`min(u32(selected[list + ${key}]), ${size - 1}u)`;
  return {
    ...of,
    keys: "entries",
    stored: "f32",
    end: "entry_end",
    firstSeen: undefined,
    cache: {
      begin: wgsl``,
      vectorOf: (key) =>
        wgsl`u32(sequence[${of.token}]) * ${size} + ${entry(key)}`,
      step: undefined,
      hasFullBlocks: false,
    },
  };
}

/**
 * Declares the new maximum of each query, and the scales of its sums. All lanes have the same, so CPU devices compute
 * them once, because they are at the start of a phase. They are unused if the block is masked for the token.
 */
function scalesOf({ each }: Queries): KernelText {
  return wgsl`
    @unroll (${each}) {
      let new_top[t][h] = max(top[t][h], block_top[t][h]);
      let old_scale[t][h] = exp(top[t][h] - new_top[t][h]);
      let block_scale[t][h] = exp(block_top[t][h] - new_top[t][h]);
    }`;
}

/**
 * Merges a block into the running softmax: previous sums are scaled to the new maximum. Sums start at 0 with the lowest
 * finite maximum, so that the scale of the first block is exactly 1 and the old scale 0; or as if a sink's block,
 * exp(sink - sink) and no value, had been first.
 */
function mergeBlock({ tokens, each, parts }: Queries): KernelText {
  const merged = wgsl`
    sum[t][h] = fma(block_sum[t][h], block_scale[t][h], sum[t][h] * old_scale[t][h]);
    @unroll (c < ${parts}) {
      value_sum[t][h][c] = fma(block[t][h][c], block_scale[t][h], value_sum[t][h][c] * old_scale[t][h]);
    }
    top[t][h] = new_top[t][h];`;
  return wgsl`
    @unroll (${each}) {
      ${tokens === 1 ? merged : wgsl`if (low[t] < high[t]) { ${merged} }`}
    }`;
}

/** Lane d writes its dimensions of every query. */
function results(of: Queries): KernelText {
  const { o, each, width, parts, run } = of;
  const d = dimensionOf(of);
  const inside = (store: KernelText) => insideValue(of, store);
  const sums = sumsOf("row[t][h]", width);
  const all = o.shard
    ? wgsl`
      @unroll (c < ${parts}) {
        ${inside(wgsl`sumsAfter[${sums} + ${d}] = value_sum[t][h][c];`)}
      }
      if (lane == 0) {
        sumsAfter[${sums} + ${width}] = top[t][h];
        sumsAfter[${sums} + ${width + 1}] = sum[t][h];
      }`
    : wgsl`
      @unroll (c < ${parts}) {
        ${
      inside(wgsl`
          y[row[t][h] * ${width} + (${d})] = value_sum[t][h][c] / sum[t][h];`)
    }
      }`;
  const exist = run === undefined ? all : wgsl`if (t < ${run}) { ${all} }`;
  return wgsl`@unroll (${each}) { ${exist} }`;
}
