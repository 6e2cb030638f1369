/** Where the code of this package lies, whether it runs from its TypeScript or compiled. */

import { existsSync } from "node:fs";
import { dirname, extname, join, resolve, sep } from "node:path";
import { fileURLToPath } from "node:url";

/** `.ts`, or `.js` when compiled. */
const EXTENSION = extname(import.meta.url);

/** The folder of the code that runs: that of the package, or its `dist`. */
const RUNNING_ROOT = fileURLToPath(new URL("../../", import.meta.url));

/** The folder of the package, which has the TypeScript sources. */
const SOURCE_ROOT = existsSync(join(RUNNING_ROOT, "compiler", "mod.ts"))
  ? RUNNING_ROOT
  : dirname(resolve(RUNNING_ROOT));

const FOLDERS = ["compiler", "spec", "runtime", "engine", "cli"];

/** What a model file can import from this package, and the modules that those names mean. */
const MODULES: { readonly [specifier: string]: string } = {
  "switchyard-moe": "compiler/mod",
  "switchyard-moe/spec": "spec/mod",
  "switchyard-moe/runtime": "runtime/mod",
  "switchyard-moe/engine": "engine/mod",
  "switchyard-moe/files": "cli/files",
};

/** Whether a file is part of this package itself rather than of a model. */
export function isOwn(path: string): boolean {
  const file = resolve(path);
  return ownFolders().some((folder) => file.startsWith(folder));
}

/** The folders with this package's own code, each ending with a separator. */
export function ownFolders(): string[] {
  return [RUNNING_ROOT, SOURCE_ROOT].flatMap((root) =>
    FOLDERS.map((name) => join(root, name) + sep)
  );
}

/** Names of this package, and the files of the running code that they mean. */
export function runningModules(): Map<string, string> {
  return modulesIn(RUNNING_ROOT, EXTENSION);
}

/** Names of this package, and the TypeScript files that have their types. */
export function sourceModules(): Map<string, string> {
  return modulesIn(SOURCE_ROOT, ".ts");
}

function modulesIn(root: string, extension: string): Map<string, string> {
  return new Map(
    Object.entries(MODULES).map(([name, module]) => [
      name,
      join(root, module + extension),
    ]),
  );
}

/** The hooks that load model files. They are the same for TypeScript and compiled code. */
export function hooksFile(): string {
  return join(SOURCE_ROOT, "compiler", "source", "model_hooks.mjs");
}
