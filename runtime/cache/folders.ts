/** System folders: creation, and the cache folder of the user. */

import * as fs from "node:fs/promises";
import { homedir } from "node:os";
import path from "node:path";
import process from "node:process";

/** Options of `makeFolder`. */
export interface MakeFolderOptions {
  /** File system, for tests. Default: that of the machine. */
  readonly disk?: Pick<typeof fs, "mkdir" | "stat">;
  /** Permissions of new folders. */
  readonly mode?: number;
}

/**
 * Creates a folder and its parents. Node's recursive `mkdir` never returns if an existing parent does not accept
 * folders, such as `/proc`.
 */
export async function makeFolder(
  folder: string,
  options: MakeFolderOptions = {},
): Promise<void> {
  const { disk = fs, mode = 0o777 } = options;
  const make = () =>
    disk.mkdir(folder, { mode }).catch(async (error) => {
      if (codeOf(error) === "ENOENT") throw error;
      const found = await disk.stat(folder).catch((failure) => {
        const same = ["ENOENT", codeOf(error)].includes(codeOf(failure));
        throw same ? error : failure;
      });
      if (!found.isDirectory()) throw error;
    });
  try {
    await make();
  } catch (error) {
    const parent = path.dirname(path.resolve(folder));
    if (codeOf(error) !== "ENOENT" || parent === folder) throw error;
    await makeFolder(parent, options);
    await make();
  }
}

/** The code of a system error, such as `ENOENT`. */
export function codeOf(error: unknown): string | undefined {
  return error instanceof Error && "code" in error
    ? String(error.code)
    : undefined;
}

/** The cache folder of this user, `XDG_CACHE_HOME` or `~/.cache`. Undefined for a user without a home. */
export function userCache(): string | undefined {
  const named = process.env["XDG_CACHE_HOME"];
  if (named && path.isAbsolute(named)) return named;
  try {
    const home = homedir();
    return path.isAbsolute(home) ? path.join(home, ".cache") : undefined;
  } catch {
    return undefined;
  }
}
