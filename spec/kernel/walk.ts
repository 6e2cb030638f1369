/** Traversal of kernel trees: operands of expressions, expressions and bodies of statements, and maps over both. */

import type { Expr, MatrixStmt, Stmt } from "./tree.ts";

/** The operands of an expression. */
export function operands(e: Expr): readonly Expr[] {
  const found: Expr[] = [];
  someOperand(e, (operand) => {
    found.push(operand);
    return false;
  });
  return found;
}

/** Whether an operand of an expression passes a test. Unlike `operands`, it allocates nothing. */
export function someOperand(
  e: Expr,
  test: (operand: Expr) => boolean,
): boolean {
  switch (e.op) {
    case "const":
    case "local":
    case "id":
      return false;
    case "load":
    case "shared":
      return test(e.index);
    case "unary":
    case "convert":
    case "bitcast":
      return test(e.a);
    case "binary":
      return test(e.a) || test(e.b);
    case "call":
      return e.args.some((arg) => test(arg));
    case "select":
      return test(e.condition) || test(e.a) || test(e.b);
  }
}

/** An expression with `of` applied to its operands; the same object if none changes. */
export function mapOperands(e: Expr, of: (operand: Expr) => Expr): Expr {
  switch (e.op) {
    case "const":
    case "local":
    case "id":
      return e;
    case "load":
    case "shared": {
      const index = of(e.index);
      return index === e.index ? e : { ...e, index };
    }
    case "unary":
    case "convert":
    case "bitcast": {
      const a = of(e.a);
      return a === e.a ? e : { ...e, a };
    }
    case "binary": {
      const [a, b] = [of(e.a), of(e.b)];
      return a === e.a && b === e.b ? e : { ...e, a, b };
    }
    case "call": {
      const args = e.args.map(of);
      return args.every((arg, i) => arg === e.args[i]) ? e : { ...e, args };
    }
    case "select": {
      const [condition, a, b] = [of(e.condition), of(e.a), of(e.b)];
      return condition === e.condition && a === e.a && b === e.b
        ? e
        : { ...e, condition, a, b };
    }
  }
}

/** The expressions of a statement, without those of its bodies. */
export function expressionsOf(s: Stmt): readonly Expr[] {
  switch (s.op) {
    case "let":
    case "var":
    case "set":
      return [s.value];
    case "loads":
      return [s.index];
    case "store":
    case "sharedStore":
      return [s.index, s.value];
    case "for":
      return [s.from, s.to, s.step];
    case "if":
      return [s.condition];
    case "barrier":
      return [];
  }
}

/** The bodies of a loop or a condition. */
export function bodiesOf(s: Stmt): readonly (readonly Stmt[])[];
export function bodiesOf(s: MatrixStmt): readonly (readonly MatrixStmt[])[];
export function bodiesOf(s: MatrixStmt): readonly (readonly MatrixStmt[])[] {
  if (s.op === "for") return [s.body];
  if (s.op === "if") return s.else ? [s.then, s.else] : [s.then];
  return [];
}

/** Functions applied by `mapStatement`. */
export interface StatementMap {
  /** To each expression of a statement. Default: identity. */
  value?(e: Expr): Expr;
  /** To each body. */
  body(body: readonly Stmt[]): readonly Stmt[];
}

/** A statement with other expressions and bodies. */
export function mapStatement(
  s: Stmt,
  { value = (e) => e, body }: StatementMap,
): Stmt {
  switch (s.op) {
    case "let":
    case "var":
    case "set":
      return { ...s, value: value(s.value) };
    case "loads":
      return { ...s, index: value(s.index) };
    case "store":
    case "sharedStore":
      return { ...s, index: value(s.index), value: value(s.value) };
    case "for":
      return {
        ...s,
        from: value(s.from),
        to: value(s.to),
        step: value(s.step),
        body: body(s.body),
      };
    case "if": {
      const condition = value(s.condition);
      const then = body(s.then);
      return s.else
        ? { ...s, condition, then, else: body(s.else) }
        : { ...s, condition, then };
    }
    case "barrier":
      return s;
  }
}

/** Calls `visit` on every statement, outer ones first. */
export function walkStatements(
  body: readonly Stmt[],
  visit: (s: Stmt) => void,
): void {
  for (const s of body) {
    visit(s);
    for (const inner of bodiesOf(s)) walkStatements(inner, visit);
  }
}

/** Calls `visit` on every distinct node of an expression, outer ones first. */
export function walkExpression(
  e: Expr,
  visit: (e: Expr) => void,
  seen: Set<Expr> = new Set(),
): void {
  const walk = (node: Expr): false => {
    if (seen.has(node)) return false;
    seen.add(node);
    visit(node);
    someOperand(node, walk);
    return false;
  };
  walk(e);
}

/** Calls `visit` on every distinct expression of statements. */
export function walkExpressions(
  body: readonly Stmt[],
  visit: (e: Expr) => void,
): void {
  const seen = new Set<Expr>();
  walkStatements(body, (s) => {
    for (const e of expressionsOf(s)) walkExpression(e, visit, seen);
  });
}

/** Whether a statement, or one inside of another, passes a test. */
export function someStatement(
  body: readonly Stmt[],
  test: (s: Stmt) => boolean,
): boolean {
  return body.some((s) =>
    test(s) || bodiesOf(s).some((inner) => someStatement(inner, test))
  );
}

/** Adds the names of locals that an expression reads. */
export function addLocals(e: Expr, names: Set<string>): void {
  walkExpression(e, (node) => {
    if (node.op === "local") names.add(node.name);
  });
}

/** Whether a node of an expression passes a test. */
export function someNode(
  e: Expr,
  test: (e: Expr) => boolean,
  seen: Set<Expr> = new Set(),
): boolean {
  const some = (node: Expr): boolean => {
    if (seen.has(node)) return false;
    seen.add(node);
    return test(node) || someOperand(node, some);
  };
  return some(e);
}

/** Whether an expression of statements passes a test. */
export function someExpression(
  body: readonly Stmt[],
  test: (e: Expr) => boolean,
): boolean {
  const seen = new Set<Expr>();
  return someStatement(
    body,
    (s) => expressionsOf(s).some((e) => someNode(e, test, seen)),
  );
}
