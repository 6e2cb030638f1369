/**
 * Files of a cache folder. A reader gets the written bytes or nothing, whatever happens to the files. Modification
 * times record the last use; least recently used files are evicted first.
 */

import { createHash } from "node:crypto";
import { constants } from "node:fs";
import * as fs from "node:fs/promises";
import path from "node:path";
import { codeOf, makeFolder, userCache } from "./folders.ts";

/** Maximum bytes of a folder. */
const MAX_BYTES = 1 << 28;
/** Milliseconds after which a use is recorded again, and a folder is scanned again. */
const AGAIN_MS = 3_600_000;
/** Files used in the last `ms` are retained, because a process may be loading them, up to `times` the maximum bytes. */
const IN_USE = { ms: 2 * AGAIN_MS, times: 4 };
/** The file whose modification time records the last scan. */
const LOOKED = "looked";
/** Length of the SHA-256 hash at the start of a sealed file. */
const HASH_BYTES = 32;

/** The cache folder of a device. Undefined for a user without a home. */
export function cacheFolder(device: "native" | "wasm"): string | undefined {
  const base = userCache();
  return base && path.join(base, "switchyard", device);
}

/**
 * Adds a file to a folder: `make` writes a uniquely named part, synced to disk, and returns the final name. The part
 * then replaces any file with that name.
 */
export async function putFile(
  folder: string,
  make: (part: string) => Promise<string>,
): Promise<string> {
  await makeFolder(folder, { mode: 0o700 });
  // Processes in containers that share a folder may have the same process id.
  const part = path.join(folder, `part.${crypto.randomUUID()}`);
  try {
    const file = path.join(folder, await make(part));
    await fs.rename(part, file).catch(async (error) => {
      if (codeOf(error) !== "EISDIR") throw error;
      await fs.rm(file, { recursive: true });
      await fs.rename(part, file);
    });
    return file;
  } finally {
    await fs.rm(part, { force: true });
  }
}

/** Writes a new file and syncs it to disk. */
export async function writeSynced(
  file: string,
  bytes: Uint8Array,
): Promise<void> {
  const handle = await fs.open(file, "wx");
  try {
    await handle.writeFile(bytes);
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/**
 * The bytes of a regular file, which is marked as used. Undefined if it cannot be read. If its time cannot be changed,
 * it stays.
 */
export async function readUsed(file: string): Promise<Buffer | undefined> {
  try {
    // Does not wait for a pipe. Windows has no such flag, and no pipes in its file system.
    const handle = await fs.open(
      file,
      constants.O_RDONLY | (constants.O_NONBLOCK ?? 0),
    );
    try {
      const now = Date.now();
      const info = await handle.stat();
      if (!info.isFile() || info.size > MAX_BYTES) return undefined;
      const bytes = await handle.readFile();
      if (now - info.mtimeMs > AGAIN_MS) {
        await handle.utimes(now / 1e3, now / 1e3).catch(() => {});
      }
      return bytes;
    } finally {
      await handle.close();
    }
  } catch {
    return undefined;
  }
}

/** The SHA-256 of bytes. */
export function hashOf(bytes: Uint8Array): Buffer {
  return createHash("sha256").update(bytes).digest();
}

/** Adds a file to a folder: a hash followed by the bytes. */
export async function putSealed(
  folder: string,
  name: string,
  bytes: Uint8Array,
): Promise<void> {
  await putFile(folder, async (part) => {
    await writeSynced(part, Buffer.concat([hashOf(bytes), bytes]));
    return name;
  });
}

/** The bytes of a sealed file, which is marked as used. Undefined if it is damaged. */
export async function readSealed(file: string): Promise<Buffer | undefined> {
  const all = await readUsed(file);
  const bytes = all?.subarray(HASH_BYTES);
  return bytes && hashOf(bytes).equals(all!.subarray(0, HASH_BYTES))
    ? bytes
    : undefined;
}

/** Evicts least recently used files of a folder that is too large. The folder is scanned once per hour. */
export async function removeOldest(
  folder: string,
  { max = MAX_BYTES, now = Date.now() } = {},
): Promise<void> {
  const looked = path.join(folder, LOOKED);
  const last = await fs.lstat(looked).catch(() => undefined);
  if (last?.isFile() && now - last.mtimeMs < AGAIN_MS) return;
  await putFile(folder, async (part) => {
    await fs.writeFile(part, "");
    return LOOKED;
  });
  const found = await Promise.all(
    (await fs.readdir(folder)).map(async (name) => {
      const file = path.join(folder, name);
      const info = await fs.lstat(file).catch(() => undefined);
      return info ? [{ file, info }] : [];
    }),
  );
  const [links, files] = [true, false].map((isLink) =>
    found.flat().filter(({ info }) => info.isSymbolicLink() === isLink)
  );
  let bytes = 0;
  for (
    const { file, info } of files!.sort((a, b) =>
      b.info.mtimeMs - a.info.mtimeMs
    )
  ) {
    bytes += info.size;
    const inUse = now - info.mtimeMs <= IN_USE.ms;
    if (bytes <= (inUse ? IN_USE.times * max : max)) continue;
    // Another process may have used it in the meantime.
    const again = await fs.lstat(file).catch(() => undefined);
    if (again?.mtimeMs !== info.mtimeMs) continue;
    await fs.rm(file, { force: true, recursive: true }).catch(() => {});
  }
  for (const { file } of links!) {
    if (!await fs.stat(file).catch(() => undefined)) {
      await fs.rm(file, { force: true });
    }
  }
}

/** Evicts files like `removeOldest`, but never fails. */
export async function tidy(folder: string): Promise<void> {
  await removeOldest(folder).catch(() => {});
}
