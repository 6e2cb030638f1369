/** What TypeScript says of a model file. Loads ts-morph, so it is reached through `await import("./type_problems.ts")`. */

import { existsSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import type { CheckedFile } from "./mistakes.ts";
import { isOwn, typedModules } from "./places.ts";
import { Project, ts } from "./project.ts";

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
  let project = openProject(path);
  let withNode = false;
  return () => {
    const files = checkedFiles(project);
    if (withNode || typeRoot === undefined || !files.some(isMissing)) {
      return files;
    }
    withNode = true;
    project = openProject(path, typeRoot);
    return checkedFiles(project);
  };
}

function openProject(path: string, typeRoot?: string): Project {
  const modules = typedModules();
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
      types: typeRoot === undefined ? [] : ["node"],
      ...(typeRoot === undefined ? {} : { typeRoots: [typeRoot] }),
    },
    resolutionHost: (host, getOptions) => ({
      resolveModuleNames: (names, from) =>
        names.map((name) => {
          const own = modules.get(name);
          if (own !== undefined) {
            const extension = own.endsWith(".d.ts")
              ? ts.Extension.Dts
              : ts.Extension.Ts;
            return { resolvedFileName: own, extension };
          }
          // Our own code is only read for its exported types; what they use inside does not matter here.
          if (isOwn(from) && !name.startsWith(".")) return undefined;
          return ts.resolveModuleName(name, from, getOptions(), host)
            .resolvedModule;
        }),
    }),
  });
  project.addSourceFileAtPath(path);
  if (typeRoot === undefined) {
    project.createSourceFile(
      join(dirname(path), "__switchyard_ambient.d.ts"),
      AMBIENT,
    );
  }
  return project;
}

function checkedFiles(project: Project): CheckedFile[] {
  for (const file of project.getSourceFiles()) {
    if (isUsers(file.getFilePath())) file.refreshFromFileSystemSync();
  }
  const program = project.getProgram().compilerObject;
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
