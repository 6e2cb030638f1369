/** Versions of kernel printers: hashes of their source text. */

import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";

/** Imports of a module from files beside it. */
const IMPORTS = /\b(?:from|import)\s*["'](\.[^"'\n]+)["']/g;

/**
 * A hash of the text of a module, by its URL, and of all that it imports from files beside it; undefined where they cannot be
 * read. To be called when the caller is imported, as the files that run may be replaced later.
 */
export async function moduleHash(module: string): Promise<string | undefined> {
  const hash = createHash("sha256");
  const modules = new Set([module]);
  try {
    // What is added meanwhile is visited too.
    for (const each of modules) {
      const text = await readFile(new URL(each), "utf8");
      hash.update(text);
      for (const [, name] of text.matchAll(IMPORTS)) {
        modules.add(new URL(name!, each).href);
      }
    }
  } catch {
    return undefined;
  }
  return hash.digest("hex");
}
