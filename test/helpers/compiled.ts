/** Programs for tests that start processes of their own. */

import { fileURLToPath } from "node:url";

/** The command. */
export const COMMAND = clonePath("bin/switchyard.mjs");

/** What Node is given to run a TypeScript file that scripts/compile.mjs lists as one that tests start, as it runs the command. */
export function startedProgram(source: string): readonly string[] {
  return [
    ...["--import", clonePath("bin/v8.mjs")],
    clonePath(`.compiled/started/${source.replace(/\.ts$/, ".js")}`),
  ];
}

/** A path in the clone. */
export function clonePath(path: string): string {
  return fileURLToPath(new URL(`../../${path}`, import.meta.url));
}
