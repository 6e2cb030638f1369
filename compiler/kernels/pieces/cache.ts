/** Location of a sequence's keys in a cache: consecutive, or in pages. */

import { type KernelText, wgsl } from "../../../spec/kernel/text/text.ts";
import { KEY_BLOCK } from "../../tuning/queries.ts";

/** The layout of a cache. */
export interface CacheShape {
  readonly kvHeads: number;
  /** Positions of the cache on this rank. */
  readonly context: number;
  /** The first of them, if ranks share the positions of a sequence. Default: 0. */
  readonly begin?: KernelText | undefined;
  /** Positions per page, if the cache has pages. */
  readonly pages?: { readonly size: number };
  /** Stores the positions of a head consecutively, per sequence or page. Default: the heads of a position. */
  readonly headMajor?: boolean;
}

/** Access to the keys and values of a sequence. */
export interface Cache {
  /** Statements that prepare the sequence, and a block that begins at `start`. */
  readonly begin: KernelText;
  readonly ofBlock?: KernelText;
  /** The cached vector at a position, or in a prepared block. */
  vectorOf(position: KernelText): KernelText;
  /** Vectors from a position of a prepared block to the next one. Undefined: it varies. */
  readonly step: number | undefined;
  /** Each block is memory of the sequence, even after the last key. */
  readonly hasFullBlocks: boolean;
}

/**
 * The cache of the sequence of `token`. `scattered`: keys are read in any order instead of in blocks. `start`: the
 * first position of a block.
 */
export function cacheOf(
  { kvHeads, context, begin, pages, headMajor = false }: CacheShape,
  { token, kvHead, scattered = false, start = wgsl`start` }: {
    readonly token: string;
    readonly kvHead: KernelText;
    readonly scattered?: boolean;
    readonly start?: KernelText;
  },
): Cache {
  const vectors = (positions: KernelText) =>
    headMajor ? positions : wgsl`${positions} * ${kvHeads}`;
  const step = scattered ? undefined : headMajor ? 1 : kvHeads;
  const apart = (position: KernelText) => wgsl`cache + ${vectors(position)}`;
  if (!pages) {
    const head = headMajor ? wgsl`${kvHead} * ${context}` : kvHead;
    const first = wgsl`u32(sequence[${token}]) * ${
      context * kvHeads
    } + ${head}`;
    const zero = begin ? wgsl`${first} - ${vectors(begin)}` : first;
    return {
      begin: wgsl`
        // The cached vector of position 0; it may be negative.
        let cache = ${zero};`,
      vectorOf: apart,
      step,
      hasFullBlocks: context % KEY_BLOCK === 0 && !scattered,
    };
  }
  const { size } = pages;
  const prepare = wgsl`
    let kv_head = ${kvHead};
    // The start of the sequence in the page table.
    let blocks = u32(sequence[${token}]) * ${Math.ceil(context / size)};`;
  const entryOf = (position: KernelText) => {
    const at = begin ? wgsl`${position} - ${begin}` : position;
    const page = wgsl`u32(pages[blocks + (${at}) / ${size}])`;
    const first = headMajor ? wgsl`(${page} * ${kvHeads} + kv_head)` : page;
    return wgsl`${first} * ${size} + (${at}) % ${size}`;
  };
  const vectorIn = (entry: KernelText) =>
    headMajor ? entry : wgsl`(${entry}) * ${kvHeads} + kv_head`;
  if (size % KEY_BLOCK !== 0 || scattered) {
    const vectorOf = (position: KernelText) => vectorIn(entryOf(position));
    return { begin: prepare, vectorOf, step: undefined, hasFullBlocks: false };
  }
  const ofBlock = wgsl`
    // All keys of the block are in one page. This is the index of position 0 relative to that page; it may be negative.
    let cache = ${vectorIn(wgsl`${entryOf(start)} - ${start}`)};`;
  return {
    begin: prepare,
    ofBlock,
    vectorOf: apart,
    step,
    hasFullBlocks: true,
  };
}
