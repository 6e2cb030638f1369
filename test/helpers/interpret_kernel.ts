/** Interpreter of kernel trees: runs each invocation separately, in step at barriers. Reference for the printers. */

import { endOf } from "../../spec/kernel/build.ts";
import type { Expr, Kernel, Stmt } from "../../spec/kernel/tree.ts";
import {
  BINARY,
  bitsOf,
  converted,
  FUNCTIONS,
  ofBits,
  UNARY,
} from "../../spec/kernel/semantics.ts";
import { withScalarLoads, withWordLoads } from "../../spec/kernel/vectors.ts";
import { bodiesOf } from "../../spec/kernel/walk.ts";

/** Contents of a binding, as u32 words. */
export type Words = Uint32Array;

/** Callbacks for actions of invocations. */
export interface Watch {
  /** An invocation, numbered over all workgroups, stores an existing element. */
  store?(invocation: number, binding: string, index: number): void;
  /** An invocation loads an existing element. */
  load?(invocation: number, binding: string, index: number): void;
  /** An invocation loads or stores out of bounds. */
  outside?(invocation: number, binding: string, index: number): void;
  /** A loop starts an iteration. */
  iteration?(): void;
  /** Result of f32 arithmetic. Infinity: a conversion to an integer overflows. */
  float?(value: number): void;
}

interface Invocation {
  readonly number: number;
  readonly watch: Watch;
  readonly ids: { readonly [id: string]: number };
  readonly memory: Map<string, Words>;
  readonly scopes: Map<string, number>[];
  readonly waiting: ReadonlySet<Stmt>;
}

/** Evaluates an expression in an invocation. */
type Value = (at: Invocation) => number;

function reported(type: string, value: Value): Value {
  if (type !== "f32") return value;
  return (at) => {
    const result = value(at);
    at.watch.float?.(result);
    return result;
  };
}

function scopeOf(name: string, { scopes }: Invocation): Map<string, number> {
  for (let i = scopes.length - 1; i >= 0; i--) {
    if (scopes[i]!.has(name)) return scopes[i]!;
  }
  throw new Error(`no variable '${name}'`);
}

const evaluators = new WeakMap<Expr, Value>();

/** Returns the evaluator of an expression, built once. */
function valueOf(e: Expr): Value {
  const before = evaluators.get(e);
  if (before) return before;
  const value = newValue(e);
  evaluators.set(e, value);
  return value;
}

function evaluate(e: Expr, at: Invocation): number {
  return valueOf(e)(at);
}

function newValue(e: Expr): Value {
  switch (e.op) {
    case "const": {
      const value = converted(Number(e.value), e.type, e.type);
      return () => value;
    }
    case "local":
      return (at) => scopeOf(e.name, at).get(e.name)!;
    case "id":
      return (at) => at.ids[e.name]!;
    case "load": {
      const of = valueOf(e.index);
      return (at) => {
        const words = at.memory.get(e.binding)!;
        const index = of(at) >>> 0;
        const inside = index < words.length ? index : 0;
        if (inside !== index) at.watch.outside?.(at.number, e.binding, index);
        at.watch.load?.(at.number, e.binding, inside);
        return ofBits(e.type, words[inside]!);
      };
    }
    case "shared": {
      const of = valueOf(e.index);
      return (at) => {
        const words = at.memory.get(e.array)!;
        const index = of(at) >>> 0;
        return ofBits(e.type, words[index < words.length ? index : 0]!);
      };
    }
    case "unary": {
      const a = valueOf(e.a);
      const of = UNARY[e.type][e.fn]!;
      return (at) => of(a(at));
    }
    case "binary": {
      const [a, b] = [valueOf(e.a), valueOf(e.b)];
      const of = BINARY[e.a.type][e.fn]!;
      return reported(e.type, (at) => of(a(at), b(at)));
    }
    case "call": {
      const args = e.args.map(valueOf);
      const { of } = FUNCTIONS[e.fn];
      return reported(e.type, (at) => {
        const result = of(Math.fround, ...args.map((arg) => arg(at)));
        return converted(result, e.type, e.type);
      });
    }
    case "select": {
      const [a, b] = [valueOf(e.a), valueOf(e.b)];
      const condition = valueOf(e.condition);
      return (at) => {
        const [yes, no] = [a(at), b(at)];
        return condition(at) ? yes : no;
      };
    }
    case "convert": {
      const a = valueOf(e.a);
      const { type, a: { type: from } } = e;
      if (from !== "f32" || type === "f32" || type === "bool") {
        return (at) => converted(a(at), from, type);
      }
      return (at) => {
        const value = a(at);
        const result = converted(value, from, type);
        const outside = !Number.isNaN(value) && Math.trunc(value) !== result;
        if (outside) at.watch.float?.(Infinity);
        return result;
      };
    }
    case "bitcast": {
      const a = valueOf(e.a);
      return (at) => ofBits(e.type, bitsOf(e.a.type, a(at)));
    }
  }
}

/** Statements that contain a barrier. */
function waitingIn(body: readonly Stmt[], found = new Set<Stmt>()): Set<Stmt> {
  for (const s of body) {
    const inner = bodiesOf(s);
    for (const list of inner) waitingIn(list, found);
    const waits = inner.flat().some((part) => found.has(part));
    if (s.op === "barrier" || waits) found.add(s);
  }
  return found;
}

/**
 * Yields for each iteration of a loop, with its counter set. All iterations share a scope: each declares its variables
 * before use.
 */
function* iterationsOf(
  s: Extract<Stmt, { op: "for" }>,
  at: Invocation,
): Generator<void> {
  const to = evaluate(endOf(s), at);
  const step = evaluate(s.step, at);
  const first = evaluate(s.from, at);
  const scope = new Map<string, number>();
  at.scopes.push(scope);
  for (let i = first; i < to; i += step) {
    at.watch.iteration?.();
    scope.set(s.name, i);
    yield;
  }
  at.scopes.pop();
}

/** Runs a statement without barriers. */
function run(s: Stmt, at: Invocation): void {
  switch (s.op) {
    case "let":
    case "var":
      at.scopes.at(-1)!.set(s.name, evaluate(s.value, at));
      return;
    case "set":
      scopeOf(s.name, at).set(s.name, evaluate(s.value, at));
      return;
    case "store":
    case "sharedStore": {
      const words = at.memory.get(s.op === "store" ? s.binding : s.array)!;
      const index = evaluate(s.index, at) >>> 0;
      const bits = bitsOf(s.value.type, evaluate(s.value, at));
      if (index >= words.length) {
        if (s.op === "store") at.watch.outside?.(at.number, s.binding, index);
        return;
      }
      words[index] = bits;
      if (s.op === "store") at.watch.store?.(at.number, s.binding, index);
      return;
    }
    case "for":
      for (const _ of iterationsOf(s, at)) {
        for (const part of s.body) run(part, at);
      }
      return;
    case "if": {
      const taken = evaluate(s.condition, at) ? s.then : s.else ?? [];
      at.scopes.push(new Map());
      for (const part of taken) run(part, at);
      at.scopes.pop();
      return;
    }
    default:
      throw new Error(s.op);
  }
}

/** Runs statements; yields at barriers. */
function* execute(body: readonly Stmt[], at: Invocation): Generator<void> {
  for (const s of body) {
    if (!at.waiting.has(s)) run(s, at);
    else if (s.op === "for") {
      for (const _ of iterationsOf(s, at)) yield* execute(s.body, at);
    } else if (s.op === "if") {
      const taken = evaluate(s.condition, at) ? s.then : s.else ?? [];
      at.scopes.push(new Map());
      yield* execute(taken, at);
      at.scopes.pop();
    } else yield;
  }
}

/** Runs all workgroups of a kernel. Updates its bindings in place. */
export function interpretKernel(
  kernel: Kernel,
  bindings: { readonly [name: string]: Words },
  workgroups: readonly [number, number, number],
  watch: Watch = {},
): void {
  const [gx, gy, gz] = workgroups;
  const body = withWordLoads(withScalarLoads(kernel.body));
  const waiting = waitingIn(body);
  for (let g = 0; g < gx * gy * gz; g++) {
    const memory = new Map(Object.entries(bindings));
    for (const { name, length } of kernel.shared) {
      memory.set(name, new Uint32Array(length));
    }
    const running = Array.from(
      { length: kernel.workgroupSize },
      (_, local) =>
        execute(body, {
          number: g * kernel.workgroupSize + local,
          watch,
          waiting,
          ids: {
            "group.x": g % gx,
            "group.y": Math.floor(g / gx) % gy,
            "group.z": Math.floor(g / (gx * gy)),
            local,
          },
          memory,
          scopes: [new Map()],
        }),
    );
    let left = running;
    while (left.length > 0) {
      left = left.filter((invocation) => !invocation.next().done);
    }
  }
}
