/**
 * Attention of few tokens to many keys, as in decoding: each workgroup takes a block of keys, so that long contexts fill a
 * wide device, and a second kernel merges the blocks of each head in order. The contract allows it: blocks are computed alone.
 */

import {
  KEY_BLOCK,
  keyBlocks,
  MERGE_LANES,
  type QueryTile,
} from "../tuning/queries.ts";
import {
  type AttentionOptions,
  beginQueries,
  blockSums,
  DIMENSION,
  dimensionOf,
  keysOfTokens,
  operandsOf,
  type Queries,
  queriesOf,
  scores,
  weights,
} from "./attention_block.ts";
import type { Kernel, KernelText } from "./kernel.ts";
import { bindings, kernelOf, wgsl } from "./kernel.ts";
import { LOWEST } from "./pieces/numbers.ts";

/** The block of keys of each workgroup: its largest score and sum of weights, f32 [token, head, block, 2], and its sums of values. */
export function attentionParts(o: AttentionOptions, tile: QueryTile): Kernel {
  const of = queriesOf(o, "token", tile);
  const room = tile.heads * KEY_BLOCK;
  const isSeen = of.firstSeen
    ? wgsl`start < end[0] && first[0] / ${KEY_BLOCK} * ${KEY_BLOCK} <= start`
    : wgsl`start < end[0]`;
  return kernelOf({
    name: `${o.name}_parts`,
    workgroupSize: KEY_BLOCK,
    bindings: [
      ...operandsOf(o),
      ...bindings({}, {
        tops: "f32 [token, head, block, 2]",
        sums: "f32 [token, head, block, valueDim]",
      }),
    ],
    body: wgsl`
      var<workgroup> scores: array<f32, ${room}>;
      var<workgroup> weights: array<f32, ${room}>;

      let token = group.y;
      let start = group.z * ${KEY_BLOCK};
      if (token < ${o.tokens}) {
        ${of.cache.begin}
        ${beginQueries(of)}
        if (${isSeen}) {
          ${of.cache.ofBlock}
          ${scores(of)}
          workgroupBarrier();
          ${weights(of)}
          workgroupBarrier();
          ${blockSums(of)}
          ${storeParts(of)}
        }
      }`,
  });
}

/** Lane d stores its dimensions of every query, and the first lane stores the shared values. */
function storeParts({ o, each, parts, width }: Queries): KernelText {
  const d = dimensionOf(o);
  const stored = wgsl`sums[part[t][h] * ${width} + (${d})] = block[t][h][c];`;
  const inside = width % KEY_BLOCK === 0
    ? stored
    : wgsl`if (${DIMENSION} < ${width}) { ${stored} }`;
  return wgsl`
    @unroll (${each}) {
      let part[t][h] = row[t][h] * ${keyBlocks(o)} + group.z;
      @unroll (c < ${parts}) { ${inside} }
      if (lane == 0) {
        tops[part[t][h] * 2] = block_top[t][h];
        tops[part[t][h] * 2 + 1] = block_sum[t][h];
      }
    }`;
}

/** Blocks whose sums the merge loads at once. */
const AT_ONCE = 8;

/**
 * Merges the blocks of one head of one token. The running maximum of scores is exact in any order. Each lane computes
 * the scales of some blocks; then each lane adds its dimensions block by block.
 */
export function attentionMerge(o: AttentionOptions): Kernel {
  const { valueDim: width = o.dim } = o;
  const parts = Math.ceil(width / MERGE_LANES);
  const isWindowed = o.window !== undefined || o.chunk !== undefined;
  const dimension = wgsl`lane + c * ${MERGE_LANES}`;
  const inside = (body: KernelText) =>
    width % MERGE_LANES === 0
      ? body
      : wgsl`if (${dimension} < ${width}) { ${body} }`;
  const d = width % MERGE_LANES === 0
    ? dimension
    : wgsl`min(${dimension}, ${width - 1})`;
  return kernelOf({
    name: `${o.name}_merge`,
    workgroupSize: MERGE_LANES,
    bindings: bindings({
      tops: "f32 [token, head, block, 2]",
      sums: "f32 [token, head, block, valueDim]",
      position: "i32 [token]",
      selected: "i32 [token, selected]",
      sinks: "f32 [head]",
    }, { y: "f32 [token, head, valueDim]" }),
    body: wgsl`
      var<workgroup> block_tops: array<f32, ${MERGE_LANES}>;
      var<workgroup> block_sums: array<f32, ${MERGE_LANES}>;
      var<workgroup> old_scales: array<f32, ${MERGE_LANES}>;
      var<workgroup> block_scales: array<f32, ${MERGE_LANES}>;

      let head = group.x;
      let token = group.y;
      if (token < ${o.tokens}) {
        ${keysOfTokens(o, "token", 1)}
        let row = token * ${o.heads} + head;
        let blocks = row * ${keyBlocks(o)};
        let first_block = ${
      isWindowed ? wgsl`first[0]` : wgsl`0u`
    } / ${KEY_BLOCK};
        let last_block = (end[0] + ${KEY_BLOCK - 1}) / ${KEY_BLOCK};
        var top = ${o.sinks ? wgsl`sinks[head]` : wgsl`f32(${LOWEST})`};
        var sum = ${o.sinks ? wgsl`1.0` : wgsl`0.0`};
        @unroll (c < ${parts}) { var value_sum[c] = 0.0; }
        for (var start = first_block; start < last_block; start += ${MERGE_LANES}) {
          let count = min(last_block - start, ${MERGE_LANES});
          let block = blocks + start;
          workgroupBarrier();
          if (lane < count) {
            block_tops[lane] = tops[(block + lane) * 2];
            block_sums[lane] = tops[(block + lane) * 2 + 1];
          }
          workgroupBarrier();
          if (lane < count) {
            var before = top;
            for (var j = 0u; j < lane; j++) { before = max(before, block_tops[j]); }
            let after = max(before, block_tops[lane]);
            old_scales[lane] = exp(before - after);
            block_scales[lane] = exp(block_tops[lane] - after);
          }
          workgroupBarrier();
          for (var first_j = 0u; first_j < count; first_j += ${AT_ONCE}) {
            // All loads before the sums, which wait for each other.
            @unroll (n < ${AT_ONCE}) {
              let j[n] = min(first_j + n, count - 1);
              @unroll (c < ${parts}) {
                let value[n][c] = sums[(block + j[n]) * ${width} + (${d})];
              }
            }
            @unroll (n < ${AT_ONCE}) {
              if (first_j + n < count) {
                let old_scale = old_scales[j[n]];
                let block_scale = block_scales[j[n]];
                sum = fma(block_sums[j[n]], block_scale, sum * old_scale);
                @unroll (c < ${parts}) {
                  value_sum[c] = fma(value[n][c], block_scale, value_sum[c] * old_scale);
                }
                top = max(top, block_tops[j[n]]);
              }
            }
          }
        }
        @unroll (c < ${parts}) {
          ${
      inside(wgsl`y[row * ${width} + (${dimension})] = value_sum[c] / sum;`)
    }
        }
      }`,
  });
}
