/**
 * Upper bound of a kernel's work, as far as its constants determine it. Executes nothing, so it is cheap for any tree.
 */

import type { Expr, Kernel, Stmt } from "./tree.ts";
import { bodiesOf, expressionsOf, operands } from "./walk.ts";

/**
 * Statements and expressions that an invocation evaluates if every condition holds. A loop with a dynamic end counts
 * once: its work depends on data, and only a deadline bounds it.
 */
export function constantWork({ body }: Kernel): number {
  return workOf(body);
}

function workOf(body: readonly Stmt[]): number {
  return body.reduce((n, s) => n + statementWork(s), 0);
}

function statementWork(s: Stmt): number {
  if (s.op === "for") {
    return nodes(s.from) + nodes(s.to) + iterations(s) * (1 + workOf(s.body));
  }
  const ofExpressions = expressionsOf(s).reduce((n, e) => n + nodes(e), 0);
  return bodiesOf(s).reduce(
    (n, body) => n + workOf(body),
    s.op === "if" ? ofExpressions : 1 + ofExpressions,
  );
}

function iterations(s: Extract<Stmt, { readonly op: "for" }>): number {
  if (s.to.op !== "const" || s.step.op !== "const") return 1;
  const from = s.from.op === "const" ? Number(s.from.value) : 0;
  const step = Math.max(1, Number(s.step.value));
  return Math.max(0, Math.ceil((Number(s.to.value) - from) / step));
}

function nodes(e: Expr): number {
  return operands(e).reduce((n, operand) => n + nodes(operand), 1);
}
