/** Locations of this package's code, as TypeScript or compiled. */

import { existsSync } from "node:fs";
import { extname, join, resolve, sep } from "node:path";
import { fileURLToPath } from "node:url";
import { RUNNING_ROOT } from "../../spec/running.ts";

/** `.ts`, or `.js` when compiled. */
const EXTENSION = extname(import.meta.url);

const RUNNING = fileURLToPath(RUNNING_ROOT);

/** The folder of the package with the TypeScript sources. */
const SOURCES = [".", "..", "../.."]
  .map((path) => resolve(RUNNING, path))
  .find((folder) => existsSync(join(folder, "compiler", "mod.ts"))) ?? RUNNING;

/**
 * The folder with the declarations of the public language: next to the code in an installed package, in the build
 * folder of a clone.
 */
const DECLARED = [".", "declared", "../declared"]
  .map((path) => resolve(RUNNING, path))
  .find((folder) => existsSync(join(folder, "compiler", "mod.d.ts")));

/** Folders of this package's code, and of its bundled chunks. */
const FOLDERS = ["compiler", "spec", "runtime", "engine", "cli", "chunks"];

/** Specifiers that a model file can import from this package, and their modules. */
const MODULES: { readonly [specifier: string]: string } = {
  "switchyard-moe": "compiler/mod",
  "switchyard-moe/models": "models/mod",
  "switchyard-moe/spec": "spec/mod",
  "switchyard-moe/runtime": "runtime/mod",
  "switchyard-moe/engine": "engine/mod",
  "switchyard-moe/files": "cli/files",
};

/**
 * Resolutions of a relative import of a model file, in order: as written, `.ts` for a written `.js`, or with the
 * extension added.
 */
export const IMPORTED_AS: readonly (readonly [written: RegExp, as: string])[] =
  [[/$/, ""], [/\.(m?)js$/, ".$1ts"], [/$/, ".ts"], [/$/, ".js"]];

/** Whether a file is part of this package. */
export function isPackageCode(path: string): boolean {
  const file = resolve(path);
  return packageFolders().some((folder) => file.startsWith(folder));
}

/** The folders with this package's code, each ending with a separator. */
export function packageFolders(): string[] {
  return [RUNNING, SOURCES, ...DECLARED ? [DECLARED] : []].flatMap((root) =>
    FOLDERS.map((name) => join(root, name) + sep)
  );
}

/** Specifiers of this package, and the running files that they resolve to. */
export function runningModules(): Map<string, string> {
  return modulesIn(RUNNING, EXTENSION);
}

/**
 * Specifiers of this package, and the files with their types: declarations, which are faster to read, or else sources.
 */
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

/** The hooks that load model files, equal for TypeScript and compiled code. */
export function hooksFile(): string {
  return join(SOURCES, "compiler", "source", "model_hooks.mjs");
}
