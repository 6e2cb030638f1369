/**
 * Scores of blocks of keys for `selectBlocks`: the largest product of an index query and a key of the block
 * (MiniMax-M3, arXiv 2606.13392). A workgroup scores one block for all heads of a token. Each lane has a key.
 */

import { type HalfDType, isHalf } from "../../../spec/dtype.ts";
import type { Size } from "../../../spec/size.ts";
import { KEY_BLOCK } from "../../tuning/queries.ts";
import type { Expr, Grid, Kernel, KernelText } from "../kernel.ts";
import { bindings, foldGrid, GROUP_YZ, kernelOf, wgsl } from "../kernel.ts";
import { cacheOf, type CacheShape } from "../pieces/cache.ts";
import { LOWEST } from "../pieces/numbers.ts";
import { indexDots, together } from "./select_keys.ts";

/** Scores of blocks of keys. Its grid is `scoreBlocksGrid`. */
export interface ScoreBlocksOptions extends Omit<CacheShape, "kvHeads"> {
  readonly name: string;
  readonly heads: number;
  readonly dim: number;
  /** Positions per block. */
  readonly block: number;
  /** First blocks, and last ones up to that of the token, that are always chosen. */
  readonly first: number;
  readonly local: number;
  /** Chosen blocks. A token that sees no more of them needs no scores. */
  readonly k: number;
  /** Stored dtype of the cache. With 16 bits, `keys` is u32 and has two elements per word. Default: f32. */
  readonly stored?: "f32" | HalfDType;
  readonly tokens: Expr;
}

/** A workgroup for each block of each token. */
export function scoreBlocksGrid(
  { context, block }: Pick<ScoreBlocksOptions, "context" | "block">,
  tokens: Size,
): Grid {
  return [Math.ceil(context / block), ...foldGrid(tokens)];
}

/**
 * scores[token, head, block], of the blocks up to that of the token. Blocks that are always chosen have the largest.
 */
export function scoreBlocks(o: ScoreBlocksOptions): Kernel {
  const { heads, dim, block, first, local, stored = "f32" } = o;
  const blocks = Math.ceil(o.context / block);
  const cache = cacheOf({ ...o, kvHeads: 1 }, {
    token: "token",
    kvHead: wgsl`0u`,
    scattered: true,
  });
  const terms = together(heads);
  const isForced = wgsl`nth < ${first} || last_block - nth < ${local}`;
  const eachHead = (score: KernelText) =>
    wgsl`
    for (var h = lane; h < ${heads}; h += ${KEY_BLOCK}) {
      ${score}
      scores[(token * ${heads} + h) * ${blocks} + nth] = best;
    }`;
  return kernelOf({
    name: o.name,
    workgroupSize: KEY_BLOCK,
    bindings: bindings({
      query: "f32 [token, head, dim]",
      // In pages, the cache begins with [page, within].
      keys: `${isHalf(stored) ? "u32" : "f32"} [sequence, context, dim]`,
      sequence: "i32 [token]",
      last: "i32 [token]",
      pages: "i32 [sequence, block]",
    }, { scores: "f32 [token, head, block]" }),
    body: wgsl`
      var<workgroup> tops: array<f32, ${heads * KEY_BLOCK}>;

      let token = ${GROUP_YZ};
      let nth = group.x;
      if (token < ${o.tokens}) {
        let end = min(u32(last[token] + 1), ${o.context}u);
        let from = nth * ${block};
        let last_block = (max(end, 1) - 1) / ${block};
        if (from < end && last_block >= ${o.k}) {
          if (${isForced}) {
            ${eachHead(wgsl`let best = f32(${-LOWEST});`)}
          } else {
            ${cache.begin}
            let to = min(from + ${block}, end);
            for (var g = 0u; g < ${heads / terms}; g++) {
              let query_at = (token * ${heads} + g * ${terms}) * ${dim};
              @unroll (h < ${terms}) { var top[h] = f32(${LOWEST}); }
              for (var start = from; start < to; start += ${KEY_BLOCK}) {
                // Lanes after the last key score it again.
                let key = min(start + lane, to - 1);
                let key_at = (${cache.vectorOf(wgsl`key`)}) * ${dim};
                ${indexDots({ dim, stored, terms })}
                @unroll (h < ${terms}) { top[h] = max(top[h], dot[h]); }
              }
              @unroll (h < ${terms}) { tops[(g * ${terms} + h) * ${KEY_BLOCK} + lane] = top[h]; }
            }
            workgroupBarrier();
            ${
      eachHead(wgsl`
              var best = tops[h * ${KEY_BLOCK}];
              for (var l = 1u; l < ${KEY_BLOCK}; l++) { best = max(best, tops[h * ${KEY_BLOCK} + l]); }`)
    }
          }
        }
      }`,
  });
}
