/**
 * Rules of a kernel tree that bound the cost of printing and running it: its size, and the termination of its loops.
 */

import type { Expr, Kernel, Stmt } from "../tree.ts";
import { someNode, walkStatements } from "../walk.ts";

/** Maximum statements and expressions of a kernel tree. Merged kernels of a GPU have the most. */
export const MAX_NODES = 32768;

type ForStmt = Extract<Stmt, { readonly op: "for" }>;

const counts = new WeakMap<Kernel["body"], number>();

/** Number of statements and expressions of a tree; shared ones count once. */
export function treeNodes({ body }: Kernel): number {
  const count = counts.get(body) ?? countNodes(body);
  counts.set(body, count);
  return count;
}

function countNodes(body: Kernel["body"]): number {
  const seen = new Set<object>();
  const rest: object[] = [body];
  const add = (part: unknown) => {
    if (typeof part === "object" && part !== null) rest.push(part);
  };
  while (rest.length > 0) {
    const node = rest.pop()!;
    if (Array.isArray(node)) node.forEach(add);
    else if (!seen.has(node)) {
      seen.add(node);
      for (const key in node) {
        add((node as { readonly [key: string]: unknown })[key]);
      }
    }
  }
  return seen.size;
}

/** Why a loop may not end, or not at the same iteration on every target. */
export function loopFaults(loop: ForStmt): string[] {
  const { name, step, to } = loop;
  const faults: string[] = [];
  if (step.op !== "const") {
    faults.push(`the step of loop '${name}' is no constant`);
  } else if (step.value === 0) {
    faults.push(`loop '${name}' never ends: its step is 0`);
  }
  // A constant end cannot change.
  if (to.op === "const") return faults;
  const written = writtenIn(loop.body);
  if (mentions(to, written)) {
    faults.push(`the end of loop '${name}' changes inside of it`);
  }
  return faults;
}

/** Variables that are assigned, and arrays that are stored to. */
function writtenIn(body: readonly Stmt[]): Set<string> {
  const written = new Set<string>();
  walkStatements(body, (s) => {
    if (s.op === "set") written.add(s.name);
    else if (s.op === "store") written.add(s.binding);
    else if (s.op === "sharedStore") written.add(s.array);
  });
  return written;
}

function mentions(e: Expr, names: ReadonlySet<string>): boolean {
  return someNode(e, (node) => {
    if (node.op === "local") return names.has(node.name);
    if (node.op === "load") return names.has(node.binding);
    return node.op === "shared" && names.has(node.array);
  });
}
