/**
 * Barriers divide a kernel into phases: each phase runs for all invocations of a workgroup before the next one starts.
 * `for` and `if` that contain barriers are outside, around phases.
 */

import type { Expr, Kernel, Stmt } from "../../spec/kernel/tree.ts";
import {
  addLocals,
  expressionsOf,
  someExpression,
  someNode,
  someStatement,
  walkExpression,
  walkExpressions,
} from "../../spec/kernel/walk.ts";
import type { Loop } from "./accesses.ts";
import { hasBarrier, namesIn } from "./analyze.ts";
import type { Shapes } from "./shape.ts";

/** A list of statements without barriers. */
export interface Phase {
  readonly op: "phase";
  body: readonly Stmt[];
  /** Variables that outlive a phase, stored in memory per invocation: read at its start, written at its end. */
  readonly reads: Set<string>;
  readonly writes: Set<string>;
}

/** Code that runs once per workgroup. */
export type Outer =
  | Phase
  /** Sets arrays of workgroup memory to zero, as at the start of a workgroup. */
  | { readonly op: "zero"; readonly arrays: ReadonlySet<string> }
  | {
    readonly op: "for";
    readonly loop: Loop;
    readonly body: readonly Outer[];
  }
  | {
    readonly op: "if";
    readonly condition: Expr;
    readonly then: readonly Outer[];
    readonly else: readonly Outer[];
  };

/** The bodies of a loop or a condition. */
function bodiesIn(o: Outer): readonly (readonly Outer[])[] {
  if (o.op === "for") return [o.body];
  return o.op === "if" ? [o.then, o.else] : [];
}

/** The bounds of a loop, or a condition. */
function boundsOf(o: Outer): readonly Expr[] {
  if (o.op === "for") return expressionsOf(o.loop);
  return o.op === "if" ? [o.condition] : [];
}

/** All elements of a list, outer ones first. */
function allIn(list: readonly Outer[]): Outer[] {
  return list.flatMap((o) => [o, ...bodiesIn(o).flatMap(allIn)]);
}

/** The phases of a list, in order. */
export function phasesIn(list: readonly Outer[]): Phase[] {
  return allIn(list).filter((o) => o.op === "phase");
}

function splitBody(
  kernel: Kernel,
  body: readonly Stmt[],
  shapes: Shapes,
): Outer[] {
  const outer: Outer[] = [];
  let run: Stmt[] = [];
  const flush = () => {
    if (run.length > 0) {
      outer.push({
        op: "phase",
        body: run,
        reads: new Set(),
        writes: new Set(),
      });
    }
    run = [];
  };
  const demand = (e: Expr) => {
    if (shapes.of(e).group && shapes.isUniform(e)) return;
    throw new Error(
      `Cannot print kernel '${kernel.name}': not every invocation of the workgroup reaches a barrier. ` +
        "Make the bounds and conditions around it uniform",
    );
  };
  for (const s of body) {
    if (!hasBarrier(s)) {
      run.push(s);
      continue;
    }
    flush();
    if (s.op === "for") {
      for (const e of expressionsOf(s)) demand(e);
      outer.push({
        op: "for",
        loop: s,
        body: splitBody(kernel, s.body, shapes),
      });
    } else if (s.op === "if") {
      demand(s.condition);
      outer.push({
        op: "if",
        condition: s.condition,
        then: splitBody(kernel, s.then, shapes),
        else: splitBody(kernel, s.else ?? [], shapes),
      });
    }
  }
  flush();
  return outer;
}

/** The phases of a kernel, and the variables that need memory because they outlive a phase. */
export function splitPhases(
  kernel: Kernel,
  body: readonly Stmt[],
  shapes: Shapes,
): { outer: readonly Outer[]; crossing: ReadonlySet<string> } {
  const outer = splitBody(kernel, body, shapes);
  const phases = phasesIn(outer);
  const bounds = new Set<string>();
  for (const e of allIn(outer).flatMap(boundsOf)) addLocals(e, bounds);
  // Without barriers there is only one phase.
  if (phases.length < 2 && bounds.size === 0) {
    return { outer: zeroedWhereUsed(outer), crossing: new Set() };
  }

  const declared = new Map<string, Phase>();
  for (const phase of phases) {
    for (const s of phase.body) {
      if (s.op === "let" || s.op === "var") declared.set(s.name, phase);
    }
  }
  const crossing = new Set<string>();
  const used = phases.map((phase) => ({ phase, names: namesIn(phase.body) }));
  for (const { phase, names } of used) {
    for (const name of names) {
      const declaredIn = declared.get(name);
      if (declaredIn && declaredIn !== phase && needsMemory(name, shapes)) {
        crossing.add(name);
      }
    }
  }
  for (const name of bounds) {
    if (declared.has(name) && needsMemory(name, shapes)) crossing.add(name);
  }
  if (kernel.workgroupSize !== shapes.lanes) {
    repeatDefinitions(phases, crossing, { declared, shapes });
    for (const name of crossing) shapes.variables.get(name)!.inMemory = true;
  }
  for (const { phase, names } of used) {
    for (const name of names) {
      if (!crossing.has(name)) continue;
      if (declared.get(name) === phase) phase.writes.add(name);
      else {
        phase.reads.add(name);
        if (isSetIn(name, phase.body)) phase.writes.add(name);
      }
    }
  }
  return { outer: zeroedWhereUsed(outer), crossing };
}

/**
 * Recomputes arithmetic of invocation numbers in each phase instead of storing it. Removes these names from `crossing`.
 */
function repeatDefinitions(
  phases: readonly Phase[],
  crossing: Set<string>,
  { declared, shapes }: {
    readonly declared: ReadonlyMap<string, Phase>;
    readonly shapes: Shapes;
  },
): void {
  const again = new Map<string, Extract<Stmt, { op: "let" }>>();
  for (const { body } of phases) {
    for (const s of body) {
      if (s.op !== "let" || shapes.variables.get(s.name)!.shape.group) continue;
      if (isArithmetic(s.value, (name) => again.has(name), shapes)) {
        again.set(s.name, s);
      }
    }
  }
  for (const phase of phases) {
    const needed = namesIn(phase.body);
    for (const [name, { value }] of [...again].reverse()) {
      if (needed.has(name)) addLocals(value, needed);
    }
    const missing = [...again.values()].filter(({ name }) =>
      needed.has(name) && declared.get(name) !== phase
    );
    const at = phase.body.findIndex((s) => !isForAll(s, shapes));
    const split = at < 0 ? phase.body.length : at;
    phase.body = [
      ...phase.body.slice(0, split),
      ...missing,
      ...phase.body.slice(split),
    ];
  }
  for (const name of again.keys()) crossing.delete(name);
}

/**
 * Whether a value is integer arithmetic of values available in a phase: invocation numbers, workgroup-uniform values,
 * and `known` names.
 */
function isArithmetic(
  value: Expr,
  known: (name: string) => boolean,
  shapes: Shapes,
): boolean {
  return !someNode(value, (e) => {
    const plain = e.op === "const" || e.op === "id" || e.op === "unary" ||
      e.op === "binary" || e.op === "select";
    const variable = e.op === "local" && shapes.variables.get(e.name);
    const held = variable && variable.kind === "let" &&
      (variable.shape.group || known(variable.name));
    return e.type === "f32" || !plain && !held;
  });
}

/** Whether a statement declares a workgroup-uniform value. */
export function isForAll(s: Stmt, { variables }: Shapes): boolean {
  return s.op === "let" && variables.get(s.name)!.shape.group;
}

/** Number of first invocations of a workgroup that a phase needs: others fail its only condition. */
export function invocationsOf(
  { body, writes }: Phase,
  workgroupSize: number,
): number {
  const last = body.at(-1);
  if (writes.size > 0 || last?.op !== "if" || last.else) return workgroupSize;
  const definitions = new Map<string, Expr>();
  for (const s of body.slice(0, -1)) {
    if (s.op !== "let") return workgroupSize;
    definitions.set(s.name, s.value);
  }
  const { condition } = last;
  if (condition.op !== "binary" || condition.fn !== "lt") return workgroupSize;
  const { a, b } = condition;
  const number = a.op === "local" ? definitions.get(a.name) : a;
  if (b.op !== "const" || b.type !== "u32" || !number) return workgroupSize;
  const each = invocationsOfOne(number);
  if (each === Infinity) return workgroupSize;
  return Math.min(workgroupSize, each * Number(b.value));
}

/**
 * Number of consecutive invocations with one value: 1 for their number, n for that divided by n; Infinity if unknown.
 */
function invocationsOfOne(e: Expr): number {
  if (e.op === "id" && e.name === "local") return 1;
  const known = e.op === "binary" && e.fn === "div" && e.a.op === "id" &&
    e.a.name === "local" && e.b.op === "const";
  // A divisor of 0 is 1.
  return known ? Number(e.b.value) || 1 : Infinity;
}

/**
 * Zeroes arrays of workgroup memory that are read, before the first use of any, in a branch if no other branch uses
 * them: few rows of a matmul, as in decode, use none or small ones.
 */
function zeroedWhereUsed(list: readonly Outer[]): readonly Outer[] {
  const at = list.findIndex(usesShared);
  const first = list[at];
  if (!first) return list;
  const alone = !list.slice(at + 1).some(usesShared);
  const used: readonly Outer[] =
    alone && first.op === "if" && !readsShared(first.condition)
      ? [{
        ...first,
        then: zeroedWhereUsed(first.then),
        else: zeroedWhereUsed(first.else),
      }]
      : [{ op: "zero", arrays: arraysReadIn(list.slice(at)) }, first];
  return [...list.slice(0, at), ...used, ...list.slice(at + 1)];
}

/** Arrays of workgroup memory that are read. */
export function arraysReadIn(list: readonly Outer[]): Set<string> {
  const arrays = new Set<string>();
  const visit = (e: Expr) => {
    if (e.op === "shared") arrays.add(e.array);
  };
  for (const o of allIn(list)) {
    if (o.op === "phase") walkExpressions(o.body, visit);
    else boundsOf(o).forEach((e) => walkExpression(e, visit));
  }
  return arrays;
}

function usesShared(outer: Outer): boolean {
  return allIn([outer]).some((o) =>
    o.op === "phase"
      ? someStatement(o.body, ({ op }) => op === "sharedStore") ||
        someExpression(o.body, ({ op }) => op === "shared")
      : boundsOf(o).some(readsShared)
  );
}

function readsShared(e: Expr): boolean {
  return someNode(e, ({ op }) => op === "shared");
}

/** A workgroup-uniform `let` keeps its value in its local between phases. */
function needsMemory(name: string, shapes: Shapes): boolean {
  const variable = shapes.variables.get(name)!;
  return variable.kind === "var" || !variable.shape.group;
}

function isSetIn(name: string, body: readonly Stmt[]): boolean {
  return someStatement(body, (s) => s.op === "set" && s.name === name);
}
