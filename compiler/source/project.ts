/**
 * TypeScript's parser and checker. They take a quarter of a second to load, so other code uses `await
 * import("./project.ts")`.
 */

import { statSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { IMPORTED_AS, isPackageCode } from "./package_paths.ts";
import { ts } from "./typescript.ts";
import { isUnsaved, readSource } from "./unsaved.ts";

export { ts };

/** The file of a relative import. */
function resolveRelative(specifier: string, from: string): string | undefined {
  if (!specifier.startsWith(".")) return undefined;
  const path = resolve(dirname(from), specifier);
  return IMPORTED_AS.map(([written, as]) => path.replace(written, as))
    .find(isFile);
}

function isFile(path: string): boolean {
  return isUnsaved(path) ||
    (statSync(path, { throwIfNoEntry: false })?.isFile() ?? false);
}

/** Parsed files, shared by programs while their texts are unchanged. */
const parsed = new Map<string, ts.SourceFile>();

/** Programs of files on disk: models are compiled repeatedly, for one mesh after another. */
const opened = new Map<string, ts.Program>();

/**
 * A program for name lookup: the given files and their relative imports, parsed without library types, so that it takes
 * tens of milliseconds. `virtual`: files that are not on disk.
 */
export function openProgram(
  files: readonly string[],
  virtual: ReadonlyMap<string, string> = new Map(),
): ts.Program {
  if (virtual.size > 0) return createProgram(files, virtual);
  const key = files.join("\0");
  const known = opened.get(key);
  const holds = known?.getSourceFiles().every(({ fileName, text }) =>
    readSource(fileName) === text
  );
  if (known && holds) return known;
  const program = createProgram(files, virtual);
  opened.set(key, program);
  return program;
}

function createProgram(
  files: readonly string[],
  virtual: ReadonlyMap<string, string>,
): ts.Program {
  const options: ts.CompilerOptions = {
    noLib: true,
    allowJs: true,
    types: [],
    target: ts.ScriptTarget.ESNext,
    module: ts.ModuleKind.ESNext,
    moduleResolution: ts.ModuleResolutionKind.Bundler,
    allowImportingTsExtensions: true,
    noEmit: true,
  };
  const read = (path: string) => virtual.get(path) ?? readSource(path);
  const host: ts.CompilerHost = {
    fileExists: (path) => virtual.has(path) || isFile(path),
    readFile: read,
    getSourceFile(path, languageVersion) {
      const text = read(path);
      const known = parsed.get(path);
      if (text === undefined) return undefined;
      if (known?.text === text) return known;
      const file = ts.createSourceFile(path, text, languageVersion, true);
      parsed.set(path, file);
      return file;
    },
    getDefaultLibFileName: () => "lib.d.ts",
    getCurrentDirectory: () => "/",
    getCanonicalFileName: (name) => name,
    useCaseSensitiveFileNames: () => true,
    getNewLine: () => "\n",
    writeFile() {},
    resolveModuleNameLiterals: (literals, from) =>
      literals.map((literal) => {
        const path = resolveRelative(literal.text, from);
        if (path === undefined || isPackageCode(path)) {
          return { resolvedModule: undefined };
        }
        const extension = /\.[mc]?[jt]sx?$/.exec(path)?.[0] ?? ".ts";
        return { resolvedModule: { resolvedFileName: path, extension } };
      }),
  };
  return ts.createProgram({
    rootNames: [...files, ...virtual.keys()],
    options,
    host,
  });
}
