/** Calls by positions from stack traces. */

import type { Span } from "../../spec/errors.ts";
import type { ts, TypeScript } from "./typescript.ts";

/** The call at a position from a stack trace: the called name, or the start of the call. */
export function callAt(
  ts: TypeScript,
  file: ts.SourceFile,
  { line, column }: Pick<Span, "line" | "column">,
): ts.CallExpression | undefined {
  const start = file.getLineStarts()[line - 1];
  if (start === undefined) return undefined;
  const position = start + column - 1;
  let found: ts.CallExpression | undefined;
  function visit(node: ts.Node): void {
    if (position < node.getFullStart() || position >= node.getEnd()) return;
    if (ts.isCallExpression(node)) {
      const begins = [node.getStart(file), nameOf(ts, node).getStart(file)];
      if (begins.includes(position) && position < node.expression.getEnd()) {
        found = node;
      }
    }
    ts.forEachChild(node, visit);
  }
  visit(file);
  return found;
}

/** The called name: `param` of `m.param(…)`. */
export function nameOf(ts: TypeScript, call: ts.CallExpression): ts.Expression {
  const callee = call.expression;
  return ts.isPropertyAccessExpression(callee)
    ? callee.name as ts.Identifier
    : callee;
}
