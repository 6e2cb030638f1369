/** Files, as the caller lets the runtime read them. */

import { DataError } from "../spec/errors.ts";

/** Random access to a file, given by the caller. */
export interface FileSource {
  /** For people. */
  readonly name: string;
  readonly size: number;
  /** Of a file of the system that is open: what it calls the file. */
  readonly descriptor?: number;
  /** Exactly `length` bytes from `offset`. */
  read(offset: number, length: number): Promise<Uint8Array>;
}

/** Read bytes, and say so if the file is shorter than it was. */
export async function readExactly(
  source: FileSource,
  offset: number,
  length: number,
): Promise<Uint8Array> {
  const bytes = await source.read(offset, length);
  if (bytes.byteLength === length) return bytes;
  throw new DataError(
    `Cannot read '${source.name}': ${bytes.byteLength} of ${length} bytes at ${offset} are there. Get the file again`,
  );
}
