/** Paths of compiled programs for tests that start processes. */

import { fileURLToPath } from "node:url";

/** Path of the command. */
export const COMMAND = clonePath("bin/switchyard.mjs");

/**
 * Returns the arguments of Node that run a TypeScript file as the command does. scripts/compile.mjs must list the file.
 */
export function startedProgram(source: string): readonly string[] {
  return [
    ...["--import", clonePath("bin/v8.mjs")],
    clonePath(`.compiled/started/${source.replace(/\.ts$/, ".js")}`),
  ];
}

/** Returns the absolute path of a file in the clone. */
export function clonePath(path: string): string {
  return fileURLToPath(new URL(`../../${path}`, import.meta.url));
}
