/** Which files of a program are models, and what they are made of. */

import { dirname, resolve } from "node:path";
import type { ts, TypeScript } from "../source/typescript.ts";

/** What a file imports, as it is written. */
function imports(ts: TypeScript, file: ts.SourceFile): string[] {
  return file.statements.flatMap((statement) =>
    (ts.isImportDeclaration(statement) || ts.isExportDeclaration(statement)) &&
      statement.moduleSpecifier &&
      ts.isStringLiteral(statement.moduleSpecifier)
      ? [statement.moduleSpecifier.text]
      : []
  );
}

/** Whether a file is written in the language. */
export function isModelFile(ts: TypeScript, file: ts.SourceFile): boolean {
  return !file.isDeclarationFile &&
    imports(ts, file).some((name) => /^switchyard-moe(\/|$)/.test(name));
}

/** The folder that this package's types are in, ending with a slash. */
export function packageFolder(
  ts: TypeScript,
  program: ts.Program,
  { from, host }: {
    readonly from: string;
    readonly host: ts.ModuleResolutionHost;
  },
): string {
  const { resolvedModule } = ts.resolveModuleName(
    ...["switchyard-moe", from, program.getCompilerOptions(), host] as const,
  );
  const path = resolvedModule?.resolvedFileName ?? "/";
  return /^(.*\/dist\/)/.exec(path)?.[1] ?? `${dirname(path)}/`;
}

/** The texts of a file and of what it imports by relative paths, as the editor has them. */
export function importedTexts(
  ts: TypeScript,
  program: ts.Program,
  file: ts.SourceFile,
): Map<string, string> {
  const texts = new Map<string, string>();
  const visit = (each: ts.SourceFile): void => {
    if (texts.has(each.fileName) || each.isDeclarationFile) return;
    texts.set(each.fileName, each.text);
    for (const name of imports(ts, each)) {
      if (!name.startsWith(".")) continue;
      const path = resolve(dirname(each.fileName), name);
      const found = [path, path.replace(/\.(m?)js$/, ".$1ts"), `${path}.ts`]
        .map((candidate) => program.getSourceFile(candidate))
        .find((candidate) => candidate !== undefined);
      if (found) visit(found);
    }
  };
  visit(file);
  return texts;
}
