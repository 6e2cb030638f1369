/** Text files as training data: plain or compressed. */

import { spawn } from "node:child_process";
import { promisify } from "node:util";
import * as zlib from "node:zlib";
import type { FileSystem } from "../engine/mod.ts";
import { DataError, MachineError } from "../spec/mod.ts";

/** A way to compress: how its files begin, and what unpacks them. */
interface Packing {
  readonly name: string;
  readonly first: readonly number[];
  /** In this process, where Node.js can. */
  readonly unpack?: (bytes: Uint8Array) => Promise<Uint8Array>;
  /** A program that unpacks its standard input. */
  readonly tool: string;
}

/** Node.js has it from 22.15 on. */
const zstd = (zlib as {
  readonly zstdDecompress?: (
    bytes: Uint8Array,
    done: (error: Error | null, text: Uint8Array) => void,
  ) => void;
}).zstdDecompress;

const PACKINGS: readonly Packing[] = [
  {
    name: "gzip",
    first: [0x1f, 0x8b],
    tool: "gzip",
    unpack: promisify(zlib.gunzip),
  },
  {
    name: "zstd",
    first: [0x28, 0xb5, 0x2f, 0xfd],
    tool: "zstd",
    ...zstd ? { unpack: promisify(zstd) } : {},
  },
  { name: "xz", first: [0xfd, 0x37, 0x7a, 0x58, 0x5a], tool: "xz" },
  { name: "bzip2", first: [0x42, 0x5a, 0x68], tool: "bzip2" },
];

/** The text of a file. Throws DataError where it is no text in UTF-8, MachineError where what unpacks it is missing. */
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
  const packing = PACKINGS.find(({ first }) =>
    first.every((byte, i) => bytes[i] === byte)
  );
  try {
    if (packing) bytes = await unpack(bytes, packing);
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (error) {
    if (isMissing(error)) {
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
  }
}

function isMissing(error: unknown): boolean {
  return error instanceof Error && "code" in error && error.code === "ENOENT";
}

async function unpack(
  bytes: Uint8Array,
  { unpack, tool }: Packing,
): Promise<Uint8Array> {
  if (unpack) return await unpack(bytes);
  const child = spawn(tool, ["-dc"], { stdio: ["pipe", "pipe", "ignore"] });
  const chunks: Uint8Array[] = [];
  child.stdout.on("data", (chunk: Uint8Array) => chunks.push(chunk));
  // A tool that is missing, or stops early, does not read all.
  child.stdin.on("error", () => {});
  child.stdin.end(bytes);
  await new Promise<void>((resolve, reject) => {
    child.on("error", reject);
    child.on(
      "close",
      (code) =>
        code === 0
          ? resolve()
          : reject(new Error(`Cannot unpack: '${tool}' ended with ${code}`)),
    );
  });
  return Buffer.concat(chunks);
}
