/**
 * The contract's sum as text: equal segments, each summed in blocks of 32 consecutive indices; block sums are added in
 * order, segments as a balanced binary tree. See spec/numerics.md.
 */

import { invariant } from "../../../spec/errors.ts";
import {
  type Hole,
  type KernelText,
  type Statements,
  wgsl,
} from "../../../spec/kernel/text.ts";
import { EXACT } from "../../../spec/numerics.ts";
import { sumTree } from "./sum_tree.ts";
import { unrolled } from "./unrolled.ts";

/** Indices in a block of a sum. */
export const SUM_BLOCK = EXACT.block;

/** Sums over one index. */
export interface BlockedSumOptions {
  /** How many indices: a number, or a u32. */
  readonly length: Hole;
  /** Name of the index, and prefix of the names that the loop needs. Default `k`. */
  readonly over?: string;
  /** Equal segments, whose sums are added as a tree: a power of two that divides `length`, which is then a number. Default: 1. */
  readonly segments?: number | undefined;
  /** The index counts pairs: `add` adds for 2 * `k` and the next. All blocks are equally long. */
  readonly pairs?: boolean;
  /** Ends of the indices of totals that are registers, such as `sum[r][c]`. Default: they are variables. */
  readonly indices?: KernelText | undefined;
  /** What comes before each block, given its first index. */
  readonly before?: ((start: KernelText) => Statements) | undefined;
}

/**
 * Declares the f32 variables `totals` and sums into them. For each index, `add` adds to the sum of the block at hand, which
 * for the total `dot` is called `dot_block`.
 */
export function blockedSum(
  totals: string | readonly string[],
  { segments = 1, ...o }: BlockedSumOptions,
  add: Statements,
): KernelText {
  const { length, over: k = "k", indices } = o;
  const all = typeof totals === "string" ? [totals] : totals;
  const each: Each = (text) =>
    wgsl`${all.map((total) => unrolled(indices, text(total)))}`;
  const declared = each((total) => wgsl`var ${total} = 0.0;`);
  if (length === 0) return declared;
  if (segments === 1) return wgsl`${declared} ${oneSegment(each, o, add)}`;
  const tree = sumTree(all, segments, indices);
  const segment = {
    ...{ ...o, length: segmentLength(length, segments) },
    first: wgsl`${k}_first`,
  };
  return wgsl`
    ${declared}
    ${tree.declare}
    for (var ${k}_segment = 0u; ${k}_segment < ${segments}; ${k}_segment++) {
      let ${k}_first = ${k}_segment * ${segment.length};
      ${each((total) => wgsl`${total} = 0.0;`)}
      ${oneSegment(each, segment, add)}
      ${tree.add(wgsl`${k}_segment`)}
    }
    ${tree.finish}`;
}

/** Indices of one of several segments. */
export function segmentLength(length: Hole, segments: number): number {
  invariant(
    typeof length === "number" && length % segments === 0,
    "segments are equally long",
  );
  return length / segments;
}

/** The same for each total. */
type Each = (text: (total: string) => KernelText) => KernelText;

/** Adds to totals of 0 the blocks of `length` indices from `first` on; without it, from 0. */
function oneSegment(
  each: Each,
  { length, over: k = "k", pairs, first, before }: BlockedSumOptions & {
    readonly first?: KernelText;
  },
  add: Statements,
): KernelText {
  const last = first ? wgsl`${first} + ${length}` : length;
  const inPairs = (start: KernelText) => {
    invariant(typeof length === "number", "pairs are counted");
    const count = Math.min(SUM_BLOCK, length) / 2;
    return wgsl`
      let ${k}_pairs = (${start}) >> 1u;
      for (var ${k} = ${k}_pairs; ${k} < ${k}_pairs + ${count}; ${k}++) {
        ${add}
      }`;
  };
  const block = (start: KernelText, end: Hole) =>
    wgsl`
      ${before?.(start)}
      ${each((total) => wgsl`var ${total}_block = 0.0;`)}
      ${
      pairs ? inPairs(start) : wgsl`
        for (var ${k} = ${start}; ${k} < ${end}; ${k}++) {
          ${add}
        }`
    }
      // Also for a single block: 0 + block is the contract's, and differs from block where that is -0.
      ${each((total) => wgsl`${total} += ${total}_block;`)}`;
  const known = typeof length === "number";
  if (known && length <= SUM_BLOCK) return block(first ?? wgsl`0u`, last);
  const next = wgsl`${k}_block + ${SUM_BLOCK}`;
  const end = known && length % SUM_BLOCK === 0
    ? next
    : wgsl`min(${next}, ${last})`;
  return wgsl`
    for (var ${k}_block = ${
    first ?? wgsl`0u`
  }; ${k}_block < ${last}; ${k}_block += ${SUM_BLOCK}) {
      ${block(wgsl`${k}_block`, end)}
    }`;
}
