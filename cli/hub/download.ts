/**
 * Downloads of files into the cache. Interrupted downloads are resumed, and contents are checked against their hash.
 */

import { createHash, type Hash } from "node:crypto";
import * as fs from "node:fs/promises";
import { setTimeout } from "node:timers/promises";
import { DataError, MachineError } from "../../spec/errors.ts";
import { shown } from "../../spec/shown.ts";
import { takeLock } from "../lock_file.ts";
import { guard } from "../files.ts";
import { PART, type RepoCache, sizeOf } from "./cache.ts";
import {
  type HubClient,
  type HubFile,
  reasonOf,
  Unreachable,
} from "./client.ts";

/** The context of a transfer. */
export interface Transfer {
  readonly repo: string;
  readonly commit: string;
  readonly client: HubClient;
  readonly cache: RepoCache;
  /** Returns whether to stop because another transfer has failed. */
  readonly stopped: () => boolean;
  /** Milliseconds before the first retry. */
  readonly retryMs: number;
  /** Called with the change in the number of received bytes. */
  readonly onBytes: (bytes: number) => void;
  readonly notice: (text: string) => void;
}

/** Maximum number of consecutive interruptions without progress. */
const INTERRUPTIONS = 5;

const STOPPED = "Cannot fetch a file: another transfer has failed. Start again";

/** Milliseconds between checks of another process's lock. */
const LOOK = 200;

/** Downloads a file unless it is cached. One process downloads a file while the others wait. */
export async function download(
  file: HubFile,
  transfer: Transfer,
): Promise<void> {
  const { cache, commit, onBytes } = transfer;
  const blob = cache.blob(file);
  const cached = async () => (await sizeOf(blob.path)) === file.size;
  if (await cached()) onBytes(file.size);
  else {
    const release = await lock(blob.lock, file, transfer);
    try {
      if (await cached()) onBytes(file.size);
      else await fetchBlob(file, blob.path, transfer);
    } finally {
      await release();
    }
  }
  await cache.link(commit, file);
}

async function lock(
  path: string,
  file: HubFile,
  { notice }: Transfer,
): Promise<() => Promise<void>> {
  for (let waits = false;; waits = true) {
    const taken = await guard(
      "write",
      path,
      () => takeLock(path, { disk: fs }),
    );
    if ("release" in taken) return taken.release;
    if (!waits) {
      notice(`Waiting for ${taken.owner}, which fetches ${file.path}`);
    }
    await setTimeout(LOOK);
  }
}

/** Returns the hash function of a file: that of git or of LFS. */
function hashOf({ etag, size }: HubFile): Hash {
  return etag.length === 64
    ? createHash("sha256")
    : createHash("sha1").update(`blob ${size}\0`);
}

async function fetchBlob(
  file: HubFile,
  path: string,
  transfer: Transfer,
): Promise<void> {
  const part = `${path}${PART}`;
  const resumed = await receive(file, part, transfer);
  if (resumed !== "same") {
    // The bytes from an earlier attempt may be corrupt.
    transfer.onBytes(-file.size);
    await fs.rm(part, { force: true });
    if (
      resumed === "other" || await receive(file, part, transfer) !== "same"
    ) {
      await fs.rm(part, { force: true });
      throw new DataError(
        `Cannot fetch '${file.path}' of '${transfer.repo}': its hash is not the one that the hub lists. Start again`,
      );
    }
  }
  await guard("write", path, () => fs.rename(part, path));
}

/** Receives the rest of a file. Returns whether its hash is correct, or `suspect` if an earlier part may be corrupt. */
async function receive(
  file: HubFile,
  part: string,
  transfer: Transfer,
): Promise<"same" | "other" | "suspect"> {
  const hash = hashOf(file);
  const handle = await guard("write", part, () => fs.open(part, "a+"));
  try {
    let received = await hashPart(handle, file, hash);
    const before = received;
    transfer.onBytes(received);
    for (let failures = 0; received < file.size;) {
      try {
        const stream = await transfer.client.open(file, { from: received });
        for await (const chunk of stream) {
          const bytes = chunk.subarray(0, file.size - received);
          await guard("write", part, () => handle.appendFile(bytes));
          hash.update(bytes);
          received += bytes.length;
          transfer.onBytes(bytes.length);
          failures = 0;
          if (transfer.stopped()) throw new MachineError(STOPPED);
        }
        if (received < file.size) {
          throw new Error("Cannot read on: it ended early");
        }
      } catch (error) {
        if (isFinal(error) || ++failures === INTERRUPTIONS) {
          throw interrupted(error, file, transfer);
        }
        await setTimeout(transfer.retryMs * 2 ** failures);
      }
    }
    await guard("write", part, () => handle.sync());
    if (hash.digest("hex") === file.etag) return "same";
    return before > 0 ? "suspect" : "other";
  } finally {
    await handle.close();
  }
}

/** Hashes the existing part of a file and returns its size. A part that is too long is discarded. */
async function hashPart(
  handle: fs.FileHandle,
  { size }: HubFile,
  hash: Hash,
): Promise<number> {
  const { size: found } = await handle.stat();
  if (found > size) {
    await handle.truncate(0);
    return 0;
  }
  const buffer = new Uint8Array(1 << 20);
  let done = 0;
  while (done < found) {
    const { bytesRead } = await handle.read(buffer, 0, buffer.length, done);
    if (bytesRead === 0) break;
    hash.update(buffer.subarray(0, bytesRead));
    done += bytesRead;
  }
  return done;
}

/** Returns whether a retry cannot fix the error. Examples are disk errors and rejections by the hub. */
function isFinal(error: unknown): boolean {
  return error instanceof DataError ||
    error instanceof MachineError && !(error instanceof Unreachable);
}

function interrupted(
  error: unknown,
  { path }: HubFile,
  { repo }: Transfer,
): Error {
  if (isFinal(error)) return error as Error;
  const reason = error instanceof Unreachable
    ? error.reason
    : shown(reasonOf(error));
  return new MachineError(
    `Cannot fetch '${path}' of '${repo}': the transfer is interrupted (${reason}). Start again: it resumes where it ended`,
  );
}
