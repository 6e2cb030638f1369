/** Where the code of this package is, whether it runs from its TypeScript or compiled. */

import { existsSync } from "node:fs";
import { extname, join, resolve, sep } from "node:path";
import { fileURLToPath } from "node:url";
import { RUNNING_ROOT } from "../../spec/running.ts";

/** `.ts`, or `.js` when compiled. */
const EXTENSION = extname(import.meta.url);

const RUNNING = fileURLToPath(RUNNING_ROOT);

/** The folder of the package, which has the TypeScript sources. */
const SOURCES = [".", "..", "../.."]
  .map((path) => resolve(RUNNING, path))
  .find((folder) => existsSync(join(folder, "compiler", "mod.ts"))) ?? RUNNING;

/** The folder with the declarations of the public language: an installed package has them beside its code, a clone where they were made. */
const DECLARED = [".", "declared", "../declared"]
  .map((path) => resolve(RUNNING, path))
  .find((folder) => existsSync(join(folder, "compiler", "mod.d.ts")));

/** Folders of our own code, and of the chunks that it is bundled to. */
const FOLDERS = ["compiler", "spec", "runtime", "engine", "cli", "chunks"];

/** What a model file can import from this package, and the modules that those names mean. */
const MODULES: { readonly [specifier: string]: string } = {
  "switchyard-moe": "compiler/mod",
  "switchyard-moe/models": "models/mod",
  "switchyard-moe/spec": "spec/mod",
  "switchyard-moe/runtime": "runtime/mod",
  "switchyard-moe/engine": "engine/mod",
  "switchyard-moe/files": "cli/files",
};

/** What a relative import of a model file may mean, in order: as written, `.ts` for a written `.js`, or with the ending left out. */
export const IMPORTED_AS: readonly (readonly [written: RegExp, as: string])[] =
  [[/$/, ""], [/\.(m?)js$/, ".$1ts"], [/$/, ".ts"], [/$/, ".js"]];

/** Whether a file is part of this package itself rather than of a model. */
export function isOwn(path: string): boolean {
  const file = resolve(path);
  return ownFolders().some((folder) => file.startsWith(folder));
}

/** The folders with this package's own code, each ending with a separator. */
export function ownFolders(): string[] {
  return [RUNNING, SOURCES, ...DECLARED ? [DECLARED] : []].flatMap((root) =>
    FOLDERS.map((name) => join(root, name) + sep)
  );
}

/** Names of this package, and the files of the running code that they mean. */
export function runningModules(): Map<string, string> {
  return modulesIn(RUNNING, EXTENSION);
}

/** Names of this package, and the files that have their types: declarations, which are read faster, or else sources. */
export function typedModules(): Map<string, string> {
  return DECLARED === undefined
    ? modulesIn(SOURCES, ".ts")
    : modulesIn(DECLARED, ".d.ts");
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
  return join(SOURCES, "compiler", "source", "model_hooks.mjs");
}
