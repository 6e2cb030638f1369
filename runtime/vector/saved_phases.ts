/**
 * Phases whose results are saved in workgroup memory for the following workgroups with the same `group.x` and
 * `group.z`, such as the left operand of a matmul.
 */

import type { Expr } from "../../spec/kernel/tree.ts";
import {
  addLocals,
  someNode,
  walkExpressions,
  walkStatements,
} from "../../spec/kernel/walk.ts";
import { namesIn } from "./analyze.ts";
import {
  arraysReadIn,
  isForAll,
  type Outer,
  type Phase,
  phasesIn,
} from "./phases.ts";
import type { Shapes } from "./shape.ts";

/** Saved phases, and the arrays that each stores. Only saved phases store these. */
export type SavedPhases = ReadonlyMap<Phase, ReadonlySet<string>>;

/** What is known about a kernel. */
interface Known {
  readonly shapes: Shapes;
  /** Bindings that the kernel writes. */
  readonly writable: ReadonlySet<string>;
}

/**
 * Finds the phases of a kernel that depend on nothing but `group.x`, `group.z` and bindings that the kernel does not
 * write, and that store only workgroup memory. All that use what they store follow in the same list.
 */
export function savedPhases(list: readonly Outer[], known: Known): SavedPhases {
  const phases = phasesIn(list);
  const lets = new Map<string, Expr>();
  for (const { body } of phases) {
    walkStatements(body, (s) => {
      if (s.op === "let") lets.set(s.name, s.value);
    });
  }
  const saved = new Map<Phase, ReadonlySet<string>>();
  for (const phase of phases) {
    const stored = storesOf(phase);
    const isAlone = () =>
      !phases.some((other) =>
        other !== phase && usesValuesOf(other, phase, known)
      );
    if (stored && isRepeatable(phase, lets, known) && isAlone()) {
      saved.set(phase, stored);
    }
  }
  for (let size = Infinity; saved.size < size;) {
    size = saved.size;
    const others = otherUses(list, { saved, before: new Set(), loops: false });
    for (const [phase, stored] of saved) {
      if ([...stored].some((array) => others.has(array))) saved.delete(phase);
    }
  }
  return saved;
}

/** The arrays of workgroup memory that a phase stores. Undefined if there are none, or if it stores anything else. */
function storesOf({ body }: Phase): ReadonlySet<string> | undefined {
  const arrays = new Set<string>();
  let only = true;
  walkStatements(body, (s) => {
    if (s.op === "sharedStore") arrays.add(s.array);
    only &&= s.op !== "store";
  });
  return only && arrays.size > 0 ? arrays : undefined;
}

/** Whether another phase uses a uniform value that a phase computes together with its results. */
function usesValuesOf(
  other: Phase,
  { body }: Phase,
  { shapes }: Known,
): boolean {
  const names = namesIn(other.body);
  const first = body.findIndex((s) => !isForAll(s, shapes));
  return body.slice(first).some((s) =>
    s.op === "let" && names.has(s.name) && isForAll(s, shapes)
  );
}

/** Whether a phase has the same results in workgroups that differ in `group.y`. */
function isRepeatable(
  { body, writes }: Phase,
  lets: ReadonlyMap<string, Expr>,
  { writable }: Known,
): boolean {
  const isFixed = (e: Expr) =>
    !someNode(
      e,
      (node) =>
        node.op === "shared" || node.op === "id" && node.name === "group.y" ||
        node.op === "load" && writable.has(node.binding),
    );
  let fixed = writes.size === 0;
  walkExpressions(body, (e) => {
    fixed &&= isFixed(e);
  });
  const inside = new Set<string>();
  walkStatements(body, (s) => {
    if (s.op === "let" || s.op === "var" || s.op === "for") inside.add(s.name);
  });
  const names = namesIn(body);
  for (const name of names) {
    if (inside.has(name)) continue;
    const value = lets.get(name);
    if (!value || !isFixed(value)) return false;
    addLocals(value, names);
  }
  return fixed;
}

/** Arrays that others than saved phases store, or use without a saved phase before them in their list. */
function otherUses(
  list: readonly Outer[],
  { saved, before, loops }: {
    readonly saved: SavedPhases;
    readonly before: ReadonlySet<string>;
    /** Whether the list is repeated, so that a saved phase may have other results. */
    readonly loops: boolean;
  },
): Set<string> {
  const others = new Set<string>();
  const here = new Set(before);
  for (const o of list) {
    const stored = o.op === "phase" ? saved.get(o) : undefined;
    if (stored) {
      stored.forEach((array) => (loops ? others : here).add(array));
      continue;
    }
    if (o.op === "phase") {
      walkStatements(o.body, (s) => {
        if (s.op === "sharedStore") others.add(s.array);
      });
    } else if (o.op !== "zero") {
      const inner = { saved, before: here, loops: loops || o.op === "for" };
      const bodies = o.op === "if" ? [o.then, o.else] : [o.body];
      for (const body of bodies) {
        otherUses(body, inner).forEach((array) => others.add(array));
      }
    }
    const bounds = o.op === "phase" ? o : withoutBodies(o);
    arraysReadIn([bounds]).forEach((array) => {
      if (!here.has(array)) others.add(array);
    });
  }
  return others;
}

/** Only the bounds of a loop, or a condition. */
function withoutBodies(o: Outer): Outer {
  if (o.op === "for") return { ...o, body: [] };
  return o.op === "if" ? { ...o, then: [], else: [] } : o;
}
