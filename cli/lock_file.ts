/**
 * Locks of output folders: a file that says which process has it. One whose process has ended, killed or not, is taken
 * over. Whether a process of another host runs is not known, so its lock stands until it is removed.
 */

import * as fs from "node:fs/promises";
import { hostname } from "node:os";
import process from "node:process";
import type { Lock } from "../engine/files.ts";
import type { Disk } from "./files.ts";

/** Who has a lock. */
interface Owner {
  readonly pid: number;
  readonly host: string;
  /** When the process began, as its system counts; tells it from a later one of the same number. */
  readonly start: string | undefined;
  /** When it took the lock, in ISO 8601. */
  readonly since: string;
}

/** A name that nobody else takes, and the disk. */
interface Spare {
  readonly spare: string;
  readonly disk: Disk;
}

/** Attempts to take over a lock that others take over too. */
const ATTEMPTS = 10;

/** Take a lock, or say who has it. Errors are those of the file system. */
export async function takeLock(path: string, disk: Disk): Promise<Lock> {
  const holder: Owner = {
    pid: process.pid,
    host: hostname(),
    start: await startOf(process.pid),
    since: new Date().toISOString(),
  };
  const text = `${JSON.stringify(holder)}\n`;
  // Names that no other process, and no other lock of this one, takes.
  const spare = `${path}.${process.pid}.${crypto.randomUUID()}`;
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    if (await create(path, text, { spare, disk })) {
      return { release: () => release(path, text, disk) };
    }
    const found = await readIfThere(path, disk);
    if (found === undefined) continue;
    const owner = parseOwner(found);
    if (owner === undefined || await isRunning(owner)) {
      return { owner: describe(owner), gone: owner?.host !== holder.host };
    }
    await removeStale(path, found, { spare, disk });
  }
  return { owner: "another process", gone: true };
}

/** Make a file with all of its text at once; false where there is one. */
async function create(
  path: string,
  text: string,
  { spare, disk }: Spare,
): Promise<boolean> {
  try {
    await disk.writeFile(spare, text, { flag: "wx" });
    await disk.link(spare, path);
    return true;
  } catch (error) {
    const code = codeOf(error);
    if (code === "EEXIST") return false;
    if (!["EPERM", "ENOSYS", "EOPNOTSUPP", "ENOTSUP"].includes(code)) {
      throw error;
    }
  } finally {
    // The lock is there, or is not, whatever becomes of this.
    await removeFile(spare, disk).catch(() => {});
  }
  // A file system without hard links: the text follows.
  try {
    await disk.writeFile(path, text, { flag: "wx" });
    return true;
  } catch (error) {
    if (codeOf(error) === "EEXIST") return false;
    await removeFile(path, disk);
    throw error;
  }
}

/** Remove a lock whose owner has ended, but not one that was taken meanwhile. */
async function removeStale(
  path: string,
  found: string,
  { spare, disk }: Spare,
): Promise<void> {
  try {
    await disk.rename(path, spare);
  } catch (error) {
    if (codeOf(error) === "ENOENT") return;
    throw error;
  }
  const moved = await disk.readFile(spare, "utf8");
  if (moved !== found) await disk.link(spare, path).catch(() => {});
  await removeFile(spare, disk);
}

/** Remove a file. One that stays would be in the way of others, so a disk that fails once is asked again. */
async function removeFile(path: string, disk: Disk): Promise<void> {
  await disk.rm(path, { force: true })
    .catch(() => disk.rm(path, { force: true }));
}

async function release(
  path: string,
  text: string,
  disk: Disk,
): Promise<void> {
  const found = await readIfThere(path, disk)
    .catch(() => readIfThere(path, disk));
  if (found === text) await removeFile(path, disk);
}

async function readIfThere(
  path: string,
  disk: Disk,
): Promise<string | undefined> {
  try {
    return await disk.readFile(path, "utf8");
  } catch (error) {
    if (codeOf(error) === "ENOENT") return undefined;
    throw error;
  }
}

function parseOwner(text: string): Owner | undefined {
  try {
    const { pid, host, start, since } = JSON.parse(text) as Partial<Owner>;
    return Number.isSafeInteger(pid) && typeof host === "string" &&
        typeof since === "string" &&
        (start === undefined || typeof start === "string")
      ? { pid: pid!, host, start, since }
      : undefined;
  } catch {
    return undefined;
  }
}

function describe(owner: Owner | undefined): string {
  return owner
    ? `process ${owner.pid} on ${owner.host}, since ${owner.since}`
    : "an unknown process";
}

/** Whether the owner may still run. */
async function isRunning({ pid, host, start }: Owner): Promise<boolean> {
  if (host !== hostname()) return true;
  try {
    process.kill(pid, 0);
  } catch (error) {
    if (codeOf(error) === "ESRCH") return false;
  }
  const now = await startOf(pid);
  return start === undefined || now === undefined || start === now;
}

/** When a process began, where the system tells: on Linux, ticks since the system did. */
async function startOf(pid: number): Promise<string | undefined> {
  try {
    const stat = await fs.readFile(`/proc/${pid}/stat`, "utf8");
    // The name of the program, in parentheses, may have any characters.
    return stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19];
  } catch {
    return undefined;
  }
}

function codeOf(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : "";
}
