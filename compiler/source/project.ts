/**
 * TypeScript's parser and checker. The only file that imports ts-morph, which takes half a second to load:
 * everyone else reaches it through `await import("./project.ts")`.
 */

import { existsSync, readFileSync, statSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { Project, ts } from "ts-morph";
import { isOwn, sourceModules } from "./places.ts";

export { ts };

/** The file that a relative import means: as written, `.ts` for a written `.js`, or with the ending left out. */
function resolveRelative(specifier: string, from: string): string | undefined {
  if (!specifier.startsWith(".")) return undefined;
  const path = resolve(dirname(from), specifier);
  const stem = path.replace(/\.(m?)js$/, ".$1ts");
  return [path, stem, `${path}.ts`, `${path}.js`].find(isFile);
}

function isFile(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isFile() ?? false;
}

/**
 * A program to look names up in: the given files and what they import by relative paths, parsed but without
 * library types, so that it costs tens of milliseconds. `virtual` gives files that are not on disk.
 */
export function openProgram(
  files: readonly string[],
  virtual: ReadonlyMap<string, string> = new Map(),
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
  const read = (path: string) =>
    virtual.get(path) ??
      (existsSync(path) ? readFileSync(path, "utf8") : undefined);
  const host: ts.CompilerHost = {
    fileExists: (path) => virtual.has(path) || isFile(path),
    readFile: read,
    getSourceFile(path, languageVersion) {
      const text = read(path);
      return text === undefined
        ? undefined
        : ts.createSourceFile(path, text, languageVersion, true);
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
        if (path === undefined || isOwn(path)) {
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

/** A type error: what, where, how wide, and TypeScript's number for it. */
export interface TypeProblem {
  readonly message: string;
  readonly file: string;
  readonly line: number;
  readonly column: number;
  readonly width: number;
  readonly code: number;
}

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

/** Type-check a model file and what it imports, strictly, with `switchyard-moe` meaning this package. Problems of other people's files are left out. */
export function typeProblems(path: string): TypeProblem[] {
  const typeRoot = nodeTypes(dirname(path));
  const modules = sourceModules();
  const project = new Project({
    skipAddingFilesFromTsConfig: true,
    compilerOptions: {
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
      types: typeRoot ? ["node"] : [],
      ...(typeRoot ? { typeRoots: [typeRoot] } : {}),
    },
    resolutionHost: (host, getOptions) => ({
      resolveModuleNames: (names, from) =>
        names.map((name) => {
          const own = modules.get(name);
          if (own !== undefined) {
            return { resolvedFileName: own, extension: ts.Extension.Ts };
          }
          // Our own sources are only read for their exported types; what they use inside does not matter here.
          if (isOwn(from) && !name.startsWith(".")) return undefined;
          return ts.resolveModuleName(name, from, getOptions(), host)
            .resolvedModule;
        }),
    }),
  });
  project.addSourceFileAtPath(path);
  if (!typeRoot) {
    project.createSourceFile(
      join(dirname(path), "__switchyard_ambient.d.ts"),
      AMBIENT,
    );
  }
  const program = project.getProgram().compilerObject;
  return program.getSourceFiles()
    .filter((file) => isUsers(file.fileName))
    .flatMap((file) => {
      const syntax = program.getSyntacticDiagnostics(file);
      return syntax.length > 0 ? syntax : program.getSemanticDiagnostics(file);
    })
    .filter(({ category }) => category === ts.DiagnosticCategory.Error)
    .map(problemOf);
}

function isUsers(file: string): boolean {
  return !file.endsWith(".d.ts") && !isOwn(file) &&
    !file.includes("/node_modules/");
}

function problemOf(diagnostic: ts.Diagnostic): TypeProblem {
  const { file, start = 0, length = 1, messageText, code } = diagnostic;
  const at = file?.getLineAndCharacterOfPosition(start);
  return {
    message: sentenceOf(messageText),
    file: file?.fileName ?? "",
    line: (at?.line ?? 0) + 1,
    column: (at?.character ?? 0) + 1,
    width: length,
    code,
  };
}

/**
 * TypeScript explains from the outside in. Where it says that something is not assignable to a literal that is one
 * of our sentences (`"Cannot …"`), the sentence is the message.
 */
function sentenceOf(message: string | ts.DiagnosticMessageChain): string {
  const text = ts.flattenDiagnosticMessageText(message, "\n");
  const own = /"(Cannot [^"]*)"/.exec(text)?.[1];
  return own ?? text;
}
