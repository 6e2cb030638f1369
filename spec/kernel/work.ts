/** Work of invocations, counted on the kernel tree with the known data. */

import {
  BINDINGS,
  type Cost,
  type Counted,
  type CountedBody,
  countedBody,
  type Evaluated,
  FMA,
  OTHER,
  type Read,
  SCATTERED_MORE,
  type Sources,
  type State,
  unknown,
  type Value,
} from "./counted.ts";
import type { Kernel } from "./tree.ts";

/** Work of an invocation. If a condition is unknown, the more expensive branch counts. */
export interface KernelWork {
  /** Multiply-adds: `fma` nodes. */
  readonly multiplyAdds: number;
  /** All other arithmetic, including index arithmetic, loads and stores; some count as several, see `counted.ts`. */
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

/** An invocation, and the known data. Default: only constants are known. */
export interface Invocation {
  readonly group: readonly [number, number, number];
  readonly lane: number;
  /** An integer in a binding. Undefined: unknown. */
  readonly load?: (binding: string, index: number) => number | undefined;
}

/** Counted totals of invocations. */
interface Totals {
  readonly exact: boolean;
  readonly totals: readonly number[];
}

/**
 * Invocations with equal decisions so far: values of conditions and of bounds of loops. Work depends on nothing else.
 */
interface Path {
  /** Variables that are set before the next decision. */
  readonly sets: (readonly [variable: number, value: Evaluated])[];
  decision?: Evaluated;
  /** What follows each value of the decision. */
  readonly next: Map<Value, Path>;
  result?: Totals;
}

function newPath(): Path {
  return { sets: [], next: new Map() };
}

/** A body, and its counted invocations. */
interface Body {
  readonly counted: CountedBody;
  readonly path: Path;
}

const bodies = new WeakMap<Kernel["body"], Body>();

/** Counts the work of one invocation. Invocations with equal decisions are counted once. */
export function kernelWork(kernel: Kernel, at?: Invocation): KernelWork {
  const body = bodies.get(kernel.body) ??
    { counted: countedBody(kernel.body), path: newPath() };
  bodies.set(kernel.body, body);
  const { counted } = body;
  const { exact, totals } = knownTotals(body, at) ?? count(body, at);
  const bytes = (stored: 0 | 1) =>
    kernel.bindings.map(({ name }) => {
      const number = counted.bindings.get(name);
      return number === undefined ? 0 : totals[BINDINGS + 2 * number + stored]!;
    });
  return {
    multiplyAdds: totals[FMA]!,
    operations: totals[OTHER]!,
    loads: bytes(0),
    stores: bytes(1),
    exact,
  };
}

/** The result of an invocation with the same decisions. Undefined: there is none. */
function knownTotals(
  { counted, path: start }: Body,
  at: Invocation | undefined,
): Totals | undefined {
  const values = noValues(counted);
  const state: State = { values, read: (what) => valueOf(what, at) };
  let path: Path | undefined = start;
  while (path) {
    for (const [variable, value] of path.sets) values[variable] = value(state);
    if (!path.decision) return path.result;
    path = path.next.get(path.decision(state));
  }
  return undefined;
}

function noValues({ variables }: CountedBody): Value[] {
  return new Array<Value>(variables).fill(undefined);
}

function valueOf(read: Read, at: Invocation | undefined): Value {
  if (!at) return undefined;
  switch (read) {
    case "local":
      return at.lane;
    case "group.x":
      return at.group[0];
    case "group.y":
      return at.group[1];
    case "group.z":
      return at.group[2];
    default:
      return at.load?.(read.binding, read.index);
  }
}

function count(
  { counted, path }: Body,
  at: Invocation | undefined,
): Totals {
  const walk = new Walk(counted, path, (what) => valueOf(what, at));
  walk.block(counted.body, 1);
  const { exact, totals } = walk;
  return walk.end({ exact, totals });
}

/** Maximum decisions and set variables of a stored path. */
const MAX_PATH = 1024;

class Walk implements State {
  exact = true;
  totals: number[];
  readonly values: Value[];
  readonly read: (what: Read) => Value;
  /** 1: variables that may differ between the invocations of a workgroup. */
  readonly #varying: Uint8Array;
  /** Whether an enclosing condition may differ. */
  #diverged = false;
  /** The decisions so far. Undefined: there are too many. */
  #path: Path | undefined;
  #length = 0;

  constructor(
    counted: CountedBody,
    path: Path,
    read: (what: Read) => Value,
  ) {
    this.read = read;
    this.totals = new Array<number>(BINDINGS + 2 * counted.bindings.size)
      .fill(0);
    this.values = noValues(counted);
    this.#varying = new Uint8Array(counted.variables);
    this.#path = path;
  }

  /** Stores the result of the decisions. */
  end(result: Totals): Totals {
    if (this.#path) this.#path.result = result;
    return result;
  }

  #decide(decision: Evaluated): Value {
    const value = decision(this);
    const path = this.#path;
    if (!path) return value;
    path.decision = decision;
    const next = path.next.get(value) ?? newPath();
    path.next.set(value, next);
    this.#path = this.#length++ < MAX_PATH ? next : undefined;
    return value;
  }

  #set(variable: number, value: Evaluated): void {
    this.values[variable] = value(this);
    const path = this.#path;
    // Those of a path with a decision are stored.
    if (!path || path.decision) return;
    if (this.#length++ < MAX_PATH) path.sets.push([variable, value]);
    else {
      path.sets.length = 0;
      this.#path = undefined;
    }
  }

  block(body: readonly Counted[], times: number): void {
    for (const s of body) this.#statement(s, times);
  }

  #statement(s: Counted, times: number): void {
    this.#add(s.cost, times);
    if (s.op === "if") return this.#branch(s, times);
    if (s.op === "for") return this.#loop(s, times);
    const { name, value, sources } = s;
    if (name === undefined) return;
    if (value) this.#set(name, value);
    this.#mark(name, sources);
  }

  #add({ fixed, accesses }: Cost, times: number): void {
    for (const [at, n] of fixed) this.totals[at]! += times * n;
    for (const [sources, n] of accesses) {
      if (!this.#varies(sources)) continue;
      this.totals[OTHER]! += times * n * SCATTERED_MORE;
    }
  }

  #branch(s: Counted & { readonly op: "if" }, times: number): void {
    const condition = this.#decide(s.condition);
    const outside = this.#diverged;
    this.#diverged ||= this.#varies(s.sources);
    if (condition !== undefined) {
      this.block(condition ? s.then() : s.else(), times);
    } else {
      const before = [...this.totals];
      this.block(s.then(), times);
      const first = this.totals;
      this.totals = before;
      this.block(s.else(), times);
      this.totals = this.totals.map((n, i) => Math.max(n, first[i]!));
      this.#forget(s.sets());
    }
    this.#diverged = outside;
  }

  #loop(s: Counted & { readonly op: "for" }, times: number): void {
    const [from, to, step] = [s.from, s.to, s.step]
      .map((bound) => this.#decide(bound)) as [Value, Value, Value];
    this.#mark(s.name, s.sources);
    if (from === undefined || to === undefined || !step) {
      this.exact &&= s.max !== undefined;
      this.#forget(s.sets);
      this.#set(s.name, unknown);
      this.block(s.body, times * (s.max ?? 1));
      return this.#forget(s.sets);
    }
    const iterations = Math.max(0, Math.ceil((to - from) / step));
    const iteration = (i: number) => {
      this.#set(s.name, () => from + i * step);
      this.block(s.body, times);
    };
    if (iterations <= 2 || !s.steady) {
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

  #mark(name: number, sources: Sources): void {
    this.#varying[name] = Number(this.#diverged || this.#varies(sources));
  }

  #varies(sources: Sources): boolean {
    return sources === true ||
      sources.some((name) => this.#varying[name] === 1);
  }

  #forget(names: readonly number[]): void {
    for (const name of names) this.#set(name, unknown);
  }
}
