/** Folders of the system: making one, and the one in which programs of this user keep what can be made again. */

import * as fs from "node:fs/promises";
import { homedir } from "node:os";
import path from "node:path";
import process from "node:process";

/** Options of `makeFolder`. */
export interface MakeFolderOptions {
  /** Default: the system's. */
  readonly disk?: Pick<typeof fs, "mkdir" | "stat">;
  /** Permissions of new folders. */
  readonly mode?: number;
}

/**
 * Makes a folder and those it is in. Node's recursive `mkdir` never returns where a parent exists that takes no folders,
 * such as `/proc`.
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

/** The code of an error of the system, such as `ENOENT`. */
export function codeOf(error: unknown): string | undefined {
  return error instanceof Error && "code" in error
    ? String(error.code)
    : undefined;
}

/** The cache folder of this user, `XDG_CACHE_HOME` or `~/.cache`; undefined for a user without a home. */
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
