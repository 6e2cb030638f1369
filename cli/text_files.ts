/** Text files as training data or prompts, plain or compressed. */

import { spawn } from "node:child_process";
import { constants } from "node:buffer";
import { once } from "node:events";
import type { Transform } from "node:stream";
import { pipeline } from "node:stream/promises";
import * as zlib from "node:zlib";
import type { FileSystem, OpenFile } from "../engine/mod.ts";
import { codeOf } from "../runtime/cache/folders.ts";
import { DataError, MachineError } from "../spec/mod.ts";

/** A compression format: the first bytes of its files, and its decompressor. */
interface Packing {
  readonly name: string;
  readonly first: readonly number[];
  /** Decompresses in this process, if Node.js supports the format. */
  readonly unpack?: () => Transform;
  /** A program that decompresses its standard input. */
  readonly tool: string;
}

/** Available in Node.js from 22.15 on. */
const unzstd = (zlib as { readonly createZstdDecompress?: () => Transform })
  .createZstdDecompress;

const PACKINGS: readonly Packing[] = [
  {
    name: "gzip",
    first: [0x1f, 0x8b],
    tool: "gzip",
    unpack: () => zlib.createGunzip(),
  },
  {
    name: "zstd",
    first: [0x28, 0xb5, 0x2f, 0xfd],
    tool: "zstd",
    ...unzstd ? { unpack: unzstd } : {},
  },
  { name: "xz", first: [0xfd, 0x37, 0x7a, 0x58, 0x5a], tool: "xz" },
  { name: "bzip2", first: [0x42, 0x5a, 0x68], tool: "bzip2" },
];

/** Reads the text of a file as one string. Throws like `readTextFile`, and DataError for a text that is too long. */
export async function readWholeText(
  path: string,
  files: FileSystem,
): Promise<string> {
  const pieces: string[] = [];
  let length = 0;
  for await (const piece of readTextFile(path, files)) {
    pieces.push(piece);
    length += piece.length;
    if (length > constants.MAX_STRING_LENGTH) {
      throw new DataError(
        `Cannot read '${path}': its text has more than ${constants.MAX_STRING_LENGTH} characters. Give a smaller file`,
      );
    }
  }
  return pieces.join("");
}

/** Bytes of one read. */
const CHUNK = 1 << 20;

/**
 * Reads the text of a file in chunks. Throws DataError for text that is not UTF-8 and MachineError if the decompressor
 * is missing.
 */
export async function* readTextFile(
  path: string,
  files: FileSystem,
): AsyncGenerator<string> {
  const file = await files.open(path);
  let packing: Packing | undefined;
  try {
    const head = await file.read(0, Math.min(file.size, 8));
    packing = PACKINGS.find(({ first }) =>
      first.every((byte, i) => head[i] === byte)
    );
    const decoder = new TextDecoder("utf-8", { fatal: true });
    const stored = chunksOf(file);
    for await (const bytes of packing ? unpacked(stored, packing) : stored) {
      yield decoder.decode(bytes, { stream: true });
    }
    yield decoder.decode();
  } catch (error) {
    if (error instanceof DataError || error instanceof MachineError) {
      throw error;
    }
    if (codeOf(error) === "ENOENT") {
      throw new MachineError(
        `Cannot read '${path}': it is compressed by ${
          packing!.name
        }, and there is no '${
          packing!.tool
        }' on the path. Install it, or unpack the file`,
      );
    }
    throw new DataError(
      `Cannot read '${path}': it is no text in UTF-8, plain or compressed by ${
        PACKINGS.map(({ name }) => name).join(", ").replace(
          /, ([^,]*)$/,
          " or $1",
        )
      }. Convert it`,
    );
  } finally {
    await file.close();
  }
}

async function* chunksOf(file: OpenFile): AsyncGenerator<Uint8Array> {
  for (let from = 0; from < file.size; from += CHUNK) {
    yield await file.read(from, Math.min(CHUNK, file.size - from));
  }
}

async function* unpacked(
  stored: AsyncIterable<Uint8Array>,
  { unpack, tool }: Packing,
): AsyncGenerator<Uint8Array> {
  if (!unpack) return yield* unpackedBy(tool, stored);
  const stream = unpack();
  const fed = pipeline(stored, stream);
  fed.catch(() => {});
  yield* stream;
  await fed;
}

/** Yields the output of a decompressor. */
async function* unpackedBy(
  tool: string,
  stored: AsyncIterable<Uint8Array>,
): AsyncGenerator<Uint8Array> {
  const child = spawn(tool, ["-dc"], { stdio: ["pipe", "pipe", "ignore"] });
  const ended = once(child, "close");
  ended.catch(() => {});
  // A missing or early-ended tool does not read its complete input.
  const fed = pipeline(stored, child.stdin).catch((error) => {
    if (error instanceof DataError || error instanceof MachineError) {
      throw error;
    }
  });
  fed.catch(() => child.kill());
  try {
    yield* child.stdout;
    const [code] = await ended;
    await fed;
    if (code !== 0) {
      throw new Error(`Cannot unpack: '${tool}' ended with ${code}`);
    }
  } finally {
    child.kill();
  }
}
