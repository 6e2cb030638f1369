/** Loads and stores of kernel trees, and the loops around them. */

import type { Expr, ForStmt, Stmt } from "../../spec/kernel/tree.ts";
import { expressionsOf, walkExpression } from "../../spec/kernel/walk.ts";

/** A loop. */
export type Loop = ForStmt<Stmt>;

/** A load from a binding or from workgroup memory. */
export type Load = Extract<Expr, { op: "load" | "shared" }>;

/** A store to a binding or to workgroup memory. */
export type Store = Extract<Stmt, { op: "store" | "sharedStore" }>;

/** The name of the array of a load or a store. */
export function arrayOf(access: Load | Store): string {
  return "binding" in access ? access.binding : access.array;
}

/** Whether the index of a load is that of a byte. */
export function isOfBytes(e: Load): boolean {
  return e.op === "load" && e.bytes === true;
}

/** Calls `visit` on every distinct load of a statement, without those of its bodies. */
export function walkLoads(
  s: Stmt,
  visit: (load: Load) => void,
  seen: Set<Expr> = new Set(),
): void {
  for (const top of expressionsOf(s)) {
    walkExpression(top, (e) => {
      if (e.op === "load" || e.op === "shared") visit(e);
    }, seen);
  }
}
