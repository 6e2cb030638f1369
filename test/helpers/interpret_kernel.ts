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
  readonly ids: { readonly [id: string]: number };
  /** Bindings and workgroup arrays, by slot. */
  readonly memory: readonly Words[];
  /** Values of locals, by slot. */
  readonly locals: Float64Array;
}

/** Evaluates an expression in an invocation. */
type Value = (at: Invocation) => number;

/** A statement: a function, or, if it contains a barrier, a generator that yields there. */
type Step =
  | { readonly waits: false; run(at: Invocation): void }
  | { readonly waits: true; run(at: Invocation): Generator<void> };

function plain(run: (at: Invocation) => void): Step {
  return { waits: false, run };
}

/** Runs steps without barriers. */
function runSteps(steps: readonly Step[], at: Invocation): void {
  for (const step of steps) step.run(at);
}

/** Runs steps; yields at barriers. */
function* execute(steps: readonly Step[], at: Invocation): Generator<void> {
  for (const step of steps) {
    if (step.waits) yield* step.run(at);
    else step.run(at);
  }
}

/** Numbers names in the order of their declarations. */
class Slots {
  readonly #slots = new Map<string, number>();

  get size(): number {
    return this.#slots.size;
  }

  declare(name: string): number {
    const slot = this.#slots.get(name) ?? this.size;
    this.#slots.set(name, slot);
    return slot;
  }

  find(name: string): number {
    const slot = this.#slots.get(name);
    if (slot === undefined) throw new Error(`no variable '${name}'`);
    return slot;
  }
}

/**
 * Converts a kernel to functions. A name has one slot: kernels declare no name twice in nested scopes, and set each
 * variable where they declare it.
 */
class Program {
  /** Bindings and workgroup arrays. */
  readonly memory = new Slots();
  readonly locals = new Slots();
  readonly #values = new Map<Expr, Value>();
  readonly #watch: Watch;

  constructor({ bindings, shared }: Kernel, watch: Watch) {
    this.#watch = watch;
    for (const { name } of [...bindings, ...shared]) this.memory.declare(name);
  }

  steps(body: readonly Stmt[]): readonly Step[] {
    return body.map((s) => this.#step(s));
  }

  #step(s: Stmt): Step {
    switch (s.op) {
      case "let":
      case "var":
      case "set": {
        const value = this.#value(s.value);
        const slot = s.op === "set"
          ? this.locals.find(s.name)
          : this.locals.declare(s.name);
        return plain((at) => {
          at.locals[slot] = value(at);
        });
      }
      case "store":
        return this.#store(s.binding, s);
      case "sharedStore":
        return this.#store(s.array, s);
      case "for":
        return this.#loop(s);
      case "if": {
        const condition = this.#value(s.condition);
        const [yes, no] = [this.steps(s.then), this.steps(s.else ?? [])];
        const taken: (at: Invocation) => readonly Step[] = (at) =>
          condition(at) ? yes : no;
        return [...yes, ...no].some(({ waits }) => waits)
          ? { waits: true, run: (at) => execute(taken(at), at) }
          : plain((at) => runSteps(taken(at), at));
      }
      case "barrier":
        return {
          waits: true,
          *run() {
            yield;
          },
        };
      case "loads":
        throw new Error("loads of vectors are replaced");
    }
  }

  #store(
    name: string,
    { op, index, value }: Extract<Stmt, { op: "store" | "sharedStore" }>,
  ): Step {
    const slot = this.memory.find(name);
    const [at, of] = [this.#value(index), this.#value(value)];
    const { store, outside } = op === "store" ? this.#watch : {};
    return plain((by) => {
      const words = by.memory[slot]!;
      const index = at(by) >>> 0;
      const bits = bitsOf(value.type, of(by));
      if (index >= words.length) return outside?.(by.number, name, index);
      words[index] = bits;
      store?.(by.number, name, index);
    });
  }

  #loop(s: Extract<Stmt, { op: "for" }>): Step {
    const [to, step, from] = [endOf(s), s.step, s.from]
      .map((e) => this.#value(e)) as [Value, Value, Value];
    const slot = this.locals.declare(s.name);
    const body = this.steps(s.body);
    const { iteration } = this.#watch;
    if (body.some(({ waits }) => waits)) {
      return {
        waits: true,
        *run(at) {
          const [end, by] = [to(at), step(at)];
          for (let i = from(at); i < end; i += by) {
            iteration?.();
            at.locals[slot] = i;
            yield* execute(body, at);
          }
        },
      };
    }
    return plain((at) => {
      const [end, by] = [to(at), step(at)];
      for (let i = from(at); i < end; i += by) {
        iteration?.();
        at.locals[slot] = i;
        runSteps(body, at);
      }
    });
  }

  /** The function of an expression, built once. */
  #value(e: Expr): Value {
    const before = this.#values.get(e);
    if (before) return before;
    const value = this.#newValue(e);
    this.#values.set(e, value);
    return value;
  }

  #newValue(e: Expr): Value {
    switch (e.op) {
      case "const": {
        const value = converted(Number(e.value), e.type, e.type);
        return () => value;
      }
      case "local": {
        const slot = this.locals.find(e.name);
        return (at) => at.locals[slot]!;
      }
      case "id":
        return (at) => at.ids[e.name]!;
      case "load":
        return this.#load(e.binding, e);
      case "shared":
        return this.#load(e.array, e);
      case "unary": {
        const a = this.#value(e.a);
        const of = UNARY[e.type][e.fn]!;
        return (at) => of(a(at));
      }
      case "binary": {
        const [a, b] = [this.#value(e.a), this.#value(e.b)];
        const of = BINARY[e.a.type][e.fn]!;
        return this.#reported(e.type, (at) => of(a(at), b(at)));
      }
      case "call": {
        const args = e.args.map((arg) => this.#value(arg));
        const { of } = FUNCTIONS[e.fn];
        return this.#reported(e.type, (at) => {
          const result = of(Math.fround, ...args.map((arg) => arg(at)));
          return converted(result, e.type, e.type);
        });
      }
      case "select": {
        const [a, b] = [this.#value(e.a), this.#value(e.b)];
        const condition = this.#value(e.condition);
        return (at) => {
          const [yes, no] = [a(at), b(at)];
          return condition(at) ? yes : no;
        };
      }
      case "convert":
        return this.#convert(e);
      case "bitcast": {
        const a = this.#value(e.a);
        return (at) => ofBits(e.type, bitsOf(e.a.type, a(at)));
      }
    }
  }

  #load(
    name: string,
    { op, type, index }: Extract<Expr, { op: "load" | "shared" }>,
  ): Value {
    const slot = this.memory.find(name);
    const of = this.#value(index);
    const { load, outside } = op === "load" ? this.#watch : {};
    return (at) => {
      const words = at.memory[slot]!;
      const index = of(at) >>> 0;
      const inside = index < words.length ? index : 0;
      if (inside !== index) outside?.(at.number, name, index);
      load?.(at.number, name, inside);
      return ofBits(type, words[inside]!);
    };
  }

  #convert({ a, type }: Extract<Expr, { op: "convert" }>): Value {
    const of = this.#value(a);
    const { float } = this.#watch;
    if (!float || a.type !== "f32" || type === "f32" || type === "bool") {
      return (at) => converted(of(at), a.type, type);
    }
    return (at) => {
      const value = of(at);
      const result = converted(value, a.type, type);
      const outside = !Number.isNaN(value) && Math.trunc(value) !== result;
      if (outside) float(Infinity);
      return result;
    };
  }

  #reported(type: string, value: Value): Value {
    const { float } = this.#watch;
    if (!float || type !== "f32") return value;
    return (at) => {
      const result = value(at);
      float(result);
      return result;
    };
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
  const program = new Program(kernel, watch);
  const steps = program.steps(withWordLoads(withScalarLoads(kernel.body)));
  for (let g = 0; g < gx * gy * gz; g++) {
    const memory: Words[] = [];
    for (const { name } of kernel.bindings) {
      memory[program.memory.find(name)] = bindings[name]!;
    }
    // An array may have the name of a binding, which is then not used.
    for (const { name, length } of kernel.shared) {
      memory[program.memory.find(name)] = new Uint32Array(length);
    }
    const running = Array.from(
      { length: kernel.workgroupSize },
      (_, local) =>
        execute(steps, {
          number: g * kernel.workgroupSize + local,
          ids: {
            "group.x": g % gx,
            "group.y": Math.floor(g / gx) % gy,
            "group.z": Math.floor(g / (gx * gy)),
            local,
          },
          memory,
          locals: new Float64Array(program.locals.size),
        }),
    );
    let left = running;
    while (left.length > 0) {
      left = left.filter((invocation) => !invocation.next().done);
    }
  }
}
