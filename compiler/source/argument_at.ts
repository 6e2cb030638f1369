/**
 * Finds the argument of a call that an error refers to, from the text of its message. The caller provides TypeScript.
 */

import { callAt } from "./call_at.ts";
import type { Diagnostic } from "./diagnostic.ts";
import type { ts, TypeScript } from "./typescript.ts";

/**
 * The literal argument, or the literal in an options object, that a sentence repeats: `"ffn"` of `softmax(x, "ffn")` in
 * "Cannot softmax 'token embed' over 'ffn'". If several are repeated, the only number of the options among them: in
 * "Cannot choose 99 of axis 'expert'", the value of `topK`. Undefined otherwise.
 */
export function argumentAt(
  ts: TypeScript,
  file: ts.SourceFile,
  { message, span }: Diagnostic,
): ts.Expression | undefined {
  const call = span && callAt(ts, file, span);
  if (!call) return undefined;
  const literals = call.arguments.flatMap((argument) =>
    ts.isObjectLiteralExpression(argument)
      ? argument.properties.flatMap((property) =>
        ts.isPropertyAssignment(property) ? [property.initializer] : []
      )
      : [argument]
  );
  const repeated = literals.filter((literal) =>
    ts.isStringLiteralLike(literal)
      ? message.includes(`'${literal.text}'`)
      : ts.isNumericLiteral(literal) &&
        RegExp(`(?<![\\w.'])${literal.text}(?![\\w'])`).test(message)
  );
  if (repeated.length === 1) return repeated[0];
  const numbers = repeated.filter((literal) =>
    ts.isNumericLiteral(literal) && ts.isPropertyAssignment(literal.parent)
  );
  return numbers.length === 1 ? numbers[0] : undefined;
}
