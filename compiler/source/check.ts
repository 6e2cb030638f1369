/**
 * Checks a model file: its types, then the mistakes that only tracing and lowering find. Compiles nothing and uses no
 * device.
 */

import { resolve } from "node:path";
import { existsSync } from "node:fs";
import {
  DataError,
  type LowerError,
  type ModelError,
} from "../../spec/errors.ts";
import {
  type Diagnostic,
  diagnosticOf,
  formatDiagnostic,
} from "./diagnostic.ts";
import { pathOf } from "./frame.ts";
import { isStackOverflow, parseReference, requireModelFile } from "./load.ts";
import {
  allMistakes,
  atArgument,
  type CheckedFile,
  typeMistakes,
} from "./mistakes.ts";
import { isPackageCode } from "./package_paths.ts";
import { type TracedMistake, traceFile } from "./traced.ts";

export type { Diagnostic } from "./diagnostic.ts";
export { formatDiagnostic } from "./diagnostic.ts";

/**
 * The mistakes of a model file, `file.ts` or `file.ts#export`: type errors, and errors of tracing its exported models
 * and lowering their scalar functions, except for those that follow from a type error. Throws a `DataError` if the file
 * does not exist or its expressions are nested too deeply for TypeScript.
 */
export async function checkModel(reference: string): Promise<Diagnostic[]> {
  return (await (await openCheck(reference))()).mistakes;
}

/** Result of a check, and the files read: the model file and the user's files that it imports. */
export interface Checked {
  readonly mistakes: Diagnostic[];
  readonly files: readonly string[];
}

/** Repeated `checkModel`: each call of the returned function reads the changed files. */
export async function openCheck(
  reference: string,
): Promise<() => Promise<Checked>> {
  const { path, name } = parseReference(reference);
  requireModelFile(path);
  const { openTypes } = await import("./type_problems.ts");
  const read = openTypes(resolve(path));
  let version = 0;
  return async () => {
    const { files, types } = withinStack(path, () => {
      const files = read();
      return { files, types: files.map((file) => typeMistakes(file)) };
    });
    const paths = files.map(({ file }) => file.fileName);
    const typed = types.some((found) => found.length > 0);
    const { mistakes } = await traceFile({ path, name }, version++);
    const isBroken = files.some(({ program, file }) =>
      program.getSyntacticDiagnostics(file).length > 0
    );
    // A file that cannot be parsed is reported like by every other command.
    if (isBroken && mistakes.length > 0) {
      return { mistakes: mistakes.map(plain), files: paths };
    }
    const left = new Set(mistakes);
    const found = files.flatMap((checked, i) => {
      const here = mistakes.filter(({ span }) =>
        span && pathOf(span.file) === checked.file.fileName
      );
      here.forEach((mistake) => left.delete(mistake));
      return allMistakes(types[i]!, here, { ...checked, typed });
    });
    const others = [...left].filter(({ doubtful }) => !doubtful || !typed);
    return { mistakes: [...found, ...others.map(plain)], files: paths };
  };
}

/** Runs TypeScript's recursive parser or checker. Throws a `DataError` if it exhausts the call stack. */
function withinStack<T>(path: string, parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    if (!isStackOverflow(error)) throw error;
    throw new DataError(
      `Cannot check '${path}': its expressions are nested too deeply for TypeScript. Use fewer nested parentheses, brackets or calls`,
    );
  }
}

function plain({ doubtful: _, ...mistake }: TracedMistake): Diagnostic {
  return mistake;
}

/** An error of a model file as text, at the argument that it is about. */
export async function formatError(
  error: ModelError | LowerError,
): Promise<string> {
  const diagnostic = diagnosticOf(error, "");
  const path = diagnostic.span && pathOf(diagnostic.span.file);
  if (path === undefined || isPackageCode(path) || !existsSync(path)) {
    return formatDiagnostic(diagnostic);
  }
  const { openTypes } = await import("./type_problems.ts");
  return formatDiagnostic(locatedIn(openTypes(resolve(path))(), diagnostic));
}

/** An error that a run reports at a call, at the argument of the call that it is about. */
export function locatedIn(
  files: readonly CheckedFile[],
  diagnostic: Diagnostic,
): Diagnostic {
  const { span } = diagnostic;
  const checked = files.find(({ file }) =>
    span && file.fileName === pathOf(span.file)
  );
  if (!checked) return diagnostic;
  const types = typeMistakes(checked);
  const { call: _, ...located } = atArgument(diagnostic, { ...checked, types });
  return located;
}
