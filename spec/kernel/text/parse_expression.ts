/** Parses expressions of kernel text. */

import { needsParentheses, type Operator, OPERATORS } from "../operators.ts";
import type { Scanner } from "./scanner.ts";
import type { ExprSyntax } from "./syntax.ts";
import { KernelTextError } from "./text.ts";

/** A parsed operand, and its outermost operator outside of parentheses. */
interface Operand {
  readonly syntax: ExprSyntax;
  readonly outer?: Operator;
}

/** Parses an expression. */
export function expression(s: Scanner): ExprSyntax {
  return operand(s, 1).syntax;
}

/** Operands and operators of at least a level. */
function operand(s: Scanner, min: number): Operand {
  let left = prefixed(s);
  for (;;) {
    const at = s.peek();
    const operator = at.kind === "operator"
      ? OPERATORS.get(at.text)
      : undefined;
    if (!operator || operator.level < min) return left;
    s.next();
    const right = operand(s, operator.level + 1);
    const mixed = unranked(operator, left.outer) ??
      unranked(operator, right.outer);
    if (mixed) {
      throw new KernelTextError(
        `Cannot mix '${mixed.text}' and '${operator.text}': neither takes precedence. Add parentheses`,
        s.text.template,
        at,
      );
    }
    const a = left.syntax;
    const b = right.syntax;
    left = {
      syntax: { kind: "binary", operator, a, b, start: a.start, at },
      outer: operator,
    };
  }
}

/** The outermost operator of an operand, if it needs parentheses. */
function unranked(
  operator: Operator,
  outer: Operator | undefined,
): Operator | undefined {
  return outer && needsParentheses(operator, outer) ? outer : undefined;
}

function prefixed(s: Scanner): Operand {
  if (!s.is("(")) return { syntax: unary(s) };
  const start = s.next();
  const syntax = { ...expression(s), start };
  s.skip(")");
  return { syntax };
}

/** One value, without binary operators. */
export function unary(s: Scanner): ExprSyntax {
  const at = s.peek();
  if (s.take("-")) {
    return { kind: "minus", a: prefixed(s).syntax, start: at, at };
  }
  if (s.take("!")) return { kind: "not", a: prefixed(s).syntax, start: at, at };
  return primary(s);
}

function primary(s: Scanner): ExprSyntax {
  const at = s.peek();
  const position = { start: at, at };
  if (at.kind === "number") {
    s.next();
    return { kind: "number", value: at.value, suffix: at.suffix, ...position };
  }
  s.name("an expression");
  const word = at.kind === "name" ? at.text : undefined;
  if (word === "group" && s.take(".")) {
    return { kind: "group", axis: s.name("x, y or z"), ...position };
  }
  let type;
  if (word === "bitcast") {
    s.skip("<");
    type = s.name("a type");
    s.skip(">");
  }
  if (type || s.is("(")) {
    const args = args_(s);
    const parts = word !== undefined && Object.hasOwn(PARTS, word) &&
      PARTS[word as keyof typeof PARTS];
    const part = parts ? partOf(s, parts) : undefined;
    return { kind: "call", args, type, part, ...position };
  }
  const indices = indicesOf(s);
  return indices.length > 0
    ? { kind: "element", indices, ...position }
    : { kind: "word", ...position };
}

/** Functions that return vectors, of which one component is selected. */
const PARTS = { unpack2x16float: "xy", unpack4xI8: "xyzw" } as const;

/** `.x` or another component. */
function partOf(s: Scanner, parts: string) {
  s.skip(".");
  if (![...parts].some((part) => s.is(part))) {
    throw s.expected([...parts].join(", ").replace(/, (\w)$/, " or $1"));
  }
  return s.next();
}

function args_(s: Scanner): ExprSyntax[] {
  const all: ExprSyntax[] = [];
  s.skip("(");
  while (!s.is(")")) {
    all.push(expression(s));
    if (!s.take(",")) break;
  }
  s.skip(")");
  return all;
}

/** `[r][c]`, or nothing */
export function indicesOf(s: Scanner): ExprSyntax[] {
  const all: ExprSyntax[] = [];
  while (s.take("[")) {
    all.push(expression(s));
    s.skip("]");
  }
  return all;
}
