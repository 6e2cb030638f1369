/** Work of invocations, counted on the kernel tree with the known data. */

import { STORED_BYTES } from "../dtype.ts";
import { exactJson } from "./exact_json.ts";
import { BINARY, converted, FUNCTIONS, UNARY } from "./semantics.ts";
import type { Expr, Kernel, ScalarType, Stmt } from "./tree.ts";
import { scalarLoads } from "./vectors.ts";
import { someStatement, walkStatements } from "./walk.ts";

/** Work of an invocation. If a condition is unknown, the more expensive branch counts. */
export interface KernelWork {
  /** Multiply-adds: `fma` nodes. */
  readonly multiplyAdds: number;
  /** All other arithmetic, including index arithmetic, loads and stores; some count as several, see below. */
  readonly operations: number;
  /** Bytes loaded from and stored to each binding, in the order of the kernel's bindings. */
  readonly loads: readonly number[];
  readonly stores: readonly number[];
  /**
   * False if neither the bounds of a loop nor its maximum number of iterations are known; its body is then counted
   * once.
   */
  readonly exact: boolean;
}

/** Operations per load or store whose index differs between invocations. */
const SCATTERED_OPERATIONS = 5;

/** An invocation, and the known data. Default: only constants are known. */
export interface Invocation {
  readonly group: readonly [number, number, number];
  readonly lane: number;
  /** An integer in a binding. Undefined: unknown. */
  readonly load?: (binding: string, index: number) => number | undefined;
}

/** Integers and booleans (0 and 1); floats are never known. */
type Value = number | undefined;

/** Counts the work of one invocation. */
export function kernelWork(kernel: Kernel, at?: Invocation): KernelWork {
  const walk = new Walk(kernel, at);
  walk.block(kernel.body, 1);
  const { exact, totals } = walk;
  const n = kernel.bindings.length;
  return {
    multiplyAdds: totals[FMA]!,
    operations: totals[OTHER]!,
    loads: totals.slice(BINDINGS, BINDINGS + n),
    stores: totals.slice(BINDINGS + n),
    exact,
  };
}

/** Indices of totals: multiply-adds, operations, bytes loaded from each binding, bytes stored to each. */
const FMA = 0, OTHER = 1, BINDINGS = 2;

class Walk {
  exact = true;
  totals: number[];
  readonly #at: Invocation | undefined;
  readonly #known = new Map<string, Value>();
  /** Variables that may differ between the invocations of a workgroup. */
  readonly #varying = new Set<string>();
  /** Whether the last evaluated value may differ. */
  #varies = false;
  /** Whether an enclosing condition may differ. */
  #diverged = false;
  readonly #loads = new Map<string, number>();
  readonly #stores = new Map<string, number>();

  constructor({ bindings }: Kernel, at: Invocation | undefined) {
    this.#at = at;
    this.totals = new Array<number>(BINDINGS + 2 * bindings.length).fill(0);
    for (const [i, { name }] of bindings.entries()) {
      this.#loads.set(name, BINDINGS + i);
      this.#stores.set(name, BINDINGS + bindings.length + i);
    }
  }

  #add(at: number, n: number): void {
    this.totals[at]! += n;
  }

  block(body: readonly Stmt[], times: number): void {
    for (const s of body) this.#statement(s, times);
  }

  #statement(s: Stmt, times: number): void {
    switch (s.op) {
      case "let":
      case "var":
      case "set":
        this.#known.set(s.name, this.#value(s.value, times));
        this.#mark(s.name, this.#varies);
        return;
      case "loads":
        return this.block(scalarLoads(s), times);
      case "store": {
        this.#add(
          this.#stores.get(s.binding)!,
          times * bytesOf(s.value.type),
        );
        this.#value(s.index, times);
        this.#access(times);
        this.#value(s.value, times);
        return;
      }
      case "sharedStore":
        this.#add(OTHER, times);
        this.#value(s.index, times);
        this.#value(s.value, times);
        return;
      case "if":
        return this.#branch(s, times);
      case "for":
        return this.#loop(s, times);
    }
  }

  #branch(s: Stmt & { readonly op: "if" }, times: number): void {
    const condition = this.#value(s.condition, times);
    const outside = this.#diverged;
    this.#diverged ||= this.#varies;
    if (condition !== undefined) {
      this.block(condition ? s.then : s.else ?? [], times);
    } else {
      const before = [...this.totals];
      this.block(s.then, times);
      const first = this.totals;
      this.totals = before;
      this.block(s.else ?? [], times);
      this.totals = this.totals.map((n, i) => Math.max(n, first[i]!));
      this.#forget([s]);
    }
    this.#diverged = outside;
  }

  #loop(s: Stmt & { readonly op: "for" }, times: number): void {
    const [from, to, step] = this.#all(times, s.from, s.to, s.step);
    this.#mark(s.name, this.#varies);
    if (from === undefined || to === undefined || !step) {
      const max = maxIterations(s);
      this.exact &&= max !== undefined;
      this.#forget(s.body);
      this.#known.set(s.name, undefined);
      this.block(s.body, times * (max ?? 1));
      return this.#forget(s.body);
    }
    const iterations = Math.max(0, Math.ceil((to - from) / step));
    const iteration = (i: number) => {
      this.#known.set(s.name, from + i * step);
      this.block(s.body, times);
    };
    if (iterations <= 2 || !isSteady(s.body)) {
      for (let i = 0; i < iterations; i++) iteration(i);
      return;
    }
    // If the first and the last iteration do the same work, so do those between.
    const before = [...this.totals];
    iteration(0);
    const first = this.totals.map((n, i) => n - before[i]!);
    const middle = [...this.totals];
    iteration(iterations - 1);
    if (this.totals.every((n, i) => n - middle[i]! === first[i])) {
      this.totals = this.totals.map((n, i) => n + (iterations - 2) * first[i]!);
    } else for (let i = 1; i < iterations - 1; i++) iteration(i);
  }

  #mark(name: string, varies: boolean): void {
    if (varies || this.#diverged) this.#varying.add(name);
    else this.#varying.delete(name);
  }

  /** Counts a load or store whose index was evaluated last. */
  #access(times: number): void {
    this.#add(OTHER, this.#varies ? times * SCATTERED_OPERATIONS : times);
  }

  /** Evaluates several values; a result varies if one of them does. */
  #all(times: number, ...es: readonly Expr[]): Value[] {
    let varies = false;
    const values = es.map((e) => {
      const value = this.#value(e, times);
      varies ||= this.#varies;
      return value;
    });
    this.#varies = varies;
    return values;
  }

  #value(e: Expr, times: number): Value {
    switch (e.op) {
      case "const":
        this.#varies = false;
        return e.type === "f32" ? undefined : Number(e.value);
      case "local":
        this.#varies = this.#varying.has(e.name);
        return this.#known.get(e.name);
      case "id":
        this.#varies = e.name === "local";
        return this.#id(e.name);
      case "load": {
        this.#add(this.#loads.get(e.binding)!, times * bytesOf(e.type));
        const index = this.#value(e.index, times);
        this.#access(times);
        return index === undefined || e.type === "f32" || e.bytes
          ? undefined
          : this.#at?.load?.(e.binding, index);
      }
      case "shared":
        this.#add(OTHER, times);
        this.#value(e.index, times);
        return undefined;
      case "bitcast":
        this.#value(e.a, times);
        return undefined;
      case "unary": {
        this.#add(OTHER, times);
        const a = this.#value(e.a, times);
        return a === undefined ? undefined : UNARY[e.type][e.fn]?.(a);
      }
      case "convert": {
        this.#add(OTHER, times);
        const a = this.#value(e.a, times);
        return a === undefined || e.type === "f32"
          ? undefined
          : converted(a, e.a.type, e.type);
      }
      case "select": {
        this.#add(OTHER, times);
        const [condition, a, b] = this.#all(times, e.condition, e.a, e.b);
        return condition === undefined ? undefined : condition ? a : b;
      }
      case "call":
        if (e.fn === "fma") this.#add(FMA, times);
        else this.#add(OTHER, times * FUNCTIONS[e.fn].operations);
        this.#all(times, ...e.args);
        return undefined;
      case "binary": {
        this.#add(OTHER, times);
        // `#all` without a list, for most of a tree.
        const a = this.#value(e.a, times);
        const varies = this.#varies;
        const b = this.#value(e.b, times);
        this.#varies ||= varies;
        return binaryValue(e, a, b);
      }
    }
  }

  #id(name: "group.x" | "group.y" | "group.z" | "local"): Value {
    if (!this.#at) return undefined;
    const { group, lane } = this.#at;
    if (name === "local") return lane;
    return group[name === "group.x" ? 0 : name === "group.y" ? 1 : 2];
  }

  #forget(body: readonly Stmt[]): void {
    walkStatements(body, (s) => {
      if (s.op === "set") this.#known.set(s.name, undefined);
    });
  }
}

function bytesOf(type: ScalarType): number {
  return type === "bool" ? 4 : STORED_BYTES[type];
}

/** Whether iterations of a loop pass no integers on, so that they can be counted in any order. */
function isSteady(body: readonly Stmt[]): boolean {
  return !someStatement(body, (s) => s.op === "set" && s.value.type !== "f32");
}

/** Maximum iterations of a loop whose end is the minimum of several values or relative to its start. */
function maxIterations(
  { from, to, step }: Stmt & { readonly op: "for" },
): number | undefined {
  if (to.op !== "binary" || to.fn !== "min") return undefined;
  const { b } = to;
  if (b.op !== "binary" || b.fn !== "add" || step.op !== "const") {
    return undefined;
  }
  const same = exactJson(b.a) === exactJson(from) && b.b.op === "const";
  return same ? Math.ceil(Number(b.b.value) / Number(step.value)) : undefined;
}

function binaryValue(
  { fn, a: { type } }: Expr & { readonly op: "binary" },
  a: Value,
  b: Value,
): Value {
  if (fn === "land" && (a === 0 || b === 0)) return 0;
  if (fn === "lor" && (a === 1 || b === 1)) return 1;
  if (a === undefined || b === undefined) return undefined;
  return BINARY[type][fn]?.(a, b);
}
