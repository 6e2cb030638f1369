/** Check a model file: its types, then what only tracing and lowering can tell. Nothing is compiled or run on a device. */

import { existsSync, readFileSync } from "node:fs";
import { resolve } from "node:path";
import {
  DataError,
  LowerError,
  ModelError,
  type Span,
} from "../../spec/errors.ts";
import type { Model } from "../dsl/model.ts";
import type { Lambda } from "../graph/graph.ts";
import { noProblems } from "../graph/problems.ts";
import { trace } from "../graph/trace.ts";
import { codeFrame, FramedLowerError, pathOf, placeOf } from "./frame.ts";
import {
  chooseModel,
  loadModels,
  lowerFirst,
  parseReference,
  requireModelFile,
  spanInStack,
} from "./load.ts";
import { lowerLambdas } from "./lower_scalar.ts";

/** A mistake in a model file. */
export interface Diagnostic {
  readonly message: string;
  /** Where, if the place is known. */
  readonly span?: Span;
  /** How many characters it is about. */
  readonly width?: number;
  /** TypeScript's number, for a type error. */
  readonly code?: number;
}

/**
 * The mistakes of a model file, `file.ts` or `file.ts#export`: its type errors, and the errors of tracing its exported models
 * and of lowering their scalar functions, but for those that follow from a type error. Throws a `DataError` if there is
 * no such file.
 */
export async function checkModel(reference: string): Promise<Diagnostic[]> {
  const { path, name } = parseReference(reference);
  requireModelFile(path);
  const { callWidth, typeProblems } = await import("./type_problems.ts");
  const problems = typeProblems(resolve(path));
  if (problems.some(({ kind }) => kind === "syntax")) {
    const syntax = await syntaxError(path);
    if (syntax) return [syntax];
  }
  const types = problems.map((
    { message, file, line, column, width, code },
  ) => ({
    ...{ message, width, code },
    span: { file, line, column },
  }));
  let models: Record<string, Model>;
  try {
    models = await loadModels(path);
    const chosen = name !== undefined || Object.keys(models).length === 0;
    if (chosen) models = { chosen: chooseModel(models, { path, name }) };
  } catch (error) {
    return types.length > 0 ? types : [diagnosticOf(error, path)];
  }
  const found: Diagnostic[] = [];
  for (const model of Object.values(models)) {
    found.push(...await domainErrors(model, { path, typed: types.length > 0 }));
  }
  const own = types.length === 0 ? found : found.filter(({ span }) => {
    if (span === undefined) return true;
    const lines = callWidth(span);
    return !types.some((type) => isWithinLines(type.span, span, lines));
  });
  return inOrder(withoutRepeats([...types, ...own]));
}

/** Mistakes of one file from its beginning to its end; those of several stay as they are. */
function inOrder(diagnostics: readonly Diagnostic[]): Diagnostic[] {
  const files = new Set(
    diagnostics.map(({ span }) => span && pathOf(span.file)),
  );
  if (files.size > 1) return [...diagnostics];
  return diagnostics.toSorted(({ span: a }, { span: b }) =>
    (a?.line ?? 0) - (b?.line ?? 0) || (a?.column ?? 0) - (b?.column ?? 0)
  );
}

/** Whether a place is in a call that begins at another one and has so many lines. */
function isWithinLines(place: Span, call: Span, lines: number): boolean {
  return pathOf(place.file) === pathOf(call.file) && place.line >= call.line &&
    place.line < call.line + lines;
}

/** What loading says of a file that cannot be parsed, so that every command says the same; no code of it runs. */
async function syntaxError(path: string): Promise<Diagnostic | undefined> {
  try {
    await loadModels(path);
  } catch (error) {
    return diagnosticOf(error, path);
  }
  return undefined;
}

/** What tracing a model, and lowering its scalar functions, complains about. */
async function domainErrors(
  model: Model,
  { path, typed }: {
    readonly path: string;
    /** There are type errors: what else the model function throws may follow from those. */
    readonly typed: boolean;
  },
): Promise<Diagnostic[]> {
  const problems = noProblems();
  const found: Diagnostic[] = [];
  try {
    trace(model, { problems });
  } catch (error) {
    if (!typed || error instanceof ModelError) {
      found.push(diagnosticOf(error, path));
    }
  }
  found.unshift(...problems.found.map((error) => diagnosticOf(error, path)));
  const lambdas = problems.made.flatMap((node) =>
    node.primitive === "map" ? [node.params.lambda] : []
  );
  for (const lambda of await wrongLambdas(lambdas)) {
    found.push(diagnosticOf(lambda, path));
  }
  return found;
}

/** What lowering scalar functions complains about, one by one. */
async function wrongLambdas(lambdas: readonly Lambda[]): Promise<unknown[]> {
  try {
    await lowerLambdas(lambdas);
    return [];
  } catch {
    // One is wrong at least: ask one by one, to name them all.
    const errors: unknown[] = [];
    for (const lambda of lambdas) {
      try {
        await lowerLambdas([lambda]);
      } catch (error) {
        errors.push(error);
      }
    }
    return errors;
  }
}

function diagnosticOf(error: unknown, path: string): Diagnostic {
  if (error instanceof FramedLowerError && error.span) {
    const { sentence: message, span, width } = error;
    return { message, span, width };
  }
  if (
    error instanceof ModelError || error instanceof LowerError ||
    error instanceof DataError
  ) {
    // A frame in the message is left out: whoever prints the diagnostic draws it.
    const message = error.message.split(/\n *--> /)[0]!;
    const span = error instanceof DataError ? undefined : error.span;
    return span ? { message, span, width: nameWidth(span) } : { message };
  }
  if (!(error instanceof Error)) throw error;
  if (error.message.startsWith("internal:")) throw error;
  const message = `Cannot trace the model: ${
    lowerFirst(error.message.split("\n")[0]!)
  }. Correct the model function`;
  const span = spanInStack(error, path);
  return span ? { message, span, width: nameWidth(span) } : { message };
}

/** Length of the name that stands at a place. */
function nameWidth(span: Span): number {
  const line = sourceOf(span)?.split(/\r?\n/)[span.line - 1] ?? "";
  return /^[\w$]+/.exec(line.slice(span.column - 1))?.[0].length ?? 1;
}

function sourceOf(span: Span): string | undefined {
  const path = pathOf(span.file);
  return existsSync(path) ? readFileSync(path, "utf8") : undefined;
}

function withoutRepeats(diagnostics: readonly Diagnostic[]): Diagnostic[] {
  const seen = new Map(diagnostics.map((d) => [JSON.stringify(d), d]));
  return [...seen.values()];
}

/** An error about a model file as text, as `check` prints it. */
export function formatError(error: ModelError | LowerError): string {
  return formatDiagnostic(diagnosticOf(error, ""));
}

/** A diagnostic as text: its message, and the line of source that it is about. */
export function formatDiagnostic(diagnostic: Diagnostic): string {
  const { message, span, width = 1 } = diagnostic;
  if (!span) return message;
  const source = sourceOf(span);
  return source === undefined
    ? `${message}\n  --> ${placeOf(span)}`
    : `${message}\n${codeFrame(span, source, width)}`;
}
