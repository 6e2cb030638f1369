/**
 * The numeric contract: the order of the terms of a sum. Kernels, the evaluator and tests follow it; `numerics.md`
 * explains it.
 */

import type { Count } from "./values.ts";
import { invariant } from "./errors.ts";
import type { WireFormat } from "./wire.ts";

/** The order of sums, and whether the mesh may change it. Its parameters belong to the kind of device. */
export interface Numerics {
  /**
   * `exact`: sums have one order, so results have the same bits on every mesh. `fast`: ranks may add their rows before
   * sending, native CPU devices use fused multiply-add, and matmuls may have 16-bit operands; results are deterministic
   * for a mesh and agree between meshes to the accuracy of operands.
   */
  readonly class: NumericsClass;
  /** Maximum number of segments of a contraction; a power of two. */
  readonly segments: Count;
  /** Minimum terms per segment if there are several. */
  readonly minSegment: Count;
  /** Terms per block, added one after another. */
  readonly block: Count;
  /** Format to which the rows of dispatch and combine are rounded. Default: they are not. */
  readonly wire?: WireFormat;
  /**
   * Format to which matmuls of many rows and attention of many tokens round their operands. Only for `fast`. Default:
   * none.
   */
  readonly operands?: "f16";
}

/** Operands of matmuls of many rows and of attention of many tokens: as stored, or rounded to f16 for matrix units. */
export type Operands = "f32" | "f16";

/** All operands, the default of most devices first. */
export const OPERANDS: readonly Operands[] = ["f32", "f16"];

/** Whether the mesh may change the order of sums. */
export type NumericsClass = "exact" | "fast";

/** The parameters of all kernels. */
export const EXACT: Numerics = {
  class: "exact",
  segments: 8,
  minSegment: 4,
  block: 32,
};

/**
 * Number of segments of a contraction over `k` terms: the largest power of two that divides k and leaves segments long
 * enough; 1 if there is none. If p ranks, p a power of two, have equal shares of the terms, each has an equal number of
 * the segments.
 */
export function segmentsOf(k: number, numerics: Numerics = EXACT): number {
  let segments = numerics.segments;
  while (
    segments > 1 && (k % segments !== 0 || k / segments < numerics.minSegment)
  ) segments /= 2;
  return segments;
}

/** The split point of the balanced tree over n > 1 items: the largest power of two below n. */
export function treeSplit(n: number): number {
  return 2 ** (Math.ceil(Math.log2(n)) - 1);
}

/** Adds items as a balanced binary tree: ((a + b) + (c + d)) + …. Throws an internal error if there are none. */
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

/** Options of `orderedSum`. */
export interface OrderedSumOptions {
  /** Number of equal segments; divides the number of terms. Default: 1. */
  readonly segments?: number;
  /** Terms per block. Default: 32. */
  readonly block?: number;
  /** Rounding of every sum. Default: to f32. */
  readonly round?: (sum: number) => number;
}

/** A sum of `k` terms in the order of the contract, on the host: `step(i, sum)` adds term i to the sum of a block. */
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
