/** Completions of axis names in strings of axes: `"token |"` offers the remaining axes of the model. */

import { nameOf } from "../source/call_at.ts";
import { nodeAt } from "../source/causes.ts";
import type { CheckedFile } from "../source/mistakes.ts";
import type { ts } from "../source/typescript.ts";

/** Candidates at a position. */
export interface AxisCompletions {
  /** The axes of the model, or of a block and its enclosing scopes. */
  readonly axes: readonly string[];
  readonly names: readonly string[];
  /** The typed text of the string. */
  readonly typed: string;
  /** Start and length of the completed word. */
  readonly start: number;
  readonly length: number;
}

/** The axes that can be completed at a position, or undefined. */
export function axisCompletions(
  checked: CheckedFile,
  position: number,
): AxisCompletions | undefined {
  const { ts, file } = checked;
  const literal = nodeAt(ts, file, position - 1);
  if (!ts.isStringLiteralLike(literal)) return undefined;
  const call = literal.parent;
  if (!ts.isCallExpression(call)) return undefined;
  const start = literal.getStart(file) + 1;
  const before = file.text.slice(start, position);
  const after = file.text.slice(position, literal.end - 1);
  const axes = axesAround(checked, call);
  if (axes === undefined) return undefined;
  const soFar = before + after;
  const isName = nameOf(ts, call) !== call.expression &&
    call.arguments[0] === literal;
  if (isName) return inBraces(axes, before, after, position);
  const typed = /[^ ]*$/.exec(before)![0];
  const rest = /^[^ ]*/.exec(after)![0];
  const others = new Set(
    `${before.slice(0, before.length - typed.length)} ${
      after.slice(rest.length)
    }`.split(" "),
  );
  return {
    axes,
    typed: soFar,
    names: axes.filter((axis) => !others.has(axis)),
    start: position - typed.length,
    length: typed.length + rest.length,
  };
}

/**
 * The names to offer in addition to TypeScript's `entries`. If these are axes, only the entries for one axis; none if
 * they are other words, such as dtypes. Entries that are error sentences or the typed text are ignored.
 */
export function chosenNames(
  { axes, names, typed }: AxisCompletions,
  entries: readonly ts.CompletionEntry[],
): readonly string[] | undefined {
  const words = entries.map(({ name }) => name).filter((name) =>
    name !== "" && name !== typed && !name.startsWith("Cannot ")
  );
  if (words.length === 0 || words.some((name) => name.includes(" "))) {
    return names;
  }
  return words.every((name) => axes.includes(name))
    ? names.filter((name) => words.includes(name))
    : undefined;
}

/** Parameter names contain axes in braces: `experts.{expert}.up`. */
function inBraces(
  axes: readonly string[],
  before: string,
  after: string,
  position: number,
): AxisCompletions | undefined {
  const typed = /\{([^{}]*)$/.exec(before)?.[1];
  if (typed === undefined) return undefined;
  const rest = /^[^{}.]*\}?/.exec(after)![0];
  return {
    axes,
    typed: before + after,
    names: axes.map((axis) => `${axis}}`),
    start: position - typed.length,
    length: typed.length + rest.length,
  };
}

/** The axes of the scope on which a call is made, or which encloses it. */
function axesAround(
  checked: CheckedFile,
  call: ts.CallExpression,
): readonly string[] | undefined {
  const { ts, program } = checked;
  const checker = program.getTypeChecker();
  const callee = call.expression;
  if (ts.isPropertyAccessExpression(callee)) {
    const found = axesOf(checked, checker.getTypeAtLocation(callee.expression));
    if (found) return found;
  }
  for (let node: ts.Node = call; node; node = node.parent) {
    if (!ts.isFunctionLike(node)) continue;
    for (const parameter of node.parameters) {
      const axes = axesOf(checked, checker.getTypeAtLocation(parameter.name));
      if (axes) return axes;
    }
  }
  return undefined;
}

/** The axes of a `Scope`. */
function axesOf(
  { ts, program, isOurs }: CheckedFile,
  type: ts.Type,
): readonly string[] | undefined {
  const [declaration] = type.symbol?.declarations ?? [];
  const isScope = type.symbol?.name === "Scope" && declaration &&
    isOurs(declaration.getSourceFile().fileName);
  if (!isScope) return undefined;
  const [names] = program.getTypeChecker()
    .getTypeArguments(type as ts.TypeReference);
  if (!names) return undefined;
  const each = names.isUnion() ? names.types : [names];
  return each.flatMap((name) =>
    name.flags & ts.TypeFlags.StringLiteral
      ? [(name as ts.StringLiteralType).value]
      : []
  ).toSorted();
}
