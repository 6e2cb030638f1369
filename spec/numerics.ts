/**
 * The numeric contract: in which order the terms of a sum are added. Kernels, the evaluator and tests follow it;
 * `numerics.md` explains it.
 */

import type { Count } from "./values.ts";
import { invariant } from "./errors.ts";

/** The order of sums, and whether the mesh may change it. Its parameters belong to the kind of device. */
export interface Numerics {
  /**
   * `exact`: sums have one order, so results have the same bits on every mesh. `fast`: ranks may add up what they hold
   * before it is sent, and native CPU devices round a product and a sum at once; results have the same bits from run to
   * run on one mesh, and f32 accuracy between meshes.
   */
  readonly class: NumericsClass;
  /** The most segments of a contraction; a power of two. */
  readonly segments: Count;
  /** The fewest terms of a segment, where there are several. */
  readonly minSegment: Count;
  /** Terms of a block, which are added one after the other. */
  readonly block: Count;
}

/** Whether the mesh may change the order of sums. */
export type NumericsClass = "exact" | "fast";

/** The parameters that all kernels have today. */
export const EXACT: Numerics = {
  class: "exact",
  segments: 8,
  minSegment: 4,
  block: 32,
};

/**
 * Segments of a contraction over `k` terms: the largest power of two that divides k and leaves segments long enough; 1 if
 * there is none. Of ranks that hold a p-th of the terms each, p a power of two, each has a p-th of the segments.
 */
export function segmentsOf(k: number, numerics: Numerics = EXACT): number {
  let segments = numerics.segments;
  while (
    segments > 1 && (k % segments !== 0 || k / segments < numerics.minSegment)
  ) segments /= 2;
  return segments;
}

/** Where the balanced tree over n > 1 items is split: at the largest power of two below n. */
export function treeSplit(n: number): number {
  return 2 ** (Math.ceil(Math.log2(n)) - 1);
}

/** Items added as a balanced binary tree: ((a + b) + (c + d)) + …; throws an internal error if there are none. */
export function addAsTree<T>(
  items: readonly T[],
  add: (a: T, b: T) => T,
): T {
  invariant(items.length > 0, "a tree has items");
  if (items.length === 1) return items[0]!;
  const split = treeSplit(items.length);
  return add(
    addAsTree(items.slice(0, split), add),
    addAsTree(items.slice(split), add),
  );
}

/** How `orderedSum` adds. */
export interface OrderedSumOptions {
  /** Equal segments; divides the number of terms. Default: 1. */
  readonly segments?: number;
  /** Terms of a block. Default: 32. */
  readonly block?: number;
  /** How every sum is rounded. Default: to f32. */
  readonly round?: (sum: number) => number;
}

/** A sum of `k` terms in the contract's order, on the host: `step(i, sum)` adds term i to the sum of a block. */
export function orderedSum(
  k: number,
  step: (i: number, sum: number) => number,
  { segments = 1, block = EXACT.block, round = Math.fround }:
    OrderedSumOptions = {},
): number {
  invariant(k % segments === 0, "segments are equally long");
  const length = k / segments;
  const sums = Array.from({ length: segments }, (_, segment) => {
    const end = (segment + 1) * length;
    let total = 0;
    for (let start = segment * length; start < end; start += block) {
      let sum = 0;
      const next = Math.min(start + block, end);
      for (let i = start; i < next; i++) sum = step(i, sum);
      total = round(total + sum);
    }
    return total;
  });
  return addAsTree(sums, (a, b) => round(a + b));
}
