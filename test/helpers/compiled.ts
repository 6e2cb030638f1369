/** Programs for tests that start processes of their own. */

import { fileURLToPath } from "node:url";

/** The command. */
export const COMMAND = clonePath("bin/switchyard.mjs");

/** The compiled program of a rank: that of a TypeScript file in test/helpers. */
export function rankProgram(name: string): string {
  return clonePath(`.compiled/test/helpers/${name.replace(/\.ts$/, ".js")}`);
}

/** The compiled program of a TypeScript file in test/fuzz. */
export function fuzzProgram(name: string): string {
  return clonePath(`.compiled/test/fuzz/${name.replace(/\.ts$/, ".js")}`);
}

function clonePath(path: string): string {
  return fileURLToPath(new URL(`../../${path}`, import.meta.url));
}
