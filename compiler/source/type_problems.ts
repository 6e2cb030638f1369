/** What TypeScript says of a model file. Loads ts-morph, so it is reached through `await import("./type_problems.ts")`. */

import { existsSync, readFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import type { Span } from "../../spec/errors.ts";
import { withoutConsequences } from "./causes.ts";
import { callAt } from "./find_lambda.ts";
import { pathOf } from "./frame.ts";
import { isOwn, sourceModules } from "./places.ts";
import { Project, ts } from "./project.ts";

/** An error that TypeScript finds: what, where, how wide, and its number. */
export interface TypeProblem {
  readonly kind: "syntax" | "types";
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
      if (syntax.length > 0) {
        return syntax.map((each) => problemOf(each, "syntax"));
      }
      const errors = program.getSemanticDiagnostics(file)
        .filter(({ category }) => category === ts.DiagnosticCategory.Error);
      return withoutConsequences(file, errors, program.getTypeChecker())
        .map((each) => problemOf(each, "types"));
    });
}

/** How many lines a call at a place has; 1 where there is none. */
export function callWidth({ file, line, column }: Span): number {
  const path = pathOf(file);
  if (!existsSync(path)) return 1;
  const source = ts.createSourceFile(
    ...[path, readFileSync(path, "utf8")] as const,
    { languageVersion: ts.ScriptTarget.ES2022 },
    true,
  );
  const call = callAt(source, line, column);
  const end = call && source.getLineAndCharacterOfPosition(call.end).line + 1;
  return end === undefined ? 1 : end - line + 1;
}

function isUsers(file: string): boolean {
  return !file.endsWith(".d.ts") && !isOwn(file) &&
    !file.includes("/node_modules/");
}

function problemOf(
  diagnostic: ts.Diagnostic,
  kind: TypeProblem["kind"],
): TypeProblem {
  const { file, start = 0, length = 1, messageText, code } = diagnostic;
  const at = file?.getLineAndCharacterOfPosition(start);
  return {
    kind,
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
