/** Files of the package that are not compiled. */

import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { RUNNING_ROOT } from "../spec/running.ts";

/** The folder of the package: where this code runs from its TypeScript, or one that is above it. */
const PACKAGE = ["./", "../", "../../"]
  .map((path) => new URL(path, RUNNING_ROOT))
  .find((folder) => existsSync(new URL("bin/switchyard.mjs", folder)));

/** The path of a file by its path in the package, whether this code runs from its TypeScript or compiled. */
export function packageFile(path: string): string {
  return fileURLToPath(new URL(path, PACKAGE));
}
