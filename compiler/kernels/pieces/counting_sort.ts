/** Counting sort by several lanes, each of which counts its own items: what all of them need between counting and numbering. */

import { type KernelText, wgsl } from "../../../spec/kernel/text.ts";

/** Names in the text, and sizes. */
export interface CountingSortOptions {
  readonly lanes: number;
  readonly buckets: number;
  /** Name of the bucket that is counted over. */
  readonly bucket: string;
  /** The binding that gets how many items each bucket has. */
  readonly counts: string;
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
 * `cells` [lane, bucket] has how many items of a bucket each lane found; it becomes how many those before it found: an
 * exclusive scan over lanes. The buckets are shared out among the lanes.
 */
export function scanCells(
  { lanes, buckets, bucket: b, counts, totals }: CountingSortOptions,
): KernelText {
  return wgsl`
    for (var ${b} = lane; ${b} < ${buckets}; ${b} += ${lanes}) {
      var count = 0u;
      for (var l = 0u; l < ${lanes}; l++) {
        let here = cells[l * ${buckets} + ${b}];
        cells[l * ${buckets} + ${b}] = count;
        count += here;
      }
      ${counts}[${b}] = count;
      ${totals}[${b}] = count;
    }`;
}
