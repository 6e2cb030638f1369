/**
 * The keys that a token attends to, by the scores of an indexer (DeepSeek-V3.2, "lightning indexer"): the sum over its
 * heads of weight * relu(query · key). One kernel scores the keys of a token, a block of 32 to a workgroup; another
 * finds the smallest score that is chosen, bit by bit as a radix selection does, and lists all keys from it on.
 */

import { loadStored } from "../../../spec/kernel/build.ts";
import { registers } from "../../../spec/kernel/registers.ts";
import { type HalfDType, isHalf } from "../../../spec/dtype.ts";
import type { Size } from "../../../spec/size.ts";
import { KEY_BLOCK } from "../../tuning/queries.ts";
import type { Expr, Grid, Kernel, KernelText } from "../kernel.ts";
import {
  bindings,
  foldGrid,
  GROUP_XY,
  GROUP_YZ,
  kernelOf,
  local,
  wgsl,
} from "../kernel.ts";
import { blockedSum } from "../pieces/blocked_sum.ts";
import { cacheOf, type CacheShape } from "../pieces/cache.ts";
import { orderKey } from "../pieces/order_key.ts";
import { lanesOf } from "../rows.ts";

/** Scores of keys. Its grid is `scoreKeysGrid`. */
export interface ScoreKeysOptions extends Omit<CacheShape, "kvHeads"> {
  readonly name: string;
  readonly heads: number;
  readonly dim: number;
  /** Stored dtype of the cache. With 16 bits, `keys` is u32 and has two elements per word. Default: f32. */
  readonly stored?: "f32" | HalfDType;
  readonly tokens: Expr;
}

/** A workgroup for each block of keys of each token. */
export function scoreKeysGrid(
  { context }: Pick<ScoreKeysOptions, "context">,
  tokens: Size,
): Grid {
  return [Math.ceil(context / KEY_BLOCK), ...foldGrid(tokens)];
}

/** Heads whose products a lane sums at once. */
export function together(heads: number): number {
  return [8, 4, 2].find((n) => heads % n === 0) ?? 1;
}

/** Declares `dot[h]`, the products of the queries from `query_at` on and the key at `key_at`. */
export function indexDots(
  { dim, stored, terms }: {
    readonly dim: number;
    readonly stored: "f32" | HalfDType;
    readonly terms: number;
  },
): KernelText {
  return blockedSum(
    registers("dot", terms),
    { length: dim, over: "d" },
    wgsl`
      let element = key_at + d;
      let key_d = ${loadStored("keys", stored, local("element", "u32"))};
      @unroll (h < ${terms}) {
        dot_block[h] = fma(query[query_at + h * ${dim} + d], key_d, dot_block[h]);
      }`,
  );
}

/** scores[token, key], of the keys up to the last one that the token sees. */
export function scoreKeys(o: ScoreKeysOptions): Kernel {
  const { heads, dim, context, stored = "f32" } = o;
  const cache = cacheOf({ ...o, kvHeads: 1 }, {
    token: "token",
    kvHead: wgsl`0u`,
    scattered: true,
  });
  const terms = together(heads);
  const dot = indexDots({ dim, stored, terms });
  const score = blockedSum(
    "score",
    { length: heads, over: "g", terms },
    wgsl`
      let head = token * ${heads} + g * ${terms};
      let query_at = head * ${dim};
      ${dot}
      @unroll (h < ${terms}) {
        score_block = fma(weights[head + h], max(dot[h], 0.0), score_block);
      }`,
  );
  return kernelOf({
    name: o.name,
    workgroupSize: KEY_BLOCK,
    bindings: bindings({
      query: "f32 [token, head, dim]",
      weights: "f32 [token, head]",
      // In pages, the cache begins with [page, within].
      keys: `${isHalf(stored) ? "u32" : "f32"} [sequence, context, dim]`,
      sequence: "i32 [token]",
      last: "i32 [token]",
      pages: "i32 [sequence, block]",
    }, { scores: "f32 [token, context]" }),
    body: wgsl`
      let token = ${GROUP_YZ};
      let key = group.x * ${KEY_BLOCK} + lane;
      if (token < ${o.tokens}) {
        let end = min(u32(last[token] + 1), ${context}u);
        if (key < end) {
          ${cache.begin}
          let key_at = (${cache.vectorOf(wgsl`key`)}) * ${dim};
          ${score}
          scores[token * ${context} + key] = score;
        }
      }`,
  });
}

/** Chosen keys. Its grid is `rowsGrid(tokens)`, and of blocks `rowsGrid(tokens * heads)`. */
export interface SelectKeysOptions {
  readonly name: string;
  /** Keys, or blocks of keys, of a sequence. */
  readonly context: number;
  readonly k: number;
  readonly tokens: Expr;
  /** Scores are of blocks of `size` positions, for each of `heads`. */
  readonly blocks?: { readonly heads: number; readonly size: number };
}

/** selected[token, j]: the keys with the k largest scores, in their order; of equal scores the first; -1 after them. */
export function selectKeys(o: SelectKeysOptions): Kernel {
  const { context, k, blocks } = o;
  const lanes = lanesOf(context);
  const [rows, end] = blocks
    ? [
      wgsl`${o.tokens} * ${blocks.heads}`,
      wgsl`u32(last[row / ${blocks.heads}] + ${blocks.size}) / ${blocks.size}`,
    ]
    : [wgsl`${o.tokens}`, wgsl`u32(last[row] + 1)`];
  return kernelOf({
    name: o.name,
    workgroupSize: lanes,
    bindings: bindings(
      { scores: "f32 [row, context]", last: "i32 [token]" },
      { selected: "i32 [row, k]" },
    ),
    body: wgsl`
      var<workgroup> larger: array<u32, ${lanes}>;
      var<workgroup> equals: array<u32, ${lanes}>;

      let row = ${GROUP_XY};
      if (row < ${rows}) {
        let end = min(${end}, ${context}u);
        let first = row * ${context};
        let list = row * ${k};
        if (end <= ${k}) {
          for (var j = lane; j < ${k}; j += ${lanes}) {
            selected[list + j] = select(-1, i32(j), j < end);
          }
        } else {
          // The largest number that the scores of k keys reach, by their order as integers.
          var limit = 0u;
          for (var bit = 0u; bit < 32; bit++) {
            let candidate = limit | (0x80000000u >> bit);
            var count = 0u;
            for (var e = lane; e < end; e += ${lanes}) {
              let score = scores[first + e];
              if (${orderKey("score")} >= candidate) { count++; }
            }
            larger[lane] = count;
            workgroupBarrier();
            var all = 0u;
            for (var l = 0u; l < ${lanes}; l++) { all += larger[l]; }
            workgroupBarrier();
            if (all >= ${k}) { limit = candidate; }
          }

          // Each lane lists some keys side by side, after those of the lanes before it.
          let part = (end + ${lanes - 1}) / ${lanes};
          let from = min(lane * part, end);
          let to = min(from + part, end);
          var above = 0u;
          var equal = 0u;
          for (var e = from; e < to; e++) {
            let score = scores[first + e];
            let order = ${orderKey("score")};
            if (order > limit) { above++; }
            if (order == limit) { equal++; }
          }
          larger[lane] = above;
          equals[lane] = equal;
          workgroupBarrier();
          var room = ${k}u;
          var index = 0u;
          var seen = 0u;
          for (var l = 0u; l < ${lanes}; l++) {
            room -= larger[l];
            if (l < lane) {
              index += larger[l];
              seen += equals[l];
            }
          }
          index += min(seen, room);
          for (var e = from; e < to; e++) {
            let score = scores[first + e];
            let order = ${orderKey("score")};
            if (order > limit || (order == limit && seen < room)) {
              selected[list + index] = i32(e);
              index++;
            }
            if (order == limit) { seen++; }
          }
        }
      }`,
  });
}
