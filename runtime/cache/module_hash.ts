/** Versions of kernel printers: hashes of their source text. */

import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";

/** Relative imports of a module. */
const IMPORTS = /\b(?:from|import)\s*["'](\.[^"'\n]+)["']/g;

/**
 * A hash of the text of a module, given its URL, and of all its relative imports. Undefined if they cannot be read.
 * Call it when the caller is imported, because the running files may be replaced later.
 */
export async function moduleHash(module: string): Promise<string | undefined> {
  const hash = createHash("sha256");
  const modules = new Set([module]);
  try {
    // Modules added during the loop are visited too.
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
