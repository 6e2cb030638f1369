/** Blocks of memory as MPI wants them: one address, counts and offsets of 32 bits. */

import { invariant, MachineError } from "../../spec/errors.ts";

/** A block for, and one from, every position of a group. */
export interface Blocks {
  readonly send: readonly Uint8Array[];
  readonly receive: readonly Uint8Array[];
}

/** The largest count that MPI takes. */
export const LONGEST_COUNT = 2 ** 31 - 1;

/** An empty array may have no address, which some libraries stumble over. */
const NOTHING = new Uint8Array(8);

/** Where blocks lie, in bytes from the first of them. */
export interface Layout {
  readonly data: Uint8Array;
  readonly lengths: readonly number[];
  readonly offsets: readonly number[];
}

/** The address of blocks that lie in one ArrayBuffer, and where they are from there. */
export function layOut(blocks: readonly Uint8Array[]): Layout {
  const filled = blocks.filter(({ length }) => length > 0);
  const lengths = blocks.map(({ length }) => length);
  const [first] = filled;
  if (!first) return { data: NOTHING, lengths, offsets: blocks.map(() => 0) };
  const start = Math.min(...filled.map(({ byteOffset }) => byteOffset));
  const end = Math.max(
    ...filled.map(({ byteOffset, length }) => byteOffset + length),
  );
  invariant(
    filled.every(({ buffer }) => buffer === first.buffer),
    "blocks of several memories",
  );
  return {
    data: new Uint8Array(first.buffer, start, end - start),
    lengths,
    offsets: blocks.map(({ byteOffset, length }) =>
      length > 0 ? byteOffset - start : 0
    ),
  };
}

/** The shortest unit, a power of two bytes, in which no value passes a count. */
export function unitOf(values: readonly number[], longest: number): number {
  const most = Math.max(...values);
  let unit = 1;
  while (most / unit > longest) unit *= 2;
  const odd = values.find((value) => value % unit !== 0);
  if (odd === undefined) return unit;
  throw new MachineError(
    `Cannot exchange ${most} bytes: MPI counts to ${longest}, and ${odd} bytes are no multiple of ${unit}. Use more ranks, or smaller bounds`,
  );
}

/** Where blocks begin that lie one after the other. */
export function startsOf(counts: readonly number[]): number[] {
  let next = 0;
  return counts.map((count) => {
    const start = next;
    next += count;
    return start;
  });
}

/** The sum of some numbers. */
export function sum(values: readonly number[]): number {
  return values.reduce((n, value) => n + value, 0);
}

/** The bytes of words. */
export function viewOf(words: Int32Array | Uint32Array): Uint8Array {
  return new Uint8Array(words.buffer, words.byteOffset, words.byteLength);
}
