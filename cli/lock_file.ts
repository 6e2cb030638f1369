/**
 * Lock files that name the process that owns them.
 *
 * A lock whose owner has ended is replaced. Its path is never empty during the replacement, because any process may
 * take an empty path. Only the owner of the claim on a lock may replace it. A claim is itself a lock, at a path that
 * ends with the id of the lock's owner. The claim of a killed process is therefore replaced in the same way.
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

/** The services that locks use. */
export interface Locking {
  readonly disk: Pick<
    Disk,
    "link" | "readFile" | "rename" | "rm" | "writeFile"
  >;
  /** Reads which processes run. Default: those of this machine. */
  readonly processes?: Processes;
}

/** Maximum attempts for a lock that other processes release and take in the meantime. */
const ATTEMPTS = 10;

/** Takes a lock, or returns its owner. Throws errors of the file system. */
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
      // A file server may report a failure although it created the link.
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
    // The result of the lock does not depend on this removal.
    await removeFile(spare, locking).catch(() => {});
  }
}

/** Creates a file together with its complete text. Returns false if it already exists. */
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
  // For a file system without hard links: the text is written afterwards.
  try {
    await disk.writeFile(path, text, { flag: "wx" });
    return true;
  } catch (error) {
    if (codeOf(error) === "EEXIST") return false;
    await removeFile(path, locking);
    throw error;
  }
}

/** Removes a file, with a retry after a failure: a remaining file would block other processes. */
async function removeFile(path: string, { disk }: Locking): Promise<void> {
  await disk.rm(path, { force: true })
    .catch(() => disk.rm(path, { force: true }));
}

/** Removes a lock, unless a user removed it and another process owns the path now. */
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
