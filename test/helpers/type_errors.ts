/** Errors of the TypeScript checker for the lines of a fixture. */

import { dirname, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import ts from "typescript";
import { cachedIn } from "../../spec/bounded_cache.ts";

const ROOT = resolve(dirname(fileURLToPath(import.meta.url)), "../..");

/** A mistake in the fixture. Lines count from 1. */
export interface Mistake {
  readonly line: number;
  /** Error that the fixture's comment expects. */
  readonly expected: string;
  /** Error that the checker reports, or "". */
  readonly said: string;
}

/** Errors of a fixture. */
export interface TypeErrors {
  readonly mistakes: readonly Mistake[];
  /** Errors at lines that expect none. */
  readonly others: readonly string[];
}

function compilerOptions(): ts.CompilerOptions {
  const config = ts.readConfigFile(`${ROOT}/tsconfig.json`, ts.sys.readFile);
  const { options } = ts.parseJsonConfigFileContent(
    { ...config.config, include: [], files: [] },
    ts.sys,
    ROOT,
  );
  return { ...options, types: ["node"] };
}

/** Parsed and bound files, shared by all programs. */
const parsed = new Map<string, ts.SourceFile | undefined>();

/** Creates a program of one file. `text`: transforms the file's text. */
export function programOf(
  file: string,
  text: (source: string) => string,
): ts.Program {
  const options = compilerOptions();
  const host = ts.createCompilerHost(options);
  const read = host.readFile.bind(host);
  const exists = host.fileExists.bind(host);
  const path = resolve(ROOT, file);
  host.fileExists = (name) => name === path || exists(name);
  host.readFile = (name) => name === path ? text(read(name) ?? "") : read(name);
  const parse = host.getSourceFile.bind(host);
  host.getSourceFile = (name, ...how) => {
    const create = () => parse(name, ...how);
    return name === path ? create() : cachedIn(parsed, name, { create });
  };
  return ts.createProgram([path], options, host);
}

/** Returns all errors of a program's first file. */
export function errorsOf(
  program: ts.Program,
): { line: number; text: string }[] {
  const source = program.getSourceFile(program.getRootFileNames()[0]!)!;
  return [
    ...program.getSyntacticDiagnostics(source),
    ...program.getSemanticDiagnostics(source),
  ].map((error) => ({
    line: source.getLineAndCharacterOfPosition(error.start ?? 0).line + 1,
    text: ts.flattenDiagnosticMessageText(error.messageText, "\n")
      .replaceAll("\\", ""),
  }));
}

/** Sorts unions: the checker's order depends on the types that it checked first. */
export function sortUnions(text: string): string {
  return text.replace(
    /"[^"]*"(?: \| "[^"]*")+/g,
    (union) => union.split(" | ").sort().join(" | "),
  );
}

/** Checks a fixture, with `@ts-expect-error` comments disabled. */
export function typeErrorsOf(file: string): TypeErrors {
  let lines: string[] = [];
  const program = programOf(file, (source) => {
    lines = source.split("\n");
    return source.replaceAll("@ts-expect-error", "expects");
  });
  const said = new Map<number, string>();
  for (const { line, text } of errorsOf(program)) {
    said.set(line, [said.get(line) ?? "", sortUnions(text)].join("\n").trim());
  }
  const mistakes: Mistake[] = [];
  lines.forEach((text, i) => {
    const expected = /\/\/ @ts-expect-error (.*)$/.exec(text)?.[1];
    if (expected === undefined) return;
    const line = i + 2;
    mistakes.push({
      line,
      expected: sortUnions(expected),
      said: said.get(line) ?? "",
    });
    said.delete(line);
  });
  const others = [...said].map(([line, text]) => `${file}:${line}: ${text}`);
  return { mistakes, others };
}
