/**
 * TypeScript's diagnostics of a model file. It loads TypeScript, so other code uses `await
 * import("./type_problems.ts")`.
 */

import { existsSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import type { CheckedFile } from "./mistakes.ts";
import { isPackageCode, typedModules } from "./package_paths.ts";
import { libraryFiles, ts } from "./typescript.ts";
import { readSource } from "./unsaved.ts";

/** The closest folder at or above `from` with Node.js types installed, if any. */
function nodeTypes(from: string): string | undefined {
  for (let folder = resolve(from);; folder = dirname(folder)) {
    const root = join(folder, "node_modules", "@types");
    if (existsSync(join(root, "node"))) return root;
    if (folder === dirname(folder)) return undefined;
  }
}

/** Minimal types of Node.js and browsers for model files, if none are installed. */
const AMBIENT =
  "interface Console { log(...values: unknown[]): void; error(...values: unknown[]): void; warn(...values: unknown[]): void; }\ndeclare const console: Console;\n";

/**
 * Errors about names that Node.js types may declare. These types take half a second to read, and few models use them.
 */
const MISSING = new Set([2304, 2307, 2503, 2552, 2580, 2584, 2591, 2868]);

/**
 * Type-checks a model file and its imports strictly, with `switchyard-moe` resolved to this package. Each call of the
 * returned function reads the changed files. Third-party files are ignored.
 */
export function openTypes(path: string): () => CheckedFile[] {
  const typeRoot = nodeTypes(dirname(path));
  let read = openPrograms(path);
  let withNode = false;
  return () => {
    const files = checkedFiles(read());
    if (withNode || typeRoot === undefined || !files.some(isMissing)) {
      return files;
    }
    withNode = true;
    read = openPrograms(path, typeRoot);
    return checkedFiles(read());
  };
}

/** Programs of a model file, each reusing unchanged files of the previous one. */
function openPrograms(path: string, typeRoot?: string): () => ts.Program {
  const options: ts.CompilerOptions = {
    strict: true,
    noEmit: true,
    skipLibCheck: true,
    allowJs: true,
    target: ts.ScriptTarget.ES2022,
    module: ts.ModuleKind.ESNext,
    moduleResolution: ts.ModuleResolutionKind.Bundler,
    moduleDetection: ts.ModuleDetectionKind.Force,
    allowImportingTsExtensions: true,
    lib: ["lib.es2023.d.ts"],
    types: typeRoot === undefined ? [] : ["node"],
    ...(typeRoot === undefined ? {} : { typeRoots: [typeRoot] }),
  };
  const folder = dirname(path);
  const ambient = join(folder, "__switchyard_ambient.d.ts");
  const library = libraryFiles();
  const modules = typedModules();
  const host = {
    ...ts.createCompilerHost(options),
    getSourceFile: openFiles((name) => {
      if (name === ambient) return AMBIENT;
      return dirname(name) === LIBRARY
        ? library.get(basename(name))
        : readSource(name);
    }),
    getCurrentDirectory: () => folder,
    getDefaultLibLocation: () => LIBRARY,
    resolveModuleNameLiterals: (
      literals: readonly ts.StringLiteralLike[],
      from: string,
    ) =>
      literals.map(({ text }) => ({
        resolvedModule: resolveModule(text, from, { options, host, modules }),
      })),
    // The file of an import may exist now.
    hasInvalidatedResolutions: (name: string) => isUsers(name),
  };
  const rootNames = typeRoot === undefined ? [path, ambient] : [path];
  let program: ts.Program | undefined;
  return () => {
    program = ts.createProgram({
      rootNames,
      options,
      host,
      ...program ? { oldProgram: program } : {},
    });
    return program;
  };
}

/** Virtual folder of the built-in declarations. */
const LIBRARY = "/node_modules/typescript/lib";

/** Source files by name, parsed again if their texts have changed, except for third-party files. */
function openFiles(
  read: (name: string) => string | undefined,
): ts.CompilerHost["getSourceFile"] {
  const known = new Map<string, ts.SourceFile>();
  return (name, options) => {
    const before = known.get(name);
    if (before && !isUsers(name)) return before;
    const text = read(name);
    if (text === undefined) return undefined;
    if (text === before?.text) return before;
    const file = ts.createSourceFile(name, text, options);
    known.set(name, file);
    return file;
  };
}

function resolveModule(
  name: string,
  from: string,
  { options, host, modules }: {
    readonly options: ts.CompilerOptions;
    readonly host: ts.ModuleResolutionHost;
    readonly modules: ReadonlyMap<string, string>;
  },
): ts.ResolvedModuleFull | undefined {
  const known = modules.get(name);
  if (known !== undefined) {
    const extension = known.endsWith(".d.ts")
      ? ts.Extension.Dts
      : ts.Extension.Ts;
    return { resolvedFileName: known, extension };
  }
  // Our own code is read only for its exported types; its internal imports do not matter.
  if (isPackageCode(from) && !name.startsWith(".")) return undefined;
  return ts.resolveModuleName(name, from, options, host).resolvedModule;
}

function checkedFiles(program: ts.Program): CheckedFile[] {
  return program.getSourceFiles()
    .filter(({ fileName }) => isUsers(fileName))
    .map((file) => ({ ts, program, file, isOurs: isPackageCode }));
}

function isMissing({ program, file }: CheckedFile): boolean {
  return program.getSemanticDiagnostics(file)
    .some(({ code }) => MISSING.has(code));
}

function isUsers(file: string): boolean {
  return !file.endsWith(".d.ts") && !isPackageCode(file) &&
    !file.includes("/node_modules/");
}
