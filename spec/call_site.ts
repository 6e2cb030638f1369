/** Where the user wrote a call. */

import type { Span } from "./errors.ts";

/** Any function: only its identity is used, to leave it and all above it out of a stack. */
type AnyFunction = (...args: never[]) => unknown;

const FRAME = /\(?((?:file:\/\/)?[^()\n]*?):(\d+):(\d+)\)?$/;

/**
 * The place from which `op` was called, or undefined where the engine does not say. The stack is read as text,
 * because that is where `--enable-source-maps` puts positions of the source.
 */
export function callSite(op: AnyFunction): Span | undefined {
  return laterCallSite(op)();
}

/** As `callSite`, for who seldom asks: the stack becomes text when the function is called. */
export function laterCallSite(op: AnyFunction): () => Span | undefined {
  const holder: { stack?: string } = {};
  const limit = Error.stackTraceLimit;
  Error.stackTraceLimit = 1;
  try {
    Error.captureStackTrace(holder, op);
  } finally {
    Error.stackTraceLimit = limit;
  }
  return () => parseFrame(holder.stack ?? "");
}

/** Where this file is, as call sites name it. */
export function ownFile(): string {
  return here()?.file ?? "";
}

/** Where it is called, which is here. */
function here(): Span | undefined {
  return callSite(here);
}

/** The span in the last line of a stack. */
function parseFrame(stack: string): Span | undefined {
  const at = stack.lastIndexOf("\n    at ");
  const match = at < 0 ? null : FRAME.exec(stack.slice(at + 8));
  if (!match) return undefined;
  const [, file, line, column] = match;
  return {
    file: file!.startsWith("file://")
      ? decodeURIComponent(new URL(file!).pathname)
      : file!.replace(/^.* \(/, ""),
    line: Number(line),
    column: Number(column),
  };
}
