/** Memory blocks in MPI's form: one address, with 32-bit counts and offsets. */

import { invariant, MachineError } from "../../spec/errors.ts";

/** A block to send to, and one to receive from, every rank of a group. */
export interface Blocks {
  readonly send: readonly Uint8Array[];
  readonly receive: readonly Uint8Array[];
}

/** The largest count of MPI. */
export const LONGEST_COUNT = 2 ** 31 - 1;

/** An empty array may have no address, which some libraries do not accept. */
const NOTHING = new Uint8Array(8);

/** Offsets of blocks in bytes, relative to the first. */
export interface Layout {
  readonly data: Uint8Array;
  readonly lengths: readonly number[];
  readonly offsets: readonly number[];
}

/** The address of blocks in one ArrayBuffer, and their relative offsets. */
export function layOut(blocks: readonly Uint8Array[]): Layout {
  const lengths: number[] = [];
  let buffer: ArrayBufferLike | undefined;
  let [start, end] = [Infinity, 0];
  for (const block of blocks) {
    lengths.push(block.length);
    if (block.length === 0) continue;
    buffer ??= block.buffer;
    invariant(block.buffer === buffer, "blocks of several memories");
    start = Math.min(start, block.byteOffset);
    end = Math.max(end, block.byteOffset + block.length);
  }
  return {
    data: buffer ? new Uint8Array(buffer, start, end - start) : NOTHING,
    lengths,
    offsets: blocks.map(({ byteOffset, length }) =>
      length > 0 ? byteOffset - start : 0
    ),
  };
}

/** The smallest unit, a power of two bytes, in which all lengths and offsets fit a count. */
export function unitOf(
  lengths: readonly number[],
  offsets: readonly number[],
  longest: number,
): number {
  const max = Math.max(...lengths, ...offsets);
  let unit = 1;
  while (max / unit > longest) unit *= 2;
  const odd = unit === 1
    ? undefined
    : [...lengths, ...offsets].find((value) => value % unit !== 0);
  if (odd === undefined) return unit;
  throw new MachineError(
    `Cannot exchange ${max} bytes: MPI counts to ${longest}, and ${odd} bytes are no multiple of ${unit}. Use more ranks, or smaller bounds`,
  );
}

/** Bytes converted to units. */
export function inUnits(bytes: readonly number[], unit: number): Int32Array {
  const counts = new Int32Array(bytes.length);
  for (let i = 0; i < bytes.length; i++) counts[i] = bytes[i]! / unit;
  return counts;
}

/** Start offsets of consecutive blocks. */
export function startsOf(counts: readonly number[]): number[] {
  let next = 0;
  return counts.map((count) => {
    const start = next;
    next += count;
    return start;
  });
}

/** The bytes of words. */
export function viewOf(words: Int32Array | Uint32Array): Uint8Array {
  return new Uint8Array(words.buffer, words.byteOffset, words.byteLength);
}
