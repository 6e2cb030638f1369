/** Work of invocations, counted on the kernel tree with the known data. */

import { cachedIn } from "../bounded_cache.ts";
import {
  BINDINGS,
  type Cost,
  type Counted,
  type CountedBody,
  countedBody,
  FMA,
  OTHER,
  type Read,
  SCATTERED_MORE,
  type Sources,
  type State,
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
  /** Bindings whose integers count as equal to this one. */
  readonly constants?: ReadonlyMap<string, number>;
}

/** Counted totals of invocations. */
interface Totals {
  readonly exact: boolean;
  readonly totals: readonly number[];
}

/** The next fact that counting reads, and what follows each of its values; or the result. */
interface Known {
  read?: Read;
  readonly next: Map<Value, Known>;
  result?: Totals;
}

/** A body, and the results of its counted invocations, by the names of constant bindings. */
interface Body {
  readonly counted: CountedBody;
  readonly known: Map<string, Known>;
}

const bodies = new WeakMap<Kernel["body"], Body>();

/** Counts the work of one invocation. Invocations that read equal facts are counted once. */
export function kernelWork(kernel: Kernel, at?: Invocation): KernelWork {
  const body = bodies.get(kernel.body) ??
    { counted: countedBody(kernel.body), known: new Map<string, Known>() };
  bodies.set(kernel.body, body);
  const { counted } = body;
  const constants = at?.constants ? [...at.constants.keys()].join() : "";
  const known = cachedIn(body.known, constants, {
    max: Infinity,
    create: (): Known => ({ next: new Map() }),
  });
  const { exact, totals } = knownTotals(known, at) ?? count(counted, known, at);
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

/** The result of an invocation that read the same facts. Undefined: there is none. */
function knownTotals(
  known: Known,
  at: Invocation | undefined,
): Totals | undefined {
  let node: Known | undefined = known;
  while (node && !node.result) {
    node = node.read && node.next.get(valueOf(node.read, at));
  }
  return node?.result;
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
      return at.constants?.get(read.binding) ??
        at.load?.(read.binding, read.index);
  }
}

/** Maximum number of facts of a result that is stored. */
const MAX_READS = 64;

function count(
  counted: CountedBody,
  known: Known,
  at: Invocation | undefined,
): Totals {
  const facts = new Map<string, { read: Read; value: Value }>();
  const walk = new Walk(counted, (given) => {
    // One fact for all integers of a constant binding.
    const isConstant = typeof given !== "string" &&
      at?.constants?.has(given.binding);
    const read = isConstant ? { ...given, index: 0 } : given;
    const key = typeof read === "string"
      ? read
      : `${read.index} ${read.binding}`;
    const fact = facts.get(key) ?? { read, value: valueOf(read, at) };
    facts.set(key, fact);
    return fact.value;
  });
  walk.block(counted.body, 1);
  const { exact, totals } = walk;
  if (facts.size > MAX_READS) return walk;
  let node = known;
  for (const { read, value } of facts.values()) {
    node.read = read;
    const next: Known = node.next.get(value) ?? { next: new Map() };
    node.next.set(value, next);
    node = next;
  }
  return node.result = { exact, totals };
}

class Walk implements State {
  exact = true;
  totals: number[];
  readonly values: Value[];
  readonly read: (what: Read) => Value;
  /** 1: variables that may differ between the invocations of a workgroup. */
  readonly #varying: Uint8Array;
  /** Whether an enclosing condition may differ. */
  #diverged = false;

  constructor(
    { bindings, variables }: CountedBody,
    read: (what: Read) => Value,
  ) {
    this.read = read;
    this.totals = new Array<number>(BINDINGS + 2 * bindings.size).fill(0);
    this.values = new Array<Value>(variables).fill(undefined);
    this.#varying = new Uint8Array(variables);
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
    if (value) this.values[name] = value(this);
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
    const condition = s.condition(this);
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
    const [from, to, step] = [s.from(this), s.to(this), s.step(this)];
    this.#mark(s.name, s.sources);
    if (from === undefined || to === undefined || !step) {
      this.exact &&= s.max !== undefined;
      this.#forget(s.sets);
      this.values[s.name] = undefined;
      this.block(s.body, times * (s.max ?? 1));
      return this.#forget(s.sets);
    }
    const iterations = Math.max(0, Math.ceil((to - from) / step));
    const iteration = (i: number) => {
      this.values[s.name] = from + i * step;
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
    for (const name of names) this.values[name] = undefined;
  }
}
