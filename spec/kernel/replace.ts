/** Renames and substitutes in a tree. */

import { binary } from "./build.ts";
import type { Expr, Stmt } from "./tree.ts";
import { mapOperands, mapStatement } from "./walk.ts";

/** Replacements. Names without a replacement are unchanged. */
export interface Replacements {
  /** Name of a binding. */
  binding?(name: string): string;
  /** Name of an array of workgroup memory. */
  shared?(name: string): string;
  /** Name of a variable, at its declaration and its uses. */
  variable?(name: string): string;
  /** Value of an element of a binding. Undefined: unchanged. */
  load?(load: Extract<Expr, { readonly op: "load" }>): Expr | undefined;
  /** Value of the number of a workgroup or an invocation. Undefined: unchanged. */
  id?(name: string): Expr | undefined;
}

/** Statements after replacement. */
export function replaceIn(body: readonly Stmt[], by: Replacements): Stmt[] {
  const value = replaceWith(by);
  const list = (body: readonly Stmt[]): Stmt[] =>
    body.map((s) => renamed(mapStatement(s, { value, body: list }), by));
  return list(body);
}

/** An expression after replacement. */
export function replaceInValue(e: Expr, by: Replacements): Expr {
  return replaceWith(by)(e);
}

/** A statement after replacement. */
export function replaceInStatement(s: Stmt, by: Replacements): Stmt {
  return replaceIn([s], by)[0]!;
}

function replaceWith(by: Replacements): (e: Expr) => Expr {
  // Expressions are shared, so a tree may be much larger when expanded.
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

/** A statement with renamed declarations, assignments and accesses. */
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
