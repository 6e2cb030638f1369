/**
 * Finds type errors that follow from another: a wrong axis gives a value a wrong type, and every call that uses the
 * value then reports an error too. The editor shows all of them; a report shows the first of each chain.
 */

import type { ts, TypeScript } from "./typescript.ts";

/** The diagnostics of a file that do not follow from another one: errors about uses of wrong values are removed. */
export function withoutConsequences(
  ts: TypeScript,
  file: ts.SourceFile,
  diagnostics: readonly ts.Diagnostic[],
  checker: ts.TypeChecker,
): readonly ts.Diagnostic[] {
  if (diagnostics.length < 2) return diagnostics;
  const nodes = diagnostics.map(({ start = 0 }) => nodeAt(ts, file, start));
  const wrong = wrongSymbols(ts, file, nodes, checker);
  const isUse = (node: ts.Node): node is Use => isUseIn(ts, node);
  const uses = nodes.map((node) => ancestor(node, isUse));
  return diagnostics.filter(({ start = 0 }, i) => {
    const use = uses[i];
    const follows = use &&
      some(ts, use, (node) =>
        node !== use && uses.includes(node as Use) ||
        sourcesOf(ts, node, checker).some((declaration) =>
          wrong.has(declaration) && declaration.end <= start
        ));
    return !follows;
  });
}

/** A use of values: a call, or the initializer of a variable. */
type Use = ts.CallExpression | ts.VariableDeclaration | ts.BinaryExpression;

function isUseIn(ts: TypeScript, node: ts.Node): node is Use {
  return ts.isCallExpression(node) || ts.isVariableDeclaration(node) ||
    ts.isBinaryExpression(node) &&
      node.operatorToken.kind === ts.SyntaxKind.EqualsToken;
}

/** The variables whose types depend on an error, directly or through other variables. */
function wrongSymbols(
  ts: TypeScript,
  file: ts.SourceFile,
  wrongAt: readonly ts.Node[],
  checker: ts.TypeChecker,
): ReadonlySet<ts.Declaration> {
  const wrong = new Set<ts.Declaration>();
  const add = (declaration: ts.VariableDeclaration): void => {
    // A declared type is right, whatever is assigned.
    if (!declaration.type) wrong.add(declaration);
  };
  for (const one of wrongAt) {
    const declaration = ancestor(one, ts.isVariableDeclaration);
    if (declaration) add(declaration);
  }
  const visit = (node: ts.Node): void => {
    if (
      ts.isVariableDeclaration(node) && node.initializer &&
      some(
        ts,
        node.initializer,
        (part) =>
          sourcesOf(ts, part, checker).some((found) => wrong.has(found)),
      )
    ) add(node);
    ts.forEachChild(node, visit);
  };
  visit(file);
  return wrong;
}

/** The declaration of an identifier's variable. */
export function declarationsOf(
  ts: TypeScript,
  node: ts.Identifier,
  checker: ts.TypeChecker,
): readonly ts.Declaration[] {
  const symbol = ts.isShorthandPropertyAssignment(node.parent)
    ? checker.getShorthandAssignmentValueSymbol(node.parent)
    : checker.getSymbolAtLocation(node);
  return symbol?.declarations ?? [];
}

/** `declarationsOf` for any node; a part of a pattern counts as the entire pattern. */
function sourcesOf(
  ts: TypeScript,
  node: ts.Node,
  checker: ts.TypeChecker,
): readonly ts.Declaration[] {
  if (!ts.isIdentifier(node)) return [];
  return declarationsOf(ts, node, checker).map((declaration) => {
    let source: ts.Node = declaration;
    while (ts.isBindingElement(source)) source = source.parent.parent;
    return source as ts.Declaration;
  });
}

function ancestor<N extends ts.Node>(
  node: ts.Node,
  is: (node: ts.Node) => node is N,
): N | undefined {
  for (let at = node; at; at = at.parent) if (is(at)) return at;
  return undefined;
}

/** Whether something holds for a node or a part of it, without nested functions. */
function some(
  ts: TypeScript,
  node: ts.Node,
  holds: (node: ts.Node) => boolean,
): boolean {
  if (ts.isFunctionLike(node)) return false;
  return holds(node) ||
    ts.forEachChild(node, (child) => some(ts, child, holds) || undefined) ===
      true;
}

/** The innermost node at a position. */
export function nodeAt(
  ts: TypeScript,
  file: ts.SourceFile,
  position: number,
): ts.Node {
  let found: ts.Node = file;
  const visit = (node: ts.Node): void => {
    if (node.getStart(file) <= position && position < node.end) {
      found = node;
      ts.forEachChild(node, visit);
    }
  };
  ts.forEachChild(file, visit);
  return found;
}
