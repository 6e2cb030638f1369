/** Source positions of calls. */

import type { Span } from "./errors.ts";

/** Any function: its identity marks the frames to drop from a stack. */
type AnyFunction = (...args: never[]) => unknown;

const FRAME = /\(?((?:file:\/\/)?[^()\n]*?):(\d+):(\d+)\)?$/;

/**
 * The source position of the call of `op`. Undefined if the engine does not report it. The stack is parsed as text,
 * because `--enable-source-maps` puts source positions there.
 */
export function callSite(op: AnyFunction): Span | undefined {
  return laterCallSite(op)();
}

/** `callSite` for rare use: the stack is formatted when the returned function is called. */
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

/** The path of this file in call sites. */
export function thisFile(): string {
  return here()?.file ?? "";
}

/** Its own call site. */
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
