/** How much work a kernel asks for, as far as its constants tell. Cheap on any tree: nothing is executed. */

import type { Expr, Kernel, Stmt } from "./tree.ts";

/**
 * Statements and expressions that an invocation evaluates where every condition holds. A loop whose end is no constant
 * counts once: what it takes is in the data, and only a deadline bounds it.
 */
export function constantWork({ body }: Kernel): number {
  return workOf(body);
}

function workOf(body: readonly Stmt[]): number {
  return body.reduce((n, s) => n + statementWork(s), 0);
}

function statementWork(s: Stmt): number {
  switch (s.op) {
    case "let":
    case "var":
    case "set":
      return 1 + nodes(s.value);
    case "store":
    case "sharedStore":
      return 1 + nodes(s.index) + nodes(s.value);
    case "loads":
      return 1 + nodes(s.index);
    case "if":
      return nodes(s.condition) + workOf(s.then) + workOf(s.else ?? []);
    case "for":
      return nodes(s.from) + nodes(s.to) + iterations(s) * (1 + workOf(s.body));
    case "barrier":
      return 1;
  }
}

function iterations(s: Extract<Stmt, { readonly op: "for" }>): number {
  if (s.to.op !== "const" || s.step.op !== "const") return 1;
  const from = s.from.op === "const" ? Number(s.from.value) : 0;
  const step = Math.max(1, Number(s.step.value));
  return Math.max(0, Math.ceil((Number(s.to.value) - from) / step));
}

function nodes(e: Expr): number {
  switch (e.op) {
    case "const":
    case "local":
    case "id":
      return 1;
    case "load":
    case "shared":
      return 1 + nodes(e.index);
    case "unary":
    case "convert":
    case "bitcast":
      return 1 + nodes(e.a);
    case "binary":
      return 1 + nodes(e.a) + nodes(e.b);
    case "call":
      return e.args.reduce((n, arg) => n + nodes(arg), 1);
    case "select":
      return 1 + nodes(e.condition) + nodes(e.a) + nodes(e.b);
  }
}
