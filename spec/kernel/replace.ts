/** The same tree with other names and values in it. */

import { binary } from "./build.ts";
import type { Expr, Stmt } from "./tree.ts";

/** What stands for what. */
export interface Replacements {
  /** Of a binding. */
  binding(name: string): string;
  /** Of an array of workgroup memory. */
  shared(name: string): string;
  /** Of the number of a workgroup or an invocation; undefined: itself. */
  id(name: string): Expr | undefined;
}

/** Statements with replacements in them. */
export function replaceIn(body: readonly Stmt[], by: Replacements): Stmt[] {
  // Expressions are shared, so that a tree may stand for many more.
  const known = new Map<Expr, Expr>();
  const value = (e: Expr): Expr => {
    const replaced = known.get(e) ?? valueOf(e, by, value);
    known.set(e, replaced);
    return replaced;
  };
  const list = (body: readonly Stmt[]): Stmt[] =>
    body.map((s) => statementOf(s, { by, value, list }));
  return list(body);
}

function valueOf(
  e: Expr,
  by: Replacements,
  value: (e: Expr) => Expr,
): Expr {
  const replaced = mapOperands(e, value);
  switch (replaced.op) {
    case "id":
      return by.id(replaced.name) ?? replaced;
    case "load":
      return { ...replaced, binding: by.binding(replaced.binding) };
    case "shared":
      return { ...replaced, array: by.shared(replaced.array) };
    case "binary":
      return binary(replaced.fn, replaced.a, replaced.b);
    default:
      return replaced;
  }
}

/** An expression with what stands for its operands. */
export function mapOperands(e: Expr, of: (operand: Expr) => Expr): Expr {
  switch (e.op) {
    case "const":
    case "local":
    case "id":
      return e;
    case "load":
    case "shared":
      return { ...e, index: of(e.index) };
    case "unary":
    case "convert":
    case "bitcast":
      return { ...e, a: of(e.a) };
    case "binary":
      return { ...e, a: of(e.a), b: of(e.b) };
    case "call":
      return { ...e, args: e.args.map(of) };
    case "select":
      return { ...e, condition: of(e.condition), a: of(e.a), b: of(e.b) };
  }
}

function statementOf(
  s: Stmt,
  { by, value, list }: {
    readonly by: Replacements;
    value(e: Expr): Expr;
    list(body: readonly Stmt[]): Stmt[];
  },
): Stmt {
  switch (s.op) {
    case "barrier":
      return s;
    case "let":
    case "var":
    case "set":
      return { ...s, value: value(s.value) };
    case "loads":
      return { ...s, binding: by.binding(s.binding), index: value(s.index) };
    case "store":
      return {
        ...s,
        binding: by.binding(s.binding),
        ...{ index: value(s.index), value: value(s.value) },
      };
    case "sharedStore":
      return {
        ...s,
        array: by.shared(s.array),
        ...{ index: value(s.index), value: value(s.value) },
      };
    case "for":
      return {
        ...s,
        ...{ from: value(s.from), to: value(s.to), step: value(s.step) },
        body: list(s.body),
      };
    case "if":
      return {
        ...s,
        condition: value(s.condition),
        then: list(s.then),
        ...s.else ? { else: list(s.else) } : {},
      };
  }
}
