/** Counting sort by several lanes. Each lane counts its own consecutive items and then numbers them. */

import {
  type Hole,
  type KernelText,
  wgsl,
} from "../../../spec/kernel/text/text.ts";
import { sum } from "../../../spec/sum.ts";

/** Names in the text, and sizes. */
export interface CountingSortOptions {
  readonly lanes: number;
  readonly buckets: number;
  /** Name of the bucket. */
  readonly bucket: string;
  /** The workgroup array of cells. Default: `cells`. */
  readonly cells?: string;
  /** Stores the `count` of the items of a bucket. */
  readonly total: KernelText;
}

/** Words between the cells of adjacent lanes: odd, so that the lanes' cells of one bucket are in different banks. */
export function cellStride(buckets: number): number {
  return buckets | 1;
}

/**
 * Number of lanes, at most `max`, whose cells fit into workgroup memory, with `others` more words. `sorts`: buckets of
 * each.
 */
export function lanesFor(
  sorts: readonly number[],
  { words, others, max }: {
    readonly words: number;
    readonly others: number;
    readonly max: number;
  },
): number {
  const cells = sum(sorts.map(cellStride));
  let lanes = max;
  while (lanes > 1 && lanes * cells + others > words) lanes /= 2;
  return lanes;
}

/**
 * Exclusive scan over lanes: cell [lane, bucket] changes from the lane's count to the count of earlier lanes. The
 * buckets are distributed over the lanes.
 */
export function scanCells(
  o: CountingSortOptions,
): KernelText {
  const { lanes, buckets, bucket: b, total, cells = "cells" } = o;
  const cell = wgsl`l * ${cellStride(buckets)} + ${b}`;
  return wgsl`
    for (var ${b} = lane; ${b} < ${buckets}; ${b} += ${lanes}) {
      var count = 0u;
      for (var l = 0u; l < ${lanes}; l++) {
        let here = ${cells}[${cell}];
        ${cells}[${cell}] = count;
        count += here;
      }
      ${total}
    }`;
}

/** Consecutive items per lane, equally many, in multiples of `together`: from `from` below `to`. */
export function laneShare(
  items: Hole,
  lanes: number,
  together = 1,
): KernelText {
  const max = wgsl`(${items} + ${lanes * together - 1}) / ${lanes * together}`;
  return wgsl`
    let share = ${together === 1 ? max : wgsl`${max} * ${together}`};
    let from = min(lane * share, ${items});
    let to = min(from + share, ${items});`;
}

/** `name` becomes the u32 sum of `array` over the lanes below `end`: an exclusive scan if `end` is `lane`. */
export function sumOfLanes(
  name: string,
  array: string,
  end: Hole,
): KernelText {
  return wgsl`
    var ${name} = 0u;
    for (var l = 0u; l < ${end}; l++) { ${name} += ${array}[l]; }`;
}
