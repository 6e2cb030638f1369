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

/** Most characters of a source line that are printed, and those of them before the span. */
const LONGEST = 160, BEFORE = 60;

/**
 * The source line of a span with `width` carets under it, at most to the end of the line. Of a long line, the part
 * around the start of the span, with `…` for the rest.
 */
export function codeFrame(
  span: Span,
  sourceText: string,
  width: number = 1,
): string {
  const line = sourceText.split(/\r?\n/)[span.line - 1] ?? "";
  const number = String(span.line);
  const gutter = " ".repeat(number.length);
  const isLong = line.length > LONGEST;
  const begin = isLong ? Math.max(0, span.column - 1 - BEFORE) : 0;
  const end = isLong ? begin + LONGEST : line.length;
  const [left, right] = [begin > 0 ? "…" : "", end < line.length ? "…" : ""];
  const shown = line.slice(begin, end);
  const before = (left + line.slice(begin, span.column - 1))
    .replace(/[^\t]/g, " ");
  const room = begin + shown.length - span.column + 1;
  const carets = "^".repeat(Math.max(1, Math.min(width, room)));
  return [
    `${gutter} --> ${locationOf(span)}`,
    `${gutter} |`,
    `${number} | ${left}${shown}${right}`.trimEnd(),
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
