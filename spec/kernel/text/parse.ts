/** Parses statements of kernel text. */

import { expression, indicesOf, unary } from "./parse_expression.ts";
import { expected, OUTSIDE, Scanner } from "./scanner.ts";
import type {
  ExprSyntax,
  RangeSyntax,
  StmtSyntax,
  TargetSyntax,
} from "./syntax.ts";
import {
  type KernelText,
  KernelTextError,
  type Template,
  type Token,
} from "./text.ts";

/**
 * Parses a text as statements. All functions of this file throw KernelTextError for text outside the subset.
 */
export const statementsOf: (text: KernelText) => readonly StmtSyntax[] = onceOf(
  statements,
);

/** Parses a text as an expression. */
export const expressionOf: (text: KernelText) => ExprSyntax = onceOf(
  expression,
);

/** Parses a text as the ranges of `@unroll`. */
export const rangesOf: (text: KernelText) => readonly RangeSyntax[] = onceOf(
  ranges,
);

/** Parses a text from its first token to its last, once per template. */
function onceOf<T>(read: (s: Scanner) => T): (text: KernelText) => T {
  const known = new WeakMap<Template, T>();
  return (text) => {
    let syntax = known.get(text.template);
    if (syntax === undefined) {
      const s = new Scanner(text);
      syntax = read(s);
      if (s.peek().kind !== "end") throw s.expected("the end of the text");
      known.set(text.template, syntax);
    }
    return syntax;
  };
}

/** Parses statements up to a closing brace or the end of the text. */
function statements(s: Scanner): StmtSyntax[] {
  const all: StmtSyntax[] = [];
  while (s.peek().kind !== "end" && !s.is("}")) all.push(statement(s));
  return all;
}

function block(s: Scanner): StmtSyntax[] {
  s.skip("{");
  const body = statements(s);
  s.skip("}");
  return body;
}

function statement(s: Scanner): StmtSyntax {
  const at = s.peek();
  if (at.kind === "hole" && !isTarget(s.peek(1))) {
    s.next();
    if (s.is(";")) throw expected(s.text, "a statement", at);
    return { kind: "hole", at, hole: at.hole };
  }
  const word = at.kind === "name" || at.kind === "operator" ? at.text : "";
  switch (word) {
    case "let":
    case "var":
      s.next();
      if (word === "var" && s.is("<")) return array(s);
      if (word === "let" && s.is("(")) return vector(s);
      return declaration(s, word);
    case "for":
      return loop(s);
    case "if":
      return conditional(s);
    case "@":
      return unrolled(s);
    case "workgroupBarrier":
      s.skip(word, "(", ")", ";");
      return { kind: "barrier", at };
    default:
      if (OUTSIDE.has(word)) throw s.expected("a statement");
      return assignment(s);
  }
}

/** Whether a hole is the target of an assignment, by the following token. */
function isTarget(next: Token): boolean {
  if (next.kind !== "operator") return false;
  const { text } = next;
  return text === "[" || text === "(" || text === "++" || text.endsWith("=");
}

function target(s: Scanner, what = "a name"): TargetSyntax {
  return { at: s.name(what), indices: indicesOf(s) };
}

/** `let x = 1u;`, `var x: u32 = 1;` */
function declaration(s: Scanner, kind: "let" | "var"): StmtSyntax {
  const name = target(s);
  const type = s.take(":") ? s.name("a type") : undefined;
  s.skip("=");
  const value = expression(s);
  s.skip(";");
  return { kind, name, type, value };
}

/** `var<workgroup> cells: array<u32, 64>;` */
function array(s: Scanner): StmtSyntax {
  s.skip("<", "workgroup", ">");
  const name = target(s);
  s.skip(":", "array", "<");
  const type = s.name("a type");
  s.skip(",");
  // One value, because `>` follows.
  const length = unary(s);
  s.skip(">", ";");
  return { kind: "array", name, type, length };
}

/** `let (a, b, c, d) = vec4(weights)[i];`: elements 4i to 4i + 3 */
function vector(s: Scanner): StmtSyntax {
  const start = s.peek();
  s.skip("(");
  const names: TargetSyntax[] = [];
  do names.push(target(s)); while (s.take(","));
  s.skip(")", "=");
  if (names.length !== 2 && names.length !== 4) {
    throw new KernelTextError(
      `Cannot load ${names.length} elements at once: vectors have 2 or 4. Name 2 or 4`,
      s.text.template,
      start,
    );
  }
  s.skip(`vec${names.length}`, "(");
  const binding = s.name("a binding");
  s.skip(")", "[");
  const index = expression(s);
  s.skip("]", ";");
  return { kind: "vector", names, binding, index };
}

/** `for (var i = from; i < to; i += step) { … }`; `i++` counts by one. */
function loop(s: Scanner): StmtSyntax {
  s.skip("for", "(", "var");
  const name = target(s);
  s.skip("=");
  const from = expression(s);
  s.skip(";");
  const compared = s.name("a name");
  s.skip("<");
  const to = expression(s);
  s.skip(";");
  const again = [compared, s.name("a name")];
  let step;
  if (!s.take("++")) {
    s.skip("+=");
    step = expression(s);
  }
  s.skip(")");
  return { kind: "for", name, again, from, to, step, body: block(s) };
}

function conditional(s: Scanner): StmtSyntax {
  s.skip("if", "(");
  const condition = expression(s);
  s.skip(")");
  const then = block(s);
  const otherwise = s.take("else")
    ? s.is("if") ? [conditional(s)] : block(s)
    : undefined;
  return { kind: "if", condition, then, else: otherwise };
}

/** `x = 1;`, `x += 1;`, `x++;`, `cells[i] = 1;`, `cells[i] += 1;` */
function assignment(s: Scanner): StmtSyntax {
  const left = target(s, "a statement");
  if (s.is("(")) {
    const { at } = left;
    const name = at.kind === "name" ? at.text : "${…}";
    throw new KernelTextError(
      `Cannot call '${name}' as a statement: only workgroupBarrier() is one. Use its value`,
      s.text.template,
      at,
    );
  }
  const operator = s.peek();
  const count = s.take("++");
  if (
    !count && !(operator.kind === "operator" && operator.text.endsWith("="))
  ) {
    throw s.expected("'='");
  }
  if (!count) s.next();
  const value = count ? undefined : expression(s);
  s.skip(";");
  return { kind: "assign", target: left, operator, value };
}

/** `@unroll (r < 4, c < 8 by 2) { … }` */
function unrolled(s: Scanner): StmtSyntax {
  s.skip("@", "unroll", "(");
  const next = s.peek(1);
  const given = s.peek().kind === "hole" && next.kind === "operator" &&
      next.text === ")"
    ? s.next()
    : undefined;
  const of = given ? [] : ranges(s);
  s.skip(")");
  return { kind: "unroll", given, ranges: of, body: block(s) };
}

/** `r < 4, c < 8 by 2` */
function ranges(s: Scanner): RangeSyntax[] {
  const all: RangeSyntax[] = [];
  do {
    const name = target(s);
    s.skip("<");
    const end = expression(s);
    all.push({ name, end, step: s.take("by") ? expression(s) : undefined });
  } while (s.take(","));
  return all;
}
