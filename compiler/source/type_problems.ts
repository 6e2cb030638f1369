/** What TypeScript says of a model file. Loads TypeScript, so it is reached through `await import("./type_problems.ts")`. */

import { existsSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import type { CheckedFile } from "./mistakes.ts";
import { isOwn, typedModules } from "./places.ts";
import { libraryFiles, ts } from "./typescript.ts";
import { readSource } from "./unsaved.ts";

/** The folder up from `from` that has Node's types installed, if any. */
function nodeTypes(from: string): string | undefined {
  for (let folder = resolve(from);; folder = dirname(folder)) {
    const root = join(folder, "node_modules", "@types");
    if (existsSync(join(root, "node"))) return root;
    if (folder === dirname(folder)) return undefined;
  }
}

/** A stand-in for Node's and browsers' types where there are none: what model files use of them. */
const AMBIENT =
  "interface Console { log(...values: unknown[]): void; error(...values: unknown[]): void; warn(...values: unknown[]): void; }\ndeclare const console: Console;\n";

/** Errors of names that Node's types may have. They take half a second to read, and few models use one. */
const MISSING = new Set([2304, 2307, 2503, 2552, 2580, 2584, 2591, 2868]);

/**
 * A model file and what it imports, to be type-checked strictly, with `switchyard-moe` meaning this package. Each call of
 * the function that is returned reads what has changed; files of other people are left out.
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

/** Programs of a model file, each made of what has not changed since the one before. */
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
    // A file that an import names may be there now.
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

/** Where the declarations of what is built in seem to be stored. */
const LIBRARY = "/node_modules/typescript/lib";

/** Source files by name, parsed where their texts have changed. Those of other people stay as they were. */
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
  // Our own code is only read for its exported types; what it uses inside does not matter here.
  if (isOwn(from) && !name.startsWith(".")) return undefined;
  return ts.resolveModuleName(name, from, options, host).resolvedModule;
}

function checkedFiles(program: ts.Program): CheckedFile[] {
  return program.getSourceFiles()
    .filter(({ fileName }) => isUsers(fileName))
    .map((file) => ({ ts, program, file, isOurs: isOwn }));
}

function isMissing({ program, file }: CheckedFile): boolean {
  return program.getSemanticDiagnostics(file)
    .some(({ code }) => MISSING.has(code));
}

function isUsers(file: string): boolean {
  return !file.endsWith(".d.ts") && !isOwn(file) &&
    !file.includes("/node_modules/");
}
