/** The experts of a routing in the order of its counts: grouped by owner, and split into chunks. */

import { blockSizes, groupSizeOf } from "../../spec/mesh.ts";
import type { Placed } from "../sharding/placed.ts";
import { idsAt, partLengths } from "../sharding/lengths.ts";

/** The experts of each owner, `first` to `end` exclusive, by group rank. */
export type ExpertRanges = readonly (readonly [first: number, end: number])[];

/** The experts of each owner, in order. */
export function expertTable(
  placed: Placed,
  expert: string,
): readonly (readonly number[])[] {
  const axis = placed.axes[expert]!;
  return Array.from(
    { length: groupSizeOf(placed.mesh, axis.over) },
    (_, at) => idsAt(placed, axis, at),
  );
}

/** Experts splits[p] to splits[p + 1] are those of group rank p. */
export function splitsOf(placed: Placed, expert: string): number[] {
  const axis = placed.axes[expert]!;
  const splits = [0];
  for (const held of partLengths(placed, axis) ?? [axis.total]) {
    splits.push(splits.at(-1)! + held);
  }
  return splits;
}

/** The number of experts of each owner. */
export function heldExperts(splits: readonly number[]): number[] {
  return splits.slice(1).map((end, p) => end - splits[p]!);
}

/** The experts of each chunk: an equal part of every owner's experts, if there are enough. */
export function chunkExperts(
  splits: readonly number[],
  chunks: number,
): ExpertRanges[] {
  const lengths = heldExperts(splits);
  const count = Math.max(1, Math.min(chunks, Math.max(...lengths)));
  const ends = lengths.map((length) => blockSizes(length, count));
  return Array.from({ length: count }, (_, c) =>
    ends.map((sizes, p) => {
      const first = splits[p]! + sizes.slice(0, c).reduce((a, b) => a + b, 0);
      return [first, first + sizes[c]!] as const;
    }));
}

/** The end of the experts of each owner and chunk, in order. A deduplicated token is sent once per owner and chunk. */
export function unitSplits(chunks: readonly ExpertRanges[]): number[] {
  const owners = chunks[0]!.length;
  return [
    0,
    ...Array.from(
      { length: owners },
      (_, p) => chunks.map((experts) => experts[p]![1]),
    ).flat(),
  ];
}
