/** A mistake in a model file, as `check` prints it and an editor shows it. */

import {
  DataError,
  LowerError,
  ModelError,
  type Span,
} from "../../spec/errors.ts";
import { codeFrame, FramedLowerError, locationOf, pathOf } from "./frame.ts";
import { lowerFirst, spanInStack } from "./load.ts";
import { readSource } from "./unsaved.ts";

/** A mistake in a model file. */
export interface Diagnostic {
  readonly message: string;
  /** Source position, if known. */
  readonly span?: Span;
  /** Length in characters. */
  readonly width?: number;
  /** TypeScript's error number, for a type error. */
  readonly code?: number;
  /** The call that is given the wrong argument, as run time reports it; `span` is then the argument. */
  readonly call?: Span;
  /** TypeScript's explanation, if `message` is one of our sentences. */
  readonly folded?: readonly Diagnostic[];
}

/** The diagnostic of an error thrown by a model file. */
export function diagnosticOf(error: unknown, path: string): Diagnostic {
  if (error instanceof FramedLowerError && error.span) {
    const { sentence: message, span, width } = error;
    return { message, span, width };
  }
  if (
    error instanceof ModelError || error instanceof LowerError ||
    error instanceof DataError
  ) {
    // The code frame is removed from the message: the printer of the diagnostic draws it.
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

/** Length of the name at a position. */
function nameWidth(span: Span): number {
  const line = sourceOf(span)?.split(/\r?\n/)[span.line - 1] ?? "";
  return /^[\w$]+/.exec(line.slice(span.column - 1))?.[0].length ?? 1;
}

function sourceOf(span: Span): string | undefined {
  return readSource(pathOf(span.file));
}

/** A diagnostic as text: its message and its source line. */
export function formatDiagnostic(diagnostic: Diagnostic): string {
  const { message, span, width = 1 } = diagnostic;
  if (!span) return message;
  const source = sourceOf(span);
  return source === undefined
    ? `${message}\n  --> ${locationOf(span)}`
    : `${message}\n${codeFrame(span, source, width)}`;
}
