/**
 * Keeps the machine code that V8 makes of this program, where Node.js can (22.1 and later): a third of the processor time of
 * a short command. Node.js checks each file against its source, and goes without one that does not fit.
 */

import { mkdirSync, readdirSync } from "node:fs";
import module from "node:module";
import { homedir } from "node:os";
import { isAbsolute, join } from "node:path";
import process from "node:process";

/** Keeps the code of modules that are loaded from now on in the folder `code`, below others that are made where they are not. */
export function keepCode(...folders) {
  if (module.enableCompileCache === undefined) return;
  let folder = "";
  try {
    // Where nothing can be made, as in /proc, 'recursive' never ends.
    for (const name of [...folders, "code"]) {
      folder = join(folder, name);
      makeFolder(folder);
    }
    // Node.js waits for a pipe.
    const entries = readdirSync(folder, {
      recursive: true,
      withFileTypes: true,
    });
    if (entries.some((each) => !each.isFile() && !each.isDirectory())) return;
  } catch {
    return;
  }
  module.enableCompileCache(folder);
}

/** The cache folder of this user, as `userCache` of runtime/cache/folders.ts; undefined for a user without a home. */
export function cacheFolder() {
  const named = process.env["XDG_CACHE_HOME"];
  if (named && isAbsolute(named)) return named;
  try {
    const home = homedir();
    return isAbsolute(home) ? join(home, ".cache") : undefined;
  } catch {
    return undefined;
  }
}

function makeFolder(folder) {
  try {
    mkdirSync(folder, { mode: 0o700 });
  } catch (error) {
    if (error.code !== "EEXIST") throw error;
  }
}
