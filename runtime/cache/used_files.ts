/** Files of a cache folder: their times of change say when they were used last, and the oldest are removed. */

import {
  lstat,
  mkdir,
  readdir,
  rename,
  rm,
  stat,
  utimes,
  writeFile,
} from "node:fs/promises";
import { homedir } from "node:os";
import path from "node:path";
import process from "node:process";

/** Bytes that a folder keeps. */
const MOST_BYTES = 1 << 28;
/** Milliseconds after which a use is noted again, and after which a folder is looked through again. */
const AGAIN_MS = 3_600_000;
/** Milliseconds for which a file stays that was used, as a process may be about to load it, and what such files may take at most. */
const IN_USE = { ms: 2 * AGAIN_MS, times: 4 };
/** The file that changes when a folder is looked through. */
const LOOKED = "looked";

/** Where a device keeps what it can make again. */
export function cacheFolder(device: "native" | "wasm"): string {
  const base = process.env["XDG_CACHE_HOME"] || path.join(homedir(), ".cache");
  return path.join(base, "switchyard", device);
}

/** Have a file made under another name beside it, so that no other process meets half of one. */
export async function putFile(
  file: string,
  make: (part: string) => Promise<void>,
): Promise<void> {
  await mkdir(path.dirname(file), { recursive: true, mode: 0o700 });
  // Processes in containers that share a folder may have the same number.
  const part = `${file}.${crypto.randomUUID()}`;
  try {
    await make(part);
    await rename(part, file);
  } finally {
    await rm(part, { force: true });
  }
}

/** Whether a file is there, which is then used. Where its time cannot be changed, as in a folder of others, it stays. */
export async function isThere(file: string): Promise<boolean> {
  try {
    const now = Date.now();
    const { mtimeMs } = await stat(file);
    if (now - mtimeMs > AGAIN_MS) {
      await utimes(file, now / 1e3, now / 1e3).catch(() => {});
    }
    return true;
  } catch {
    return false;
  }
}

/** Remove what was not used for longest from a folder that has become too large. It is looked through once an hour. */
export async function removeOldest(
  folder: string,
  { most = MOST_BYTES, now = Date.now() } = {},
): Promise<void> {
  const looked = path.join(folder, LOOKED);
  const last = await stat(looked).catch(() => undefined);
  if (last && now - last.mtimeMs < AGAIN_MS) return;
  await writeFile(looked, "");
  const found = await Promise.all((await readdir(folder)).map(async (name) => {
    const file = path.join(folder, name);
    const info = await lstat(file).catch(() => undefined);
    return info ? [{ file, info }] : [];
  }));
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
    if (bytes <= (inUse ? IN_USE.times * most : most)) continue;
    // Another process may have used it meanwhile.
    const again = await lstat(file).catch(() => undefined);
    if (again?.mtimeMs === info.mtimeMs) await rm(file, { force: true });
  }
  for (const { file } of links!) {
    if (!await stat(file).catch(() => undefined)) {
      await rm(file, { force: true });
    }
  }
}

/** The same beside what the caller does, whether or not anything can be removed. */
export async function tidy(folder: string): Promise<void> {
  await removeOldest(folder).catch(() => {});
}
