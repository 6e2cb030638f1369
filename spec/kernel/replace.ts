/** The same tree with other names and values in it. */

import { binary } from "./build.ts";
import type { Expr, Stmt } from "./tree.ts";
import { mapOperands, mapStatement } from "./walk.ts";

/** What stands for what. What nothing is said of stays. */
export interface Replacements {
  /** Of a binding. */
  binding?(name: string): string;
  /** Of an array of workgroup memory. */
  shared?(name: string): string;
  /** Of a variable, where it is declared and where it is used. */
  variable?(name: string): string;
  /** Of an element of a binding; undefined: itself. */
  load?(load: Extract<Expr, { readonly op: "load" }>): Expr | undefined;
  /** Of the number of a workgroup or an invocation; undefined: itself. */
  id?(name: string): Expr | undefined;
}

/** Statements with replacements in them. */
export function replaceIn(body: readonly Stmt[], by: Replacements): Stmt[] {
  const value = replaceWith(by);
  const list = (body: readonly Stmt[]): Stmt[] =>
    body.map((s) => renamed(mapStatement(s, { value, body: list }), by));
  return list(body);
}

/** An expression with replacements in it. */
export function replaceInValue(e: Expr, by: Replacements): Expr {
  return replaceWith(by)(e);
}

/** A statement with replacements in it. */
export function replaceInStatement(s: Stmt, by: Replacements): Stmt {
  return replaceIn([s], by)[0]!;
}

function replaceWith(by: Replacements): (e: Expr) => Expr {
  // Expressions are shared, so that a tree may stand for many more.
  const known = new Map<Expr, Expr>();
  const value = (e: Expr): Expr => {
    const replaced = known.get(e) ?? valueOf(e, by, value);
    known.set(e, replaced);
    return replaced;
  };
  return value;
}

function valueOf(
  e: Expr,
  by: Replacements,
  value: (e: Expr) => Expr,
): Expr {
  const replaced = mapOperands(e, value);
  switch (replaced.op) {
    case "id":
      return by.id?.(replaced.name) ?? replaced;
    case "local": {
      const name = by.variable?.(replaced.name) ?? replaced.name;
      return name === replaced.name ? replaced : { ...replaced, name };
    }
    case "load": {
      const other = by.load?.(replaced);
      if (other) return other;
      const binding = by.binding?.(replaced.binding) ?? replaced.binding;
      return binding === replaced.binding ? replaced : { ...replaced, binding };
    }
    case "shared": {
      const array = by.shared?.(replaced.array) ?? replaced.array;
      return array === replaced.array ? replaced : { ...replaced, array };
    }
    case "binary":
      // Operands may have become constants.
      return replaced === e ? e : binary(replaced.fn, replaced.a, replaced.b);
    default:
      return replaced;
  }
}

/** A statement with other names of what it declares, sets and accesses. */
function renamed(s: Stmt, by: Replacements): Stmt {
  const variable = (name: string) => by.variable?.(name) ?? name;
  const binding = (name: string) => by.binding?.(name) ?? name;
  switch (s.op) {
    case "let":
    case "var":
    case "set":
    case "for":
      return { ...s, name: variable(s.name) };
    case "loads":
      return {
        ...s,
        names: s.names.map(variable),
        binding: binding(s.binding),
      };
    case "store":
      return { ...s, binding: binding(s.binding) };
    case "sharedStore":
      return { ...s, array: by.shared?.(s.array) ?? s.array };
    case "if":
    case "barrier":
      return s;
  }
}
