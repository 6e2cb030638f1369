/** Paths of package files that are not compiled. */

import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { RUNNING_ROOT } from "../spec/running.ts";

/** The package folder relative to this file: next to the TypeScript source, or above the compiled file. */
const PACKAGE = ["./", "../", "../../"]
  .map((path) => new URL(path, RUNNING_ROOT))
  .find((folder) => existsSync(new URL("bin/switchyard.mjs", folder)));

/** Returns the path of a package file, for TypeScript and compiled code. */
export function packageFile(path: string): string {
  return fileURLToPath(new URL(path, PACKAGE));
}
