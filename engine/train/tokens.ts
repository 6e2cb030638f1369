/**
 * Tokens of a text cached in a file with the checkpoints. Only rank 0 reads the text and writes the file; every rank
 * reads its own sequences.
 */

import { bytesOf, wordsOf } from "../../runtime/mod.ts";
import { openWorld } from "../../runtime/mpi/mod.ts";
import { MachineError } from "../../spec/errors.ts";
import type { DeviceSharing } from "../devices.ts";
import { sha256 } from "../digest.ts";
import type { FileSystem, OpenFile } from "../files.ts";
import type { Tokenizer } from "../text/tokenizer.ts";
import {
  piecesOf,
  type Text,
  tokenize,
  type TokenRow,
  tokensInMemory,
} from "./text.ts";

/** Options of tokenization. */
export interface Tokenizing {
  readonly tokenizer: Tokenizer;
  /** Identity of the tokenizer. */
  readonly tokenizerText: string;
  /** Token after each text. */
  readonly between: number | undefined;
}

/** Storage of tokens, and their readers. */
export interface Keeping {
  readonly files: FileSystem;
  /** Created if it does not exist. Undefined: in memory. */
  readonly folder: string | undefined;
  readonly sharing: DeviceSharing;
}

/** Tokens, and the identity of their text. */
export interface Tokens {
  readonly row: TokenRow;
  readonly digest: string;
}

/** Length of the hash after the tokens, in hexadecimal digits. */
const TAIL = 64;

/** Tokens that are hashed and written together. */
const BLOCK = 1 << 20;

/** The tokens of some texts. All processes must call it; with a folder, only rank 0 reads the texts. */
export async function openTokens(
  texts: readonly Text[],
  how: Tokenizing,
  keeping: Keeping,
): Promise<Tokens> {
  const { files, folder, sharing } = keeping;
  if (folder === undefined) {
    const digest = await digestOf(texts, how);
    return { row: tokensInMemory(await tokensOf(texts, how)), digest };
  }
  const world = sharing === "mpi" ? await openWorld() : undefined;
  let digest = "";
  if (!world || world.rank === 0) {
    digest = await digestOf(texts, how);
    await files.makeFolder(folder);
    await makeFile(fileOf(folder, digest, files), texts, how, files);
  }
  if (world) {
    [digest] = await world.gatherTexts(digest, {
      what: "reading the text",
      deadlineMs: LONGEST_MS,
    }) as [string];
  }
  return { row: await openFile(fileOf(folder, digest, files), files), digest };
}

/** Maximum time that other ranks wait for rank 0 to tokenize. */
const LONGEST_MS = 24 * 3_600_000;

function fileOf(folder: string, digest: string, files: FileSystem): string {
  return files.join(folder, `tokens-${digest.slice(0, 16)}.bin`);
}

/** Each hash includes the previous one and the next data, because texts are never entirely in memory. */
async function digestOf(
  texts: readonly Text[],
  { tokenizerText, between }: Tokenizing,
): Promise<string> {
  let digest = await sha256(JSON.stringify([between ?? null, tokenizerText]));
  for (const text of texts) {
    for await (const piece of piecesOf(text)) {
      digest = await sha256(digest + piece);
    }
    digest = await sha256(digest);
  }
  return digest;
}

/** Tokens in blocks of equal length, except for the last. */
async function* blocksOf(
  texts: readonly Text[],
  { tokenizer, between }: Tokenizing,
): AsyncGenerator<Int32Array> {
  let block = new Int32Array(BLOCK);
  let used = 0;
  for await (let part of tokenize(tokenizer, texts, between)) {
    while (part.length > 0) {
      const now = part.subarray(0, BLOCK - used);
      block.set(now, used);
      used += now.length;
      part = part.subarray(now.length);
      if (used < BLOCK) continue;
      yield block;
      block = new Int32Array(BLOCK);
      used = 0;
    }
  }
  if (used > 0) yield block.subarray(0, used);
}

async function tokensOf(
  texts: readonly Text[],
  how: Tokenizing,
): Promise<Int32Array> {
  const blocks: Int32Array[] = [];
  for await (const block of blocksOf(texts, how)) blocks.push(block);
  const tokens = new Int32Array(
    blocks.reduce((n, { length }) => n + length, 0),
  );
  blocks.forEach((block, i) => tokens.set(block, i * BLOCK));
  return tokens;
}

async function makeFile(
  path: string,
  texts: readonly Text[],
  how: Tokenizing,
  files: FileSystem,
): Promise<void> {
  if (await isComplete(path, files)) return;
  async function* parts(): AsyncGenerator<Uint8Array, void, undefined> {
    let hash = "";
    for await (const block of blocksOf(texts, how)) {
      const bytes = bytesOf(block);
      hash = await nextHash(hash, bytes);
      yield bytes;
    }
    yield new TextEncoder().encode(await sha256(hash));
  }
  await files.write(path, parts());
}

async function nextHash(before: string, block: Uint8Array): Promise<string> {
  return await sha256(before + await sha256(block));
}

/** Whether a file is intact. */
async function isComplete(path: string, files: FileSystem): Promise<boolean> {
  if (await files.stat(path) === undefined) return false;
  return await withFile(path, files, async (file) => {
    const end = file.size - TAIL;
    if (end < 0) return false;
    let hash = "";
    for (let from = 0; from < end; from += 4 * BLOCK) {
      const length = Math.min(4 * BLOCK, end - from);
      hash = await nextHash(hash, await file.read(from, length));
    }
    const tail = new TextDecoder().decode(await file.read(end, TAIL));
    return tail === await sha256(hash);
  });
}

async function openFile(path: string, files: FileSystem): Promise<TokenRow> {
  if (await files.stat(path) === undefined) {
    throw new MachineError(
      `Cannot read the text: '${path}', which rank 0 wrote, is not on this host. Give a folder that all hosts share`,
    );
  }
  const { size } = await withFile(path, files, (file) => Promise.resolve(file));
  let opened: Promise<OpenFile> | undefined;
  return {
    count: (size - TAIL) / 4,
    read: async (from, to) => {
      const file = await (opened ??= files.open(path));
      const bytes = await file.read(4 * from, 4 * (to - from));
      const { buffer, byteOffset, length } = wordsOf(bytes);
      return new Int32Array(buffer, byteOffset, length);
    },
    close: async () => {
      await (await opened)?.close();
    },
  };
}

async function withFile<T>(
  path: string,
  files: FileSystem,
  use: (file: OpenFile) => Promise<T>,
): Promise<T> {
  const file = await files.open(path);
  try {
    return await use(file);
  } finally {
    await file.close();
  }
}
