/**
 * Attention of few tokens to many keys, as in decoding: each workgroup takes a block of keys, so that long contexts
 * fill a wide device, and a second kernel merges the blocks of each head in order. The contract allows it: blocks are
 * computed alone.
 */

import {
  isWindowed,
  KEY_BLOCK,
  keyBlocks,
  mergeLanes,
  type QueryTile,
  WORDS_AT_ONCE,
} from "../../tuning/queries.ts";
import {
  type AttentionOptions,
  beginQueries,
  beginShard,
  dimensionOf,
  insideValue,
  keysOfTokens,
  onRank,
  operandsOf,
  type Queries,
  queriesOf,
  sinkOf,
  sumsOf,
  weights,
  weightsInTeams,
} from "./block.ts";
import { blockSums } from "./block_sums.ts";
import { type NewToken, newToken } from "./new_token.ts";
import { scores } from "./scores.ts";
import type { Binding, Kernel, KernelText } from "../kernel.ts";
import { bindings, elementwise, kernelOf, local, wgsl } from "../kernel.ts";
import { range } from "../../../spec/range.ts";
import { LOWEST } from "../pieces/numbers.ts";

/**
 * The block of keys of each workgroup: its largest score and sum of weights, f32 [token, head, block, 2], and its sums
 * of values. `vectors`: those of the only token, if this launch computes and caches them.
 */
export function attentionParts(
  o: AttentionOptions,
  tile: QueryTile,
  vectors?: NewToken,
): Kernel {
  const isNew = vectors !== undefined;
  const queries = queriesOf(o, tile, { token: "token", isNew });
  const of = { ...queries, atOnce: WORDS_AT_ONCE };
  const room = tile.heads * KEY_BLOCK;
  const isSeen = of.firstSeen && o.shard
    ? wgsl`start < end[0] && first[0] / ${KEY_BLOCK} * ${KEY_BLOCK} <= start`
    : wgsl`start < end[0]`;
  const block = isWindowed(o)
    ? wgsl`(first[0] / ${KEY_BLOCK} + group.z) * ${KEY_BLOCK}`
    : wgsl`group.z * ${KEY_BLOCK}`;
  return kernelOf({
    name: `${o.name}_parts${isNew ? "_new" : ""}`,
    workgroupSize: of.lanes,
    bindings: [
      ...vectors?.bindings ?? operandsOf(o),
      ...bindings({}, {
        tops: "f32 [token, head, block, 2]",
        sums: "f32 [token, head, block, valueDim]",
      }),
    ],
    body: wgsl`
      var<workgroup> scores: array<f32, ${room}>;
      var<workgroup> weights: array<f32, ${room}>;
      ${
      of.teams > 1 && wgsl`
      var<workgroup> block_tops: array<f32, ${tile.heads}>;
      var<workgroup> dot_sums: array<f32, ${o.dim * tile.heads}>;`
    }

      ${beginShard(o)}
      let token = group.y;
      if (token < ${o.tokens}) {
        ${of.cache.begin}
        ${beginQueries(of)}
        let start = ${o.shard ? wgsl`first_position + ${block}` : block};
        if (${isSeen}) {
          ${of.cache.ofBlock}
          ${vectors && newToken(of, vectors)}
          ${scores(of)}
          workgroupBarrier();
          ${of.teams > 1 ? weightsInTeams(of) : weights(of)}
          workgroupBarrier();
          ${blockSums(of)}
          ${storeParts(of)}
        }
      }`,
  });
}

/** Lane d stores its dimensions of every query, and the first lane stores the shared values. */
function storeParts(of: Queries): KernelText {
  const { o, each, parts, width } = of;
  const d = dimensionOf(of);
  const stored = wgsl`sums[part[t][h] * ${width} + (${d})] = block[t][h][c];`;
  return wgsl`
    @unroll (${each}) {
      let part[t][h] = row[t][h] * ${keyBlocks(o)} + group.z;
      @unroll (c < ${parts}) { ${insideValue(of, stored)} }
      if (lane == 0) {
        tops[part[t][h] * 2] = ${
    of.teams > 1 ? wgsl`block_tops[h]` : wgsl`block_top[t][h]`
  };
        tops[part[t][h] * 2 + 1] = block_sum[t][h];
      }
    }`;
}

/** Maximum number of blocks, and of words, that a lane of the merge loads at once. */
const BLOCKS_AT_ONCE = 32, SUMS_AT_ONCE = 64;

/** Blocks whose maximum a lane of the merge computes, for the maxima before the blocks of later lanes. */
const TOPS_OF_GROUP = 16;

/**
 * Merges the blocks of one head of one token. The running maximum of scores is exact in any order. Each lane computes
 * the scales of some blocks; then each lane adds its dimensions block by block.
 */
export function attentionMerge(o: AttentionOptions): Kernel {
  const { valueDim: width = o.dim } = o;
  const after = sumsOf("row", width);
  return kernelOf({
    name: `${o.name}_merge`,
    workgroupSize: mergeLanes(width),
    bindings: [
      ...mergeOperands(o),
      ...bindings({}, {
        ...o.shard
          ? { sumsAfter: "f32 [token, head, sums]" }
          : { y: "f32 [token, head, valueDim]" },
      }),
    ],
    body: mergedBlocks(o, {
      store: (dimension) =>
        o.shard
          ? wgsl`sumsAfter[${after} + (${dimension})] = value_sum[c];`
          : wgsl`y[row * ${width} + (${dimension})] = value_sum[c] / sum;`,
      after: o.shard && wgsl`
        if (lane == 0) {
          sumsAfter[${after} + ${width}] = top;
          sumsAfter[${after} + ${width + 1}] = sum;
        }`,
    }),
  });
}

/** The operands of a merge. */
export function mergeOperands(o: AttentionOptions): readonly Binding[] {
  return [
    ...bindings({
      tops: "f32 [token, head, block, 2]",
      sums: "f32 [token, head, block, valueDim]",
    }),
    ...operandsOf(o),
  ];
}

/**
 * Declares `head` and `token`, group.x and group.y, and merges their blocks in the lanes of `attentionMerge`: `store`
 * consumes `value_sum[c] / sum` of a dimension, `after` the running maximum and sum of weights.
 */
export function mergedBlocks(
  o: AttentionOptions,
  { store, after = false }: {
    readonly store: (dimension: KernelText) => KernelText;
    readonly after?: KernelText | false | undefined;
  },
): KernelText {
  const { valueDim: width = o.dim } = o;
  const lanes = mergeLanes(width);
  const parts = Math.ceil(width / lanes);
  const groups = lanes / TOPS_OF_GROUP;
  const atOnce = Math.min(BLOCKS_AT_ONCE, Math.ceil(SUMS_AT_ONCE / parts));
  const dimension = wgsl`lane + c * ${lanes}`;
  const inside = (body: KernelText) =>
    width % lanes === 0 ? body : wgsl`if (${dimension} < ${width}) { ${body} }`;
  const d = width % lanes === 0
    ? dimension
    : wgsl`min(${dimension}, ${width - 1})`;
  // All loads before the sums, which wait for each other. Those of adjacent scales follow each other: drivers combine
  // them.
  const blocksFrom = (blocks: number) =>
    wgsl`
      @unroll (n < ${blocks}) { let old_scale[n] = old_scales[j + n]; }
      @unroll (n < ${blocks}) { let block_scale[n] = block_scales[j + n]; }
      @unroll (n < ${blocks}) { let block_sum[n] = block_sums[j + n]; }
      @unroll (c < ${parts}) {
        let value_at[c] = (block + j) * ${width} + (${d});
        @unroll (n < ${blocks}) { let value[n][c] = sums[value_at[c] + n * ${width}]; }
      }
      @unroll (n < ${blocks}) {
        sum = fma(block_sum[n], block_scale[n], sum * old_scale[n]);
        @unroll (c < ${parts}) {
          value_sum[c] = fma(value[n][c], block_scale[n], value_sum[c] * old_scale[n]);
        }
      }`;
  return wgsl`
      var<workgroup> block_tops: array<f32, ${lanes}>;
      var<workgroup> group_tops: array<f32, ${groups}>;
      var<workgroup> block_sums: array<f32, ${lanes}>;
      var<workgroup> tops_after: array<f32, ${lanes}>;
      var<workgroup> old_scales: array<f32, ${lanes}>;
      var<workgroup> block_scales: array<f32, ${lanes}>;

      ${beginShard(o)}
      let head = group.x;
      let token = group.y;
      if (token < ${o.tokens}) {
        ${keysOfTokens(o, { token: "token", tokens: 1, heads: 1 })}
        let row = token * ${o.heads} + head;
        let blocks = row * ${keyBlocks(o)};
        ${blocksOnRank(o)}
        ${beginMerge(o, { parts, width, d })}
        for (var start = first_block; start < last_block; start += ${lanes}) {
          let count = min(last_block - start, ${lanes});
          let block = blocks + start;
          workgroupBarrier();
          block_tops[lane] = ${LOWEST};
          if (lane < count) {
            block_tops[lane] = tops[(block + lane) * 2];
            block_sums[lane] = tops[(block + lane) * 2 + 1];
          }
          workgroupBarrier();
          if (lane < ${groups}) {
            @unroll (n < ${TOPS_OF_GROUP}) { let of_group[n] = block_tops[lane * ${TOPS_OF_GROUP} + n]; }
            group_tops[lane] = ${
    range(TOPS_OF_GROUP).map((n) => wgsl`of_group[${n}]`)
      .reduce((a, b) => wgsl`max(${a}, ${b})`)
  };
          }
          workgroupBarrier();
          if (lane < count) {
            let nth_group = lane / ${TOPS_OF_GROUP};
            @unroll (n < ${groups}) { let other_top[n] = group_tops[n]; }
            @unroll (n < ${TOPS_OF_GROUP}) { let near_top[n] = block_tops[nth_group * ${TOPS_OF_GROUP} + n]; }
            var before = top;
            @unroll (n < ${groups}) {
              before = max(before, select(${LOWEST}, other_top[n], n < nth_group));
            }
            @unroll (n < ${TOPS_OF_GROUP}) {
              before = max(before, select(${LOWEST}, near_top[n], n < lane % ${TOPS_OF_GROUP}));
            }
            let after = max(before, block_tops[lane]);
            tops_after[lane] = after;
            old_scales[lane] = exp(before - after);
            block_scales[lane] = exp(block_tops[lane] - after);
          }
          workgroupBarrier();
          let whole = count / ${atOnce} * ${atOnce};
          for (var j = 0u; j < whole; j += ${atOnce}) { ${blocksFrom(atOnce)} }
          for (var j = whole; j < count; j++) { ${blocksFrom(1)} }
          top = tops_after[count - 1];
        }
        @unroll (c < ${parts}) { ${inside(store(dimension))} }
        ${after}
      }`;
}

/**
 * Declares the blocks of keys of a token, `first_block` to before `last_block`, counted from the first that it sees, or
 * with a shard, from the first of this rank.
 */
function blocksOnRank(o: AttentionOptions): KernelText {
  const first = (o.window ?? o.chunk) === undefined ? wgsl`0u` : wgsl`first[0]`;
  if (!o.shard) {
    const end = wgsl`(end[0] + ${KEY_BLOCK - 1}) / ${KEY_BLOCK}`;
    return wgsl`
        let first_block = 0u;
        let last_block = ${
      isWindowed(o) ? wgsl`${end} - ${first} / ${KEY_BLOCK}` : end
    };`;
  }
  const [low, high] = onRank(o, first, wgsl`end[0]`);
  return wgsl`
        let first_block = (${low} - first_position) / ${KEY_BLOCK};
        let last_block = (max(${high}, first_position) - first_position + ${
    KEY_BLOCK - 1
  }) / ${KEY_BLOCK};`;
}

/** Declares the running maximum and sums of a query: those of no keys, of its sink, or of earlier ranks. */
function beginMerge(
  o: AttentionOptions,
  { parts, width, d }: {
    readonly parts: number;
    readonly width: number;
    readonly d: KernelText;
  },
): KernelText {
  const at = sumsOf("row", width);
  if (o.shard?.continues) {
    return wgsl`
        var top = sumsBefore[${at} + ${width}];
        var sum = sumsBefore[${at} + ${width + 1}];
        @unroll (c < ${parts}) { var value_sum[c] = sumsBefore[${at} + (${d})]; }`;
  }
  return wgsl`
        var top = ${
    o.sinks ? sinkOf(o, local("head", "u32")) : wgsl`f32(${LOWEST})`
  };
        var sum = ${o.sinks ? wgsl`1.0` : wgsl`0.0`};
        @unroll (c < ${parts}) { var value_sum[c] = 0.0; }`;
}

/** The result of attention from the sums of all ranks. Its grid is `elementwiseGrid(tokens * heads * valueDim)`. */
export function attentionResult(o: AttentionOptions): Kernel {
  const { valueDim: width = o.dim } = o;
  return elementwise({
    name: `${o.name}_result`,
    count: wgsl`${o.tokens} * ${o.heads * width}`,
    bindings: bindings(
      { sumsAfter: "f32 [token, head, sums]" },
      { y: "f32 [token, head, valueDim]" },
    ),
    body: (i) =>
      wgsl`
      let sums_at = ${sumsOf(wgsl`${i} / ${width}`, width)};
      y[${i}] = sumsAfter[sums_at + ${i} % ${width}] / sumsAfter[sums_at + ${
        width + 1
      }];`,
  });
}
