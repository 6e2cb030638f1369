/** How a buffer's elements lie in memory. */

import { STORED_BYTES } from "./dtype.ts";
import { onRank, type PlanBuffer } from "./plan.ts";

/** The layout of a buffer, as far as its length depends on it. */
export type BufferLayout = Pick<PlanBuffer, "dtype" | "axes" | "rowStride">;

/** Elements of a buffer on a rank, padding of rows included. */
export function storedElementsOf(buffer: BufferLayout, rank: number): number {
  const lengths = buffer.axes.map((axis) => onRank(axis.size, rank));
  if (buffer.rowStride !== undefined && lengths.length > 0) {
    lengths[lengths.length - 1] = buffer.rowStride;
  }
  return lengths.reduce((n, length) => n * length, 1);
}

/** Bytes of a buffer on a rank: elements times the element, rounded up to 4, at least 4. */
export function storedBytesOf(buffer: BufferLayout, rank: number): number {
  const bytes = storedElementsOf(buffer, rank) * STORED_BYTES[buffer.dtype];
  return Math.max(4, Math.ceil(bytes / 4) * 4);
}
