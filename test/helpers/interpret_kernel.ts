/** A plain interpreter of the kernel tree: every invocation on its own, in step at barriers. The oracle of the printers. */

import { endOf } from "../../spec/kernel/build.ts";
import type { Expr, Kernel, Stmt } from "../../spec/kernel/tree.ts";
import { withScalarLoads } from "../../spec/kernel/vectors.ts";
import { bodiesOf } from "../../spec/kernel/walk.ts";

/** The contents of a binding, as u32 words. */
export type Words = Uint32Array;

const word = new DataView(new ArrayBuffer(8));
function toBits(type: string, value: number): number {
  if (type !== "f32") return value >>> 0;
  word.setFloat32(0, value);
  return word.getUint32(0);
}
function fromBits(type: string, bits: number): number {
  if (type !== "f32") return type === "i32" ? bits | 0 : bits;
  word.setUint32(0, bits);
  return word.getFloat32(0);
}

function unpackF16(half: number): number {
  const exponent = (half >> 10) & 31;
  const fraction = half & 1023;
  const sign = half & 0x8000 ? -1 : 1;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign *
    (exponent
      ? (1 + fraction / 1024) * 2 ** (exponent - 15)
      : fraction * 2 ** -24);
}

function roundF16(x: number): number {
  if (!Number.isFinite(x) || x === 0) return x;
  const exponent = Math.max(-14, Math.floor(Math.log2(Math.abs(x))));
  const ulp = 2 ** (exponent - 10);
  const scaled = x / ulp;
  const floor = Math.floor(scaled);
  const rest = scaled - floor;
  const up = rest > 0.5 || (rest === 0.5 && floor % 2 !== 0);
  const rounded = (up ? floor + 1 : floor) * ulp;
  return Math.abs(rounded) > 65504 ? Math.sign(x) * Infinity : rounded || 0 * x;
}

function roundEven(x: number): number {
  const floor = Math.floor(x);
  const rest = x - floor;
  const up = rest > 0.5 || (rest === 0.5 && floor % 2 !== 0);
  return (up ? floor + 1 : floor) || 0 * x;
}

const CALLS: { readonly [name: string]: (...args: number[]) => number } = {
  fma: (a, b, c) => Math.fround(a! * b!) + c!,
  exp: (x) => Math.exp(x!),
  log: (x) => Math.log(x!),
  sqrt: (x) => Math.sqrt(x!),
  rsqrt: (x) => 1 / Math.fround(Math.sqrt(x!)),
  sin: (x) => Math.sin(x!),
  cos: (x) => Math.cos(x!),
  tanh: (x) => Math.tanh(x!),
  abs: (x) => Math.abs(x!),
  floor: (x) => Math.floor(x!),
  ceil: (x) => Math.ceil(x!),
  trunc: (x) => Math.trunc(x!),
  round: (x) => roundEven(x!),
  sign: (x) => x! > 0 ? 1 : x! < 0 ? -1 : 0,
  pow: (x, y) => Math.pow(x!, y!),
  roundF16: (x) => roundF16(x!),
  unpackF16Lo: (x) => unpackF16(x! & 0xffff),
  unpackF16Hi: (x) => unpackF16(x! >>> 16),
};

/** Is told what invocations do. */
export interface Watch {
  /** An invocation, numbered over all workgroups, stores an element that there is. */
  store?(invocation: number, binding: string, index: number): void;
  /** It loads one. */
  load?(invocation: number, binding: string, index: number): void;
  /** It loads or stores where there is none. */
  outside?(invocation: number, binding: string, index: number): void;
  /** A loop has another turn. */
  turn?(): void;
  /** A result of f32 arithmetic; infinity for a number that an integer is not large enough for. */
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

/** What an invocation finds an expression to be. */
type Value = (at: Invocation) => number;

function divide(fn: string, type: string, a: number, b: number): number {
  const safe = b === 0 || (type === "i32" && a === -(2 ** 31) && b === -1)
    ? 1
    : b;
  return fn === "div" ? Math.trunc(a / safe) : a % safe;
}

function binary(fn: string, type: string): (a: number, b: number) => number {
  const f = type === "f32";
  switch (fn) {
    case "add":
      return (a, b) => a + b;
    case "sub":
      return (a, b) => a - b;
    case "mul":
      return f ? (a, b) => a * b : Math.imul;
    case "div":
      return f ? (a, b) => a / b : (a, b) => divide(fn, type, a, b);
    case "rem":
      return f
        ? (a, b) => a - Math.fround(b * Math.trunc(Math.fround(a / b)))
        : (a, b) => divide(fn, type, a, b);
    case "min":
      return (a, b) => b < a ? b : a;
    case "max":
      return (a, b) => a < b ? b : a;
    case "and":
    case "land":
      return (a, b) => a & b;
    case "or":
    case "lor":
      return (a, b) => a | b;
    case "xor":
      return (a, b) => a ^ b;
    case "shl":
      return (a, b) => a << (b & 31);
    case "shr":
      return type === "i32"
        ? (a, b) => a >> (b & 31)
        : (a, b) => a >>> (b & 31);
    case "eq":
      return (a, b) => +(a === b);
    case "ne":
      return (a, b) => +(a !== b);
    case "lt":
      return (a, b) => +(a < b);
    case "le":
      return (a, b) => +(a <= b);
    case "gt":
      return (a, b) => +(a > b);
    case "ge":
      return (a, b) => +(a >= b);
    default:
      throw new Error(fn);
  }
}

const WRAP: { readonly [type: string]: (value: number) => number } = {
  f32: Math.fround,
  i32: (value) => value | 0,
  u32: (value) => value >>> 0,
  bool: (value) => +!!value,
};

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

const known = new WeakMap<Expr, Value>();

/** The value of an expression, whose ops are looked at once. */
function valueOf(e: Expr): Value {
  const before = known.get(e);
  if (before) return before;
  const value = newValue(e);
  known.set(e, value);
  return value;
}

function evaluate(e: Expr, at: Invocation): number {
  return valueOf(e)(at);
}

function newValue(e: Expr): Value {
  const wrap = WRAP[e.type]!;
  switch (e.op) {
    case "const": {
      const value = wrap(Number(e.value));
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
        return fromBits(e.type, words[inside]!);
      };
    }
    case "shared": {
      const of = valueOf(e.index);
      return (at) => {
        const words = at.memory.get(e.array)!;
        const index = of(at) >>> 0;
        return fromBits(e.type, words[index < words.length ? index : 0]!);
      };
    }
    case "unary": {
      const a = valueOf(e.a);
      if (e.fn === "neg") return (at) => wrap(-a(at));
      return e.type === "bool" ? (at) => +!a(at) : (at) => wrap(~a(at));
    }
    case "binary": {
      const [a, b] = [valueOf(e.a), valueOf(e.b)];
      const of = binary(e.fn, e.a.type);
      return reported(e.type, (at) => wrap(of(a(at), b(at))));
    }
    case "call": {
      const args = e.args.map(valueOf);
      const of = CALLS[e.fn]!;
      return reported(
        e.type,
        (at) => Math.fround(of(...args.map((arg) => arg(at)))),
      );
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
      // As WGSL says, what is no number is true.
      if (e.type === "bool") return (at) => +(a(at) !== 0);
      if (e.a.type !== "f32") return (at) => wrap(a(at));
      const [low, high] = e.type === "i32"
        ? [-(2 ** 31), 2 ** 31 - 1] as const
        : [0, 2 ** 32 - 1] as const;
      return (at) => {
        const value = a(at);
        if (value < low || value > high) at.watch.float?.(Infinity);
        // An integer has no zero with a sign.
        return Number.isNaN(value)
          ? 0
          : Math.trunc(Math.min(high, Math.max(low, value))) + 0;
      };
    }
    case "bitcast": {
      const a = valueOf(e.a);
      return (at) => fromBits(e.type, toBits(e.a.type, a(at)));
    }
  }
}

/** Statements in which an invocation waits for others. */
function waitingIn(body: readonly Stmt[], found = new Set<Stmt>()): Set<Stmt> {
  for (const s of body) {
    const inner = bodiesOf(s);
    for (const list of inner) waitingIn(list, found);
    const waits = inner.flat().some((part) => found.has(part));
    if (s.op === "barrier" || waits) found.add(s);
  }
  return found;
}

/** The turns of a loop, each with its counter set. What the turn before declared is declared again before it is used. */
function* turnsOf(
  s: Extract<Stmt, { op: "for" }>,
  at: Invocation,
): Generator<void> {
  const to = evaluate(endOf(s), at);
  const step = evaluate(s.step, at);
  const first = evaluate(s.from, at);
  const scope = new Map<string, number>();
  at.scopes.push(scope);
  for (let i = first; i < to; i += step) {
    at.watch.turn?.();
    scope.set(s.name, i);
    yield;
  }
  at.scopes.pop();
}

/** Run a statement in which nobody waits. */
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
      const bits = toBits(s.value.type, evaluate(s.value, at));
      if (index >= words.length) {
        if (s.op === "store") at.watch.outside?.(at.number, s.binding, index);
        return;
      }
      words[index] = bits;
      if (s.op === "store") at.watch.store?.(at.number, s.binding, index);
      return;
    }
    case "for":
      for (const _ of turnsOf(s, at)) for (const part of s.body) run(part, at);
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

/** Run statements; gives way where the invocation waits. */
function* execute(body: readonly Stmt[], at: Invocation): Generator<void> {
  for (const s of body) {
    if (!at.waiting.has(s)) run(s, at);
    else if (s.op === "for") {
      for (const _ of turnsOf(s, at)) yield* execute(s.body, at);
    } else if (s.op === "if") {
      const taken = evaluate(s.condition, at) ? s.then : s.else ?? [];
      at.scopes.push(new Map());
      yield* execute(taken, at);
      at.scopes.pop();
    } else yield;
  }
}

/** Run all workgroups of a kernel over its bindings, in place. */
export function interpretKernel(
  kernel: Kernel,
  bindings: { readonly [name: string]: Words },
  workgroups: readonly [number, number, number],
  watch: Watch = {},
): void {
  const [gx, gy, gz] = workgroups;
  const body = withScalarLoads(kernel.body);
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
