/** Files: the interface through which the runtime reads them. */

import { DataError } from "../../spec/errors.ts";

/** Random access to a file, provided by the caller. */
export interface FileSource {
  /** For people. */
  readonly name: string;
  readonly size: number;
  /** Descriptor, if it is an open system file. */
  readonly descriptor?: number;
  /** Reads exactly `length` bytes from `offset`. */
  read(offset: number, length: number): Promise<Uint8Array>;
}

/** Reads bytes. Throws an error if the file has become shorter. */
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
