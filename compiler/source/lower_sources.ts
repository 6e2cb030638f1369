/**
 * Reads the sources of lambdas and lowers them. Loaded only if a model has its own lambdas, because it loads
 * TypeScript.
 */

import { LowerError, type Span } from "../../spec/errors.ts";
import type { Lambda, ScalarFunction } from "../graph/graph.ts";
import { lambdaAt, originalSpan } from "./find_lambda.ts";
import { locationOf } from "./frame.ts";
import { type FunctionNode, lowerFunction } from "./lower_function.ts";
import { functionOf } from "./lower_expression.ts";
import { openProgram, ts } from "./project.ts";

/** The scalar function of each lambda. */
export function lowerSources(lambdas: readonly Lambda[]): ScalarFunction[] {
  const spans = lambdas.map(({ span }) => span && originalSpan(span));
  const files = new Set(spans.flatMap((span) => span ? [span.file] : []));
  const program = openProgram([...files]);
  const bySource = new Map<FunctionNode, ScalarFunction>();
  const byText = new Map<string, ScalarFunction>();
  return lambdas.map((lambda, i) => {
    const span = spans[i];
    const source = span && lambdaAt(program, span);
    if (source && lengthOf(source) === lambda.js.length) {
      return once(
        bySource,
        source,
        () => lowerFunction(source, program.getTypeChecker()),
      );
    }
    const text = lambda.js.toString();
    const location = lambda.span ? `${locationOf(lambda.span)}|` : "";
    return once(byText, location + text, () => lowerText(text, lambda.span));
  });
}

/** The `length` of a function in JavaScript: its parameters before the first with a default, or the rest. */
function lengthOf({ parameters }: FunctionNode): number {
  const end = parameters.findIndex((p) => p.initializer || p.dotDotDotToken);
  return end < 0 ? parameters.length : end;
}

function once<K, V>(made: Map<K, V>, key: K, make: () => V): V {
  const value = made.get(key) ?? make();
  made.set(key, value);
  return value;
}

/**
 * Lowers the text that JavaScript returns for a function whose source was not found. Outer names are then undefined.
 */
function lowerText(text: string, span: Span | undefined): ScalarFunction {
  const where = span ? `at ${locationOf(span)} ` : "";
  const name = "/switchyard/function.js";
  const program = openProgram([], new Map([[name, `(${text})`]]));
  const file = program.getSourceFile(name);
  const statement = file?.statements[0];
  const fn = statement && ts.isExpressionStatement(statement) &&
      program.getSyntacticDiagnostics(file).length === 0
    ? functionOf(statement.expression, program.getTypeChecker())
    : undefined;
  if (!fn) {
    throw new LowerError(
      `Cannot lower the function ${where}given to 'map': its source was not found and its text is not a plain function. Write an arrow function in the call`,
      span,
    );
  }
  const why =
    `the source of this function was not found ${where}and only its text is known`;
  try {
    return lowerFunction(fn, program.getTypeChecker(), why.replace("  ", " "));
  } catch (error) {
    // The frame shows the text; the reported position is the call.
    if (error instanceof LowerError && span) {
      throw new LowerError(error.message, span);
    }
    throw error;
  }
}
