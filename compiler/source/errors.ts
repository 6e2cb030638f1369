/** Errors with a source position, and names for kinds of syntax. */

import { FramedLowerError } from "./frame.ts";
import { ts } from "./project.ts";

/** An error at a piece of source. */
export function errorAt(node: ts.Node, sentence: string): FramedLowerError {
  const file = node.getSourceFile();
  const start = node.getStart();
  const { line, character } = file.getLineAndCharacterOfPosition(start);
  const span = { file: file.fileName, line: line + 1, column: character + 1 };
  return new FramedLowerError(sentence, span, file.text, node.getEnd() - start);
}

const KINDS: { readonly [kind in ts.SyntaxKind]?: string } = {
  [ts.SyntaxKind.ForStatement]: "a 'for' loop",
  [ts.SyntaxKind.ForOfStatement]: "a 'for' loop",
  [ts.SyntaxKind.ForInStatement]: "a 'for' loop",
  [ts.SyntaxKind.WhileStatement]: "a 'while' loop",
  [ts.SyntaxKind.DoStatement]: "a 'do' loop",
  [ts.SyntaxKind.SwitchStatement]: "a 'switch'",
  [ts.SyntaxKind.ThrowStatement]: "a 'throw'",
  [ts.SyntaxKind.TryStatement]: "a 'try'",
  [ts.SyntaxKind.BreakStatement]: "a 'break'",
  [ts.SyntaxKind.ContinueStatement]: "a 'continue'",
  [ts.SyntaxKind.ClassDeclaration]: "a class",
  [ts.SyntaxKind.StringLiteral]: "a string",
  [ts.SyntaxKind.NoSubstitutionTemplateLiteral]: "a string",
  [ts.SyntaxKind.TemplateExpression]: "a string",
  [ts.SyntaxKind.BigIntLiteral]: "a bigint",
  [ts.SyntaxKind.ArrayLiteralExpression]: "an array",
  [ts.SyntaxKind.ObjectLiteralExpression]: "an object",
  [ts.SyntaxKind.ArrowFunction]: "a function as a value",
  [ts.SyntaxKind.FunctionExpression]: "a function as a value",
  [ts.SyntaxKind.NewExpression]: "a 'new'",
  [ts.SyntaxKind.AwaitExpression]: "an 'await'",
  [ts.SyntaxKind.NullKeyword]: "'null'",
  [ts.SyntaxKind.ThisKeyword]: "'this'",
  [ts.SyntaxKind.TypeOfExpression]: "a 'typeof'",
  [ts.SyntaxKind.ElementAccessExpression]: "an indexed value",
  [ts.SyntaxKind.RegularExpressionLiteral]: "a regular expression",
};

/** The common name of a kind of syntax. */
export function nameOfKind(node: ts.Node): string {
  return KINDS[node.kind] ?? `'${node.getText().split("\n")[0]}'`;
}
