/** Texts of source files. Unsaved texts of an editor take precedence over files on disk. */

import { existsSync, readFileSync } from "node:fs";

/** Paths and unsaved texts. Set in the process that traces for an editor, empty in others. */
const unsaved = new Map<string, string>();

/** Sets unsaved texts by path; other files are read from disk. */
export function useUnsaved(texts: ReadonlyMap<string, string>): void {
  unsaved.clear();
  for (const [path, text] of texts) unsaved.set(path, text);
}

/** Whether a file has an unsaved text; it may not exist on disk. */
export function isUnsaved(path: string): boolean {
  return unsaved.has(path);
}

/** The text of a file, or undefined if it does not exist. */
export function readSource(path: string): string | undefined {
  return unsaved.get(path) ??
    (existsSync(path) ? readFileSync(path, "utf8") : undefined);
}
