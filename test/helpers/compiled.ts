/** Programs for tests that start processes of their own. */

import { fileURLToPath } from "node:url";

/** The command. */
export const COMMAND = clonePath("bin/switchyard.mjs");

/** The bundled program of a TypeScript file that scripts/compile.mjs lists as one that tests start. */
export function startedProgram(source: string): string {
  return clonePath(`.compiled/started/${source.replace(/\.ts$/, ".js")}`);
}

function clonePath(path: string): string {
  return fileURLToPath(new URL(`../../${path}`, import.meta.url));
}
