/** Source positions of calls. */

import { cachedIn } from "./bounded_cache.ts";
import type { Span } from "./errors.ts";

/** Any function: its identity marks the frames to drop from a stack. */
type AnyFunction = (...args: never[]) => unknown;

const FRAME = /\(?((?:file:\/\/)?[^()\n]*?):(\d+):(\d+)\)?$/;

/**
 * The source position of the call of `op`. Undefined if the engine does not report it. The stack is parsed as text,
 * because `--enable-source-maps` puts source positions there.
 */
export function callSite(op: AnyFunction): Span | undefined {
  const create = () => laterCallSite(op)();
  const location = locationOf(op);
  return location === undefined
    ? create()
    : cachedIn(known, location, { max: MAX_KNOWN, create });
}

/** Source positions by locations in the code. Loops over layers call from few; formatting a stack is slow. */
const known = new Map<string, Span | undefined>();

const MAX_KNOWN = 4096;

/** The location of the call of `op` in a module, whose code never changes. Undefined elsewhere. */
function locationOf(op: AnyFunction): string | undefined {
  const { prepareStackTrace } = Error;
  Error.prepareStackTrace = (_, frames) => frames;
  try {
    const { stack } = callerOf<readonly NodeJS.CallSite[]>(op);
    const frame = Array.isArray(stack) ? stack[0] : undefined;
    const file = frame?.getFileName();
    return file?.startsWith("file:")
      ? `${file}:${frame.getLineNumber()}:${frame.getColumnNumber()}`
      : undefined;
  } finally {
    Error.prepareStackTrace = prepareStackTrace;
  }
}

/** An object with the stack of the caller of `op`, one frame, which is formatted when it is read. */
function callerOf<Stack>(op: AnyFunction): { readonly stack?: Stack } {
  const holder: { readonly stack?: Stack } = {};
  const limit = Error.stackTraceLimit;
  Error.stackTraceLimit = 1;
  try {
    Error.captureStackTrace(holder, op);
  } finally {
    Error.stackTraceLimit = limit;
  }
  return holder;
}

/** `callSite` for rare use: the stack is formatted when the returned function is called. */
export function laterCallSite(op: AnyFunction): () => Span | undefined {
  const caller = callerOf<string>(op);
  return () => parseFrame(caller.stack ?? "");
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
