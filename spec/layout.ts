/** Memory layout of a buffer's elements. */

import { STORED_BYTES } from "./dtype.ts";
import { STORAGE_ALIGNMENT } from "./limits.ts";
import { mapRanks, onRank, type PerRank } from "./per_rank.ts";
import type { PlanBuffer } from "./plan/plan.ts";

/** The fields of a buffer that determine its length. */
export type BufferLayout = Pick<PlanBuffer, "dtype" | "axes" | "rowStride">;

/** Elements of a buffer on a rank, including row padding. */
export function storedElementsOf(buffer: BufferLayout, rank: number): number {
  return elementsOf(buffer, buffer.axes.map(({ size }) => onRank(size, rank)));
}

function elementsOf(
  { rowStride }: BufferLayout,
  lengths: readonly number[],
): number {
  const last = lengths.length - 1;
  return lengths.reduce(
    (n, length, i) => n * (i === last ? rowStride ?? length : length),
    1,
  );
}

/** Bytes of a buffer on a rank: elements times the element size, rounded up to 4, at least 4. */
export function storedBytesOf(buffer: BufferLayout, rank: number): number {
  return inWords(buffer, storedElementsOf(buffer, rank));
}

function inWords({ dtype }: BufferLayout, elements: number): number {
  return Math.max(4, Math.ceil(elements * STORED_BYTES[dtype] / 4) * 4);
}

/** The first aligned offset at or after a byte of an allocation. */
export function alignedOffset(bytes: number): number {
  return Math.ceil(bytes / STORAGE_ALIGNMENT) * STORAGE_ALIGNMENT;
}

/** Bytes of a buffer on every rank. */
export function storedBytes(buffer: BufferLayout): PerRank {
  return mapRanks(
    buffer.axes.map(({ size }) => size),
    (lengths) => inWords(buffer, elementsOf(buffer, lengths)),
  );
}
