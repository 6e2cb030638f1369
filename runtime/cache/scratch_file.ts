/** A temporary file on the disk of the user's cache folder. */

import { mkdtemp, open, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { makeFolder, userCache } from "./folders.ts";

/** An open file without a path: it is freed when it is closed, or its process ends. */
export interface ScratchFile {
  /** For people. */
  readonly name: string;
  readonly descriptor: number;
  close(): Promise<void>;
}

/**
 * Creates a file of `count` nonzero blocks on disk. Undefined if the disk is full or read-only, or the system does not
 * remove open files.
 */
export async function scratchFile(
  blockBytes: number,
  count: number,
): Promise<ScratchFile | undefined> {
  const parent = path.join(userCache() ?? tmpdir(), "switchyard");
  let close = async () => {};
  try {
    await makeFolder(parent, { mode: 0o700 });
    const folder = await mkdtemp(path.join(parent, "scratch-"));
    const name = path.join(folder, "blocks");
    const file = await open(name, "wx+").finally(() =>
      rm(folder, { recursive: true })
    );
    close = async () => await file.close();
    // Disks may store zeros without data.
    const block = new Uint8Array(blockBytes).fill(1);
    for (let i = 0; i < count; i++) await file.writeFile(block);
    await file.sync();
    return { name, descriptor: file.fd, close };
  } catch {
    await close();
    return undefined;
  }
}
