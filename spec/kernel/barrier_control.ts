/** The part of a kernel that decides which invocations reach its barriers: small, and fast to read. */

import { cachedIn } from "../bounded_cache.ts";
import type { Kernel, Stmt } from "./tree.ts";
import { readTree } from "./verify/tree.ts";
import {
  bodiesOf,
  expressionsOf,
  mapStatement,
  walkExpression,
} from "./walk.ts";

/** A statement, and the loop or condition that contains it. */
interface Nested {
  readonly stmt: Stmt;
  readonly outer: Nested | undefined;
}

/** The control of each body, which is read once for each choice of writable bindings. */
const controls = new WeakMap<Kernel["body"], readonly Stmt[]>();

/** Barriers that some invocations may not reach: those of `readTree`. */
export function divergentBarriers(kernel: Kernel): ReadonlySet<Stmt> {
  const body = controls.get(kernel.body) ?? barrierControl(kernel.body);
  controls.set(kernel.body, body);
  if (body.length === 0) return new Set();
  // With options, facts are not cached.
  return readTree({ ...kernel, body }, {}).divergent;
}

/**
 * The barriers in loops and conditions, all that surrounds them, and the variables on which these loops and conditions
 * depend.
 */
function barrierControl(body: readonly Stmt[]): readonly Stmt[] {
  const writers = new Map<string, Nested[]>();
  const barriers: Nested[] = [];
  const read = (body: readonly Stmt[], outer?: Nested) => {
    for (const stmt of body) {
      const at = { stmt, outer };
      if (stmt.op === "barrier" && outer) barriers.push(at);
      for (const name of writtenBy(stmt)) {
        cachedIn(writers, name, { create: (): Nested[] => [] })
          .push(at);
      }
      for (const inner of bodiesOf(stmt)) read(inner, at);
    }
  };
  read(body);
  const kept = new Set<Stmt>();
  const keep = (at: Nested | undefined): void => {
    if (!at || kept.has(at.stmt)) return;
    kept.add(at.stmt);
    keep(at.outer);
    for (const e of expressionsOf(at.stmt)) {
      walkExpression(e, (node) => {
        if (node.op === "local") writers.get(node.name)?.forEach(keep);
      });
    }
  };
  barriers.forEach(keep);
  const only = (body: readonly Stmt[]): readonly Stmt[] =>
    body.filter((s) => kept.has(s)).map((s) => mapStatement(s, { body: only }));
  return only(body);
}

/** Variables that a statement sets. */
function writtenBy(s: Stmt): readonly string[] {
  if (s.op === "loads") return s.names;
  return "name" in s ? [s.name] : [];
}
