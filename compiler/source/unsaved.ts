/** Texts of source files. An editor may have some that it has not saved; those count, and not what is on disk. */

import { existsSync, readFileSync } from "node:fs";

/** Paths and texts. Filled in the process that traces for an editor, and empty in any other. */
const unsaved = new Map<string, string>();

/** From now on files have these texts, by path; all others have what is on disk. */
export function useUnsaved(texts: ReadonlyMap<string, string>): void {
  unsaved.clear();
  for (const [path, text] of texts) unsaved.set(path, text);
}

/** Whether a file has a text that is not on disk; the file may not be there either. */
export function isUnsaved(path: string): boolean {
  return unsaved.has(path);
}

/** The text of a file, or undefined where there is none. */
export function readSource(path: string): string | undefined {
  return unsaved.get(path) ??
    (existsSync(path) ? readFileSync(path, "utf8") : undefined);
}
