/** The value of a name at a position of a model file. */

import { nameOf } from "../source/call_at.ts";
import { declarationsOf, nodeAt } from "../source/causes.ts";
import type { CheckedFile } from "../source/mistakes.ts";
import type { ts, TypeScript } from "../source/typescript.ts";
import type { Found } from "./client.ts";

/** The value at a position: that of the call with this name, or of the variable. */
export function valueAt(
  { ts, program, file }: CheckedFile,
  position: number,
  all: Iterable<Found>,
): string | undefined {
  const node = nodeAt(ts, file, position);
  if (!ts.isIdentifier(node)) return undefined;
  const name = calledName(ts, node) ??
    madeBy(ts, program.getTypeChecker(), node);
  if (!name) return undefined;
  const from = name.getSourceFile();
  const at = from.getLineAndCharacterOfPosition(name.getStart(from));
  const lineOf = (text: string): string | undefined =>
    text.split("\n")[at.line];
  for (const { values, texts } of all) {
    const before = texts.get(from.fileName);
    if (before === undefined || lineOf(before) !== lineOf(from.text)) continue;
    const value = values.find(({ file, line, column }) =>
      file === from.fileName && line === at.line + 1 &&
      column === at.character + 1
    );
    if (value) return value.text;
  }
  return undefined;
}

/** The name at a position, if it is the callee of a call. */
function calledName(
  ts: TypeScript,
  node: ts.Identifier,
): ts.Expression | undefined {
  const { parent } = node;
  const call = ts.isPropertyAccessExpression(parent) ? parent.parent : parent;
  return ts.isCallExpression(call) && nameOf(ts, call) === node
    ? node
    : undefined;
}

/** The callee that computes the value of a variable. */
function madeBy(
  ts: TypeScript,
  checker: ts.TypeChecker,
  node: ts.Identifier,
): ts.Expression | undefined {
  const [declaration] = declarationsOf(ts, node, checker);
  if (!declaration || !ts.isVariableDeclaration(declaration)) return undefined;
  const { initializer } = declaration;
  return initializer && ts.isCallExpression(initializer)
    ? nameOf(ts, initializer)
    : undefined;
}
