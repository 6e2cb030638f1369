/** Source positions, and the error classes that carry them. */

import type { Count } from "./values.ts";

/** A source position. Lines and columns count from 1. */
export interface Span {
  readonly file: string;
  readonly line: Count;
  readonly column: Count;
}

/** ` at layer.ts:9:16`, for a message with a second position; empty if it is unknown. */
export function atSpan(span: Span | undefined): string {
  if (!span) return "";
  const file = span.file.split(/[/\\]/).at(-1);
  return ` at ${file}:${span.line}:${span.column}`;
}

/** A mistake in a model: axes, dtypes, routing. `span`: the user's call, if known. */
export class ModelError extends TypeError {
  override name = "ModelError";
  readonly span: Span | undefined;
  constructor(message: string, span?: Span) {
    super(message);
    this.span = span;
  }
}

/** A lambda or source text outside the language's scalar subset. */
export class LowerError extends SyntaxError {
  override name = "LowerError";
  readonly span: Span | undefined;
  constructor(message: string, span?: Span) {
    super(message);
    this.span = span;
  }
}

/** A placement or mesh that the compiler does not support. */
export class PlacementError extends RangeError {
  override name = "PlacementError";
}

/** A plan that is malformed or illegal. */
export class PlanError extends Error {
  override name = "PlanError";
}

/** An error in the user's data or files: missing tensors, wrong shapes, non-finite weights. */
export class DataError extends Error {
  override name = "DataError";
}

/** A limitation of the machine: no adapter, limits, memory, a lost device. */
export class MachineError extends Error {
  override name = "MachineError";
}

/** An internal invariant; reaching it is a bug in Switchyard. */
export function invariant(
  condition: unknown,
  message: string,
): asserts condition {
  if (!condition) throw new Error(`internal: ${message}`);
}
