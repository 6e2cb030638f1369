/**
 * Finds the source of a scalar function. The language records the call site of `map(…)`; source maps lead from
 * compiled JavaScript to TypeScript; the source at the call site contains the function.
 */

import { existsSync, readFileSync } from "node:fs";
import { findSourceMap, SourceMap } from "node:module";
import { dirname, resolve } from "node:path";
import type { Span } from "../../spec/errors.ts";
import { callAt } from "./call_at.ts";
import { pathOf } from "./frame.ts";
import { functionOf } from "./lower_expression.ts";
import type { FunctionNode } from "./lower_function.ts";
import { ts } from "./project.ts";

/** The original source position of a position in a file that may be compiled. Undefined if the file does not exist. */
export function originalSpan(span: Span): Span | undefined {
  const path = pathOf(span.file);
  if (!existsSync(path)) return undefined;
  if (!/\.[mc]?js$/.test(path)) return { ...span, file: path };
  const entry = mapOf(path)?.findEntry(span.line - 1, span.column - 1);
  if (entry && "originalSource" in entry && entry.originalSource) {
    const source = entry.originalSource;
    const original = source.startsWith("file:")
      ? pathOf(source)
      : resolve(dirname(path), source);
    if (existsSync(original)) {
      return {
        file: original,
        line: entry.originalLine + 1,
        column: entry.originalColumn + 1,
      };
    }
  }
  return { ...span, file: path };
}

/** The source map of a JavaScript file: that of Node.js if enabled, else the one that the file names. */
function mapOf(path: string): SourceMap | undefined {
  const cached = findSourceMap(path);
  if (cached) return cached;
  const comment = /\/\/# sourceMappingURL=(\S+)\s*$/.exec(
    readFileSync(path, "utf8"),
  )?.[1];
  if (!comment) return undefined;
  const inline = /^data:application\/json[^,]*;base64,(.*)$/.exec(comment)?.[1];
  const file = resolve(dirname(path), comment);
  if (!inline && !existsSync(file)) return undefined;
  const text = inline
    ? Buffer.from(inline, "base64").toString("utf8")
    : readFileSync(file, "utf8");
  try {
    return new SourceMap(JSON.parse(text));
  } catch {
    return undefined; // a broken map is as good as none: the JavaScript itself is still there to be read
  }
}

/** The function passed to the `map` at a position, if the source determines it. */
export function lambdaAt(
  program: ts.Program,
  span: Span,
): FunctionNode | undefined {
  const file = program.getSourceFile(span.file);
  const call = file && callAt(ts, file, span);
  const given = call?.arguments[0];
  return given && functionOf(given, program.getTypeChecker());
}
