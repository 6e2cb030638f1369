/** TypeScript to JavaScript. Loads TypeScript, so it is reached through `await import("./transpile.ts")`. */

import { ts } from "./typescript.ts";

/** JavaScript, or the first place where a text is none of TypeScript. */
export type Transpiled = { readonly code: string } | {
  readonly mistake: {
    readonly path: string;
    readonly line: number;
    readonly column: number;
    readonly text: string;
  };
};

/** The JavaScript of a file, with a map to its source. Types are left out, right or wrong. */
export function transpile(
  { path, text }: { readonly path: string; readonly text: string },
): Transpiled {
  const { outputText, diagnostics = [] } = ts.transpileModule(text, {
    fileName: path,
    reportDiagnostics: true,
    compilerOptions: {
      target: ts.ScriptTarget.ES2022,
      module: ts.ModuleKind.ESNext,
      inlineSourceMap: true,
      allowJs: true,
    },
  });
  const [first] = diagnostics;
  if (first?.file) {
    const { line, character } = first.file.getLineAndCharacterOfPosition(
      first.start ?? 0,
    );
    const said = ts.flattenDiagnosticMessageText(first.messageText, "\n");
    return {
      mistake: { path, line: line + 1, column: character + 1, text: said },
    };
  }
  return { code: outputText };
}
