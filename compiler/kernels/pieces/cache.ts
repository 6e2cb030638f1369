/** Where the keys of a sequence are in a cache: one after another, or in pages. */

import { type KernelText, wgsl } from "../../../spec/kernel/text.ts";
import { KEY_BLOCK } from "../../tuning/queries.ts";

/** What a cache is like. */
export interface CacheShape {
  readonly kvHeads: number;
  /** Positions of the cache. */
  readonly context: number;
  /** The cache is in pages of so many positions. */
  readonly pages?: { readonly size: number };
}

/** Where the keys and values of a sequence are. */
export interface Cache {
  /** What is prepared for the sequence, and for a block that begins at `start`. */
  readonly begin: KernelText;
  readonly ofBlock?: KernelText;
  /** The cached vector at a position; of a block, if that is prepared. */
  vectorOf(position: KernelText): KernelText;
  /** Each block is memory of the sequence, also after the last key. */
  readonly whole: boolean;
}

/** The cache of the sequence of `token`. `scattered`: keys are read in any order, not in blocks. */
export function cacheOf(
  { kvHeads, context, pages }: CacheShape,
  { token, kvHead, scattered = false }: {
    readonly token: string;
    readonly kvHead: KernelText;
    readonly scattered?: boolean;
  },
): Cache {
  const apart = (position: KernelText) =>
    wgsl`cache + ${position} * ${kvHeads}`;
  if (!pages) {
    return {
      begin: wgsl`
        // The cached vector of position 0.
        let cache = u32(sequence[${token}]) * ${
        context * kvHeads
      } + ${kvHead};`,
      vectorOf: apart,
      whole: context % KEY_BLOCK === 0 && !scattered,
    };
  }
  const { size } = pages;
  const begin = wgsl`
    let kv_head = ${kvHead};
    // Where the table has the sequence.
    let blocks = u32(sequence[${token}]) * ${Math.ceil(context / size)};`;
  const entryOf = (position: KernelText) =>
    wgsl`u32(pages[blocks + (${position}) / ${size}]) * ${size} + (${position}) % ${size}`;
  if (size % KEY_BLOCK !== 0 || scattered) {
    const vectorOf = (position: KernelText) =>
      wgsl`(${entryOf(position)}) * ${kvHeads} + kv_head`;
    return { begin, vectorOf, whole: false };
  }
  const ofBlock = wgsl`
    // All keys of the block are in one page: where position 0 would be in front of them, below 0 perhaps.
    let cache = (${entryOf(wgsl`start`)} - start) * ${kvHeads} + kv_head;`;
  return { begin, ofBlock, vectorOf: apart, whole: true };
}
