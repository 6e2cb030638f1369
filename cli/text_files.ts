/** Text files as training data: plain, or compressed by gzip. */

import { promisify } from "node:util";
import { gunzip } from "node:zlib";
import type { FileSystem } from "../engine/mod.ts";
import { DataError } from "../spec/mod.ts";

/** First bytes of compressed files, and what unpacks those that are not unpacked here. */
const GZIP = [0x1f, 0x8b];
const OTHERS: readonly (readonly [bytes: readonly number[], tool: string])[] = [
  [[0xfd, 0x37, 0x7a, 0x58, 0x5a], "xz -d"],
  [[0x28, 0xb5, 0x2f, 0xfd], "zstd -d"],
  [[0x42, 0x5a, 0x68], "bunzip2"],
];

/** The text of a file. Throws DataError where it is no text in UTF-8. */
export async function readTextFile(
  path: string,
  files: FileSystem,
): Promise<string> {
  const file = await files.open(path);
  let bytes: Uint8Array;
  try {
    bytes = await file.read(0, file.size);
  } finally {
    await file.close();
  }
  const begins = (first: readonly number[]) =>
    first.every((byte, i) => bytes[i] === byte);
  const tool = OTHERS.find(([first]) => begins(first))?.[1];
  if (tool !== undefined) {
    throw new DataError(
      `Cannot read '${path}': it is compressed in a way that is not read here. Unpack it with '${tool}'`,
    );
  }
  try {
    if (begins(GZIP)) bytes = await promisify(gunzip)(bytes);
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new DataError(
      `Cannot read '${path}': it is no text in UTF-8, plain or compressed by gzip. Convert it`,
    );
  }
}
