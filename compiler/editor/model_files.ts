/** Finds the model files of a program and their imports. */

import { dirname } from "node:path";
import type { ts, TypeScript } from "../source/typescript.ts";

/** Import specifiers of a file, as written. */
function imports(ts: TypeScript, file: ts.SourceFile): ts.StringLiteral[] {
  return file.statements.flatMap((statement) =>
    (ts.isImportDeclaration(statement) || ts.isExportDeclaration(statement)) &&
      statement.moduleSpecifier &&
      ts.isStringLiteral(statement.moduleSpecifier)
      ? [statement.moduleSpecifier]
      : []
  );
}

/** Whether a file uses the language. */
export function isModelFile(ts: TypeScript, file: ts.SourceFile): boolean {
  return !file.isDeclarationFile &&
    imports(ts, file).some(({ text }) => /^switchyard-moe(\/|$)/.test(text));
}

/** The folder with this package's types, ending with a slash. */
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

/** The texts of a file and of its relative imports, as the editor has them. */
export function importedTexts(
  ts: TypeScript,
  program: ts.Program,
  file: ts.SourceFile,
): Map<string, string> {
  const checker = program.getTypeChecker();
  const texts = new Map<string, string>();
  const visit = (each: ts.SourceFile): void => {
    if (texts.has(each.fileName) || each.isDeclarationFile) return;
    texts.set(each.fileName, each.text);
    for (const literal of imports(ts, each)) {
      if (!literal.text.startsWith(".")) continue;
      const found = checker.getSymbolAtLocation(literal)?.declarations
        ?.find(ts.isSourceFile);
      if (found) visit(found);
    }
  };
  visit(file);
  return texts;
}
