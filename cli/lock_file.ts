/**
 * Locks: files that name the process that owns them. A lock whose owner has ended is replaced; its path is never empty
 * meanwhile, since an empty path is free for all. Only the owner of the claim on a lock may replace it. A claim is a lock
 * itself, at a path that ends with the id of the owner it is on, so the claim of a process that was killed is replaced in
 * the same way.
 */

import type { Lock } from "../engine/files.ts";
import { codeOf } from "../runtime/cache/folders.ts";
import type { Disk } from "./files.ts";
import {
  describeOwner,
  nodeProcesses,
  parseOwner,
  type Processes,
} from "./lock_owner.ts";

/** What locks are made with. */
export interface Locking {
  readonly disk: Pick<
    Disk,
    "link" | "readFile" | "rename" | "rm" | "writeFile"
  >;
  /** Default: those of this machine. */
  readonly processes?: Processes;
}

/** Attempts to take a lock that others release and take meanwhile. */
const ATTEMPTS = 10;

/** Take a lock, or say who owns it. Errors are those of the file system. */
export async function takeLock(path: string, locking: Locking): Promise<Lock> {
  const { disk, processes = nodeProcesses } = locking;
  const owner = await processes.owner();
  const text = `${JSON.stringify(owner)}\n`;
  const held: Lock = { release: () => release(path, text, locking) };
  const spare = `${path}.${owner.pid}.${owner.id}`;
  try {
    await disk.writeFile(spare, text, { flag: "wx" });
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      if (await create(path, { text, spare }, locking)) return held;
      const found = await readIfThere(path, locking);
      if (found === undefined) continue;
      // A file server may report the failure of a link that it has made.
      if (found === text) return held;
      const other = parseOwner(found);
      const state = other ? await processes.stateOf(other) : "unknown";
      if (other === undefined || state !== "ended") {
        return {
          owner: other ? describeOwner(other) : "an unknown process",
          gone: state === "unknown",
        };
      }
      const claim = await takeLock(`${path}.${other.id}`, locking);
      if (!("release" in claim)) return claim;
      try {
        if (await readIfThere(path, locking) === found) {
          await disk.rename(spare, path);
          return held;
        }
      } finally {
        await claim.release();
      }
    }
    return { owner: "another process", gone: true };
  } finally {
    // The lock is taken, or is not, whatever becomes of this.
    await removeFile(spare, locking).catch(() => {});
  }
}

/** Make a file with all of its text at once; false if there is one. */
async function create(
  path: string,
  { text, spare }: { readonly text: string; readonly spare: string },
  locking: Locking,
): Promise<boolean> {
  const { disk } = locking;
  try {
    await disk.link(spare, path);
    return true;
  } catch (error) {
    const code = codeOf(error) ?? "";
    if (code === "EEXIST") return false;
    if (!["EPERM", "ENOSYS", "EOPNOTSUPP", "ENOTSUP"].includes(code)) {
      throw error;
    }
  }
  // A file system without hard links: the text follows.
  try {
    await disk.writeFile(path, text, { flag: "wx" });
    return true;
  } catch (error) {
    if (codeOf(error) === "EEXIST") return false;
    await removeFile(path, locking);
    throw error;
  }
}

/** Remove a file. One that stays would be in the way of others, so a disk that fails once is asked again. */
async function removeFile(path: string, { disk }: Locking): Promise<void> {
  await disk.rm(path, { force: true })
    .catch(() => disk.rm(path, { force: true }));
}

/** Remove a lock, unless a user has, and another process owns it. */
async function release(
  path: string,
  text: string,
  locking: Locking,
): Promise<void> {
  const found = await readIfThere(path, locking)
    .catch(() => readIfThere(path, locking));
  if (found === text) await removeFile(path, locking);
}

async function readIfThere(
  path: string,
  { disk }: Locking,
): Promise<string | undefined> {
  try {
    return await disk.readFile(path, "utf8");
  } catch (error) {
    if (codeOf(error) === "ENOENT") return undefined;
    throw error;
  }
}
