/** Blocks of memory as MPI wants them: one address, counts and offsets of 32 bits. */

import { invariant, MachineError } from "../../spec/errors.ts";

/** A block for, and one from, every rank of a group. */
export interface Blocks {
  readonly send: readonly Uint8Array[];
  readonly receive: readonly Uint8Array[];
}

/** The largest count that MPI takes. */
export const LONGEST_COUNT = 2 ** 31 - 1;

/** An empty array may have no address, which some libraries stumble over. */
const NOTHING = new Uint8Array(8);

/** Where blocks are stored, in bytes from the first of them. */
export interface Layout {
  readonly data: Uint8Array;
  readonly lengths: readonly number[];
  readonly offsets: readonly number[];
}

/** The address of blocks that are stored in one ArrayBuffer, and where they are from there. */
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

/** The shortest unit, a power of two bytes, in which no length or offset passes a count. */
export function unitOf(
  lengths: readonly number[],
  offsets: readonly number[],
  longest: number,
): number {
  const most = Math.max(...lengths, ...offsets);
  let unit = 1;
  while (most / unit > longest) unit *= 2;
  const odd = unit === 1
    ? undefined
    : [...lengths, ...offsets].find((value) => value % unit !== 0);
  if (odd === undefined) return unit;
  throw new MachineError(
    `Cannot exchange ${most} bytes: MPI counts to ${longest}, and ${odd} bytes are no multiple of ${unit}. Use more ranks, or smaller bounds`,
  );
}

/** Bytes as MPI counts them. */
export function inUnits(bytes: readonly number[], unit: number): Int32Array {
  const counts = new Int32Array(bytes.length);
  for (let i = 0; i < bytes.length; i++) counts[i] = bytes[i]! / unit;
  return counts;
}

/** Where blocks begin that are stored one after the other. */
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
