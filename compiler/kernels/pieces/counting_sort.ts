/** Counting sort by several lanes, each of which counts its own consecutive items, and then numbers them. */

import { type Hole, type KernelText, wgsl } from "../../../spec/kernel/text.ts";

/** Names in the text, and sizes. */
export interface CountingSortOptions {
  readonly lanes: number;
  readonly buckets: number;
  /** Name of the bucket that is counted over. */
  readonly bucket: string;
  /** The workgroup array of cells. Default: `cells`. */
  readonly cells?: string;
  /** The binding that gets how many items each bucket has, from element `first` on; default 0. */
  readonly counts: string;
  readonly first?: number;
  /** The workgroup array that gets the same. */
  readonly totals: string;
}

/** The lanes that fit into workgroup memory with a cell for each bucket, and `others` more words a bucket. */
export function lanesFor(
  buckets: number,
  { words, others }: { readonly words: number; readonly others: number },
): number {
  let lanes = 64;
  while (lanes > 1 && (lanes + others) * buckets > words) lanes /= 2;
  return lanes;
}

/**
 * Cell [lane, bucket] has how many items of a bucket each lane found; it becomes how many those before it found: an
 * exclusive scan over lanes. The buckets are shared out among the lanes.
 */
export function scanCells(
  o: CountingSortOptions,
): KernelText {
  const { lanes, buckets, bucket: b, counts, totals } = o;
  const { cells = "cells", first = 0 } = o;
  return wgsl`
    for (var ${b} = lane; ${b} < ${buckets}; ${b} += ${lanes}) {
      var count = 0u;
      for (var l = 0u; l < ${lanes}; l++) {
        let here = ${cells}[l * ${buckets} + ${b}];
        ${cells}[l * ${buckets} + ${b}] = count;
        count += here;
      }
      ${counts}[${first} + ${b}] = count;
      ${totals}[${b}] = count;
    }`;
}

/** Consecutive items for each lane, as many for one as for another, always `together` of them: those from `from` below `to`. */
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

/** `name` becomes the u32 sum of what the lanes below `end` have in `array`: an exclusive scan where that is `lane`. */
export function sumOfLanes(
  name: string,
  array: string,
  end: Hole,
): KernelText {
  return wgsl`
    var ${name} = 0u;
    for (var l = 0u; l < ${end}; l++) { ${name} += ${array}[l]; }`;
}
