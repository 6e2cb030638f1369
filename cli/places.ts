/** Files of the package that are not compiled. */

import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

/** The folder above this code: that of the package, or its `dist`. */
const RUNNING = new URL("../", import.meta.url);

/** The folder of the package. */
const PACKAGE = existsSync(new URL("bin/switchyard.mjs", RUNNING))
  ? RUNNING
  : new URL("../", RUNNING);

/** The path of a file by its path in the package, whether this code runs from its TypeScript or compiled. */
export function packageFile(path: string): string {
  return fileURLToPath(new URL(path, PACKAGE));
}
