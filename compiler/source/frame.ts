/** Code frames: an error printed under its source line. */

import { fileURLToPath } from "node:url";
import { LowerError, type Span } from "../../spec/errors.ts";

/** The path of a span's file, given as a path or a `file:` URL. */
export function pathOf(file: string): string {
  return file.startsWith("file:") ? fileURLToPath(file) : file;
}

/** `name.ts:line:column`, as in plans and errors. */
export function locationOf(span: Span): string {
  const name = span.file.split(/[\\/]/).at(-1) ?? span.file;
  return `${name}:${span.line}:${span.column}`;
}

/** The source line of a span with `width` carets under it, at most to the end of the line. */
export function codeFrame(
  span: Span,
  sourceText: string,
  width: number = 1,
): string {
  const line = sourceText.split(/\r?\n/)[span.line - 1] ?? "";
  const number = String(span.line);
  const gutter = " ".repeat(number.length);
  const before = line.slice(0, span.column - 1).replace(/[^\t]/g, " ");
  const room = line.length - span.column + 1;
  const carets = "^".repeat(Math.max(1, Math.min(width, room)));
  return [
    `${gutter} --> ${locationOf(span)}`,
    `${gutter} |`,
    `${number} | ${line}`.trimEnd(),
    `${gutter} | ${before}${carets}`,
  ].join("\n");
}

/** A `LowerError` whose message ends with its code frame. `sentence`: the message without it. */
export class FramedLowerError extends LowerError {
  readonly sentence: string;
  readonly width: number;
  constructor(sentence: string, span: Span, sourceText: string, width: number) {
    super(`${sentence}\n${codeFrame(span, sourceText, width)}`, span);
    this.sentence = sentence;
    this.width = width;
  }
}
