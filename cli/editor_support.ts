/** Checks whether editors can load the plugin with the TypeScript of a project. */

import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join, resolve } from "node:path";

const PLUGIN = "switchyard-moe/editor";

/**
 * Returns a remark if the tsconfig.json of a file names the plugin but the project's TypeScript cannot load plugins.
 * This is the case for version 7, whose server is not written in JavaScript.
 */
export function editorRemark(file: string): string | undefined {
  const settings = nearest("tsconfig.json", dirname(resolve(file)));
  if (!settings || !readFileSync(settings, "utf8").includes(PLUGIN)) {
    return undefined;
  }
  const version = typescriptVersion(settings);
  if (version === undefined || Number.parseInt(version) < 7) return undefined;
  return `TypeScript ${version} of this project does not load plugins, so editors that use it show no errors of '${PLUGIN}'. Run 'npm install --save-dev typescript@6' for them; 'check' needs neither`;
}

/** Finds the nearest file of a name in a folder or its parents. */
function nearest(name: string, folder: string): string | undefined {
  const file = join(folder, name);
  if (existsSync(file)) return file;
  const above = dirname(folder);
  return above === folder ? undefined : nearest(name, above);
}

/** Returns the version of the package 'typescript' that a file would import. */
function typescriptVersion(from: string): string | undefined {
  try {
    const file = createRequire(from).resolve("typescript/package.json");
    return String(JSON.parse(readFileSync(file, "utf8")).version);
  } catch {
    return undefined;
  }
}
