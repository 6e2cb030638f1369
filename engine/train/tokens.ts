/**
 * Tokens of a text in a file beside the checkpoints: made once, by the process of rank 0, which alone reads the text. Every
 * rank reads of it what it trains on.
 */

import { bytesOf, wordsOf } from "../../runtime/mod.ts";
import { openWorld } from "../../runtime/mpi/mod.ts";
import { MachineError } from "../../spec/errors.ts";
import type { DeviceSharing } from "../devices.ts";
import { sha256 } from "../digest.ts";
import type { FileSystem, OpenFile } from "../files.ts";
import type { Tokenizer } from "../tokenizer.ts";
import { tokenize, type TokenRow, tokensInMemory } from "./text.ts";

/** How tokens are made. */
export interface Tokenizing {
  readonly tokenizer: Tokenizer;
  /** What tells the tokenizer from others. */
  readonly tokenizerText: string;
  /** A token behind each text. */
  readonly between: number | undefined;
}

/** Where tokens are kept, and who else reads them. */
export interface Keeping {
  readonly files: FileSystem;
  /** Made where it is not there; undefined: in memory. */
  readonly folder: string | undefined;
  readonly sharing: DeviceSharing;
}

/** Tokens, and what tells their text from others. */
export interface Tokens {
  readonly row: TokenRow;
  readonly digest: string;
}

/** Bytes before the tokens: the hash of what follows, in hexadecimal digits. */
const HEAD = 64;

/** The tokens of some texts. Ranks that are processes must all ask; where there is a folder, only rank 0 reads the texts. */
export async function openTokens(
  texts: () => Promise<readonly string[]>,
  how: Tokenizing,
  keeping: Keeping,
): Promise<Tokens> {
  const { files, folder, sharing } = keeping;
  if (folder === undefined) {
    const all = await texts();
    return {
      row: tokensInMemory(
        await tokenize(how.tokenizer, all, how.between),
      ),
      digest: await digestOf(all, how),
    };
  }
  const world = sharing === "mpi" ? await openWorld() : undefined;
  let digest = "";
  if (!world || world.rank === 0) {
    const all = await texts();
    digest = await digestOf(all, how);
    await files.makeFolder(folder);
    await makeFile(fileOf(folder, digest, files), all, how, files);
  }
  if (world) {
    [digest] = await world.gatherTexts(digest, {
      what: "reading the text",
      deadlineMs: LONGEST_MS,
    }) as [string];
  }
  return { row: await openFile(fileOf(folder, digest, files), files), digest };
}

/** How long other ranks wait for rank 0 to tokenise. */
const LONGEST_MS = 24 * 3_600_000;

function fileOf(folder: string, digest: string, files: FileSystem): string {
  return files.join(folder, `tokens-${digest.slice(0, 16)}.bin`);
}

async function digestOf(
  texts: readonly string[],
  { tokenizerText, between }: Tokenizing,
): Promise<string> {
  const parts: string[] = [];
  for (const text of [tokenizerText, ...texts]) parts.push(await sha256(text));
  return await sha256(JSON.stringify([between ?? null, ...parts]));
}

async function makeFile(
  path: string,
  texts: readonly string[],
  { tokenizer, between }: Tokenizing,
  files: FileSystem,
): Promise<void> {
  if (await isWhole(path, files)) return;
  const tokens = await tokenize(tokenizer, texts, between);
  const head = new TextEncoder().encode(await sha256(tokens));
  await files.write(path, [head, bytesOf(tokens)]);
}

/** Whether a file has what was written. */
async function isWhole(path: string, files: FileSystem): Promise<boolean> {
  if (await files.stat(path) === undefined) return false;
  return await withFile(path, files, async (file) => {
    if (file.size < HEAD) return false;
    const head = new TextDecoder().decode(await file.read(0, HEAD));
    return head === await sha256(await file.read(HEAD, file.size - HEAD));
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
    count: (size - HEAD) / 4,
    read: async (from, to) => {
      const file = await (opened ??= files.open(path));
      const bytes = await file.read(HEAD + 4 * from, 4 * (to - from));
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
