/** The same tree with other names and values in it. */

import { binary } from "./build.ts";
import type { Expr, Stmt } from "./tree.ts";

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
    body.map((s) => statementOf(s, { by, value, list }));
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

/** An expression with what stands for its operands; the same where they do. */
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

function statementOf(
  s: Stmt,
  { by, value, list }: {
    readonly by: Replacements;
    value(e: Expr): Expr;
    list(body: readonly Stmt[]): Stmt[];
  },
): Stmt {
  const variable = (name: string) => by.variable?.(name) ?? name;
  switch (s.op) {
    case "barrier":
      return s;
    case "let":
    case "var":
    case "set":
      return { ...s, name: variable(s.name), value: value(s.value) };
    case "loads":
      return {
        ...s,
        names: s.names.map(variable),
        binding: by.binding?.(s.binding) ?? s.binding,
        index: value(s.index),
      };
    case "store":
      return {
        ...s,
        binding: by.binding?.(s.binding) ?? s.binding,
        index: value(s.index),
        value: value(s.value),
      };
    case "sharedStore":
      return {
        ...s,
        array: by.shared?.(s.array) ?? s.array,
        index: value(s.index),
        value: value(s.value),
      };
    case "for":
      return {
        ...s,
        name: variable(s.name),
        from: value(s.from),
        to: value(s.to),
        step: value(s.step),
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
