/** Statements of the kernel tree to WebAssembly, for the invocations of one vector. Divergent conditions become masks. */

import { invariant } from "../../spec/errors.ts";
import { endOf, mul } from "../../spec/kernel/build.ts";
import type { Expr, Stmt } from "../../spec/kernel/tree.ts";
import {
  expressionsOf,
  hasUniformTrip,
  spanOf,
  walkExpression,
  walkStatements,
} from "./analyze.ts";
import type { MemoryView } from "./array_access.ts";
import type { Expressions } from "./expression.ts";
import { findPointers, type PointerGroup } from "./pointers.ts";
import type { WasmFunction } from "./wasm.ts";

type ForStmt = Extract<Stmt, { op: "for" }>;

/** Expressions of a loop body up to which it is unrolled four times, and twice. */
const UNROLL_FOUR = 220;
const UNROLL_TWO = 700;

/** Elements that a pointer may advance in one turn of an unrolled loop. */
const MAX_LEAP = 2 ** 26;

/** Prints statements into one function. */
export class Statements {
  readonly x: Expressions;
  readonly f: WasmFunction;
  readonly #writable: ReadonlySet<string>;
  /** Index of the function that stores lanes one by one. */
  readonly #storeLanes: () => number;
  /** Local of the mask of active lanes; undefined: all are. */
  #mask: number | undefined;
  #maskDepth = 0;
  readonly #declaredAt = new Map<string, number>();

  constructor(x: Expressions, options: {
    readonly writable: ReadonlySet<string>;
    readonly storeLanes: () => number;
  }) {
    this.x = x;
    this.f = x.f;
    this.#writable = options.writable;
    this.#storeLanes = options.storeLanes;
  }

  /** Whether a variable is kept as an i32. */
  isScalar(name: string): boolean {
    const { type, shape } = this.x.shapes.variables.get(name)!;
    return type !== "f32" && shape.stride !== null;
  }

  /** The wasm local of a variable, made at its first mention. */
  localOf(name: string): number {
    let local = this.x.locals.get(name);
    if (local === undefined) {
      local = this.f.local(this.isScalar(name) ? "i32" : "v128");
      this.x.locals.set(name, local);
    }
    return local;
  }

  list(body: readonly Stmt[]): void {
    for (const s of body) this.statement(s);
  }

  statement(s: Stmt): void {
    switch (s.op) {
      case "let":
      case "var":
        this.x.begin([s.value]);
        this.#declaredAt.set(s.name, this.#maskDepth);
        this.#push(s.name, s.value);
        return this.f.set(this.localOf(s.name));
      case "set":
        return this.#set(s.name, s.value);
      case "store":
        return this.#store(s, s.binding);
      case "sharedStore":
        return this.#store(s, s.array);
      case "if":
        return this.#if(s);
      case "for":
        return hasUniformTrip(s, this.x.shapes)
          ? this.#for(s)
          : this.#maskedFor(s);
      case "loads":
      case "barrier":
        throw new Error("internal: '" + s.op + "' inside a phase");
    }
  }

  #push(name: string, value: Expr): void {
    if (this.isScalar(name)) this.x.scalar(value);
    else this.x.vector(value);
  }

  #set(name: string, value: Expr): void {
    const { f } = this;
    this.x.begin([value]);
    const local = this.localOf(name);
    this.#push(name, value);
    const declared = this.#declaredAt.get(name);
    invariant(declared !== undefined, `variable '${name}' is not declared`);
    if (declared < this.#maskDepth) {
      // Lanes that are not active keep the value that they have.
      f.get(local);
      f.get(this.#mask!);
      f.op("v128.bitselect");
    }
    f.set(local);
  }

  #if(s: Extract<Stmt, { op: "if" }>): void {
    const { f, x } = this;
    x.begin([s.condition]);
    if (x.isScalar(s.condition)) {
      x.scalar(s.condition);
      f.if();
      this.list(s.then);
      if (s.else) {
        f.op("else");
        this.list(s.else);
      }
      return f.op("end");
    }
    x.vector(s.condition);
    const condition = f.local("v128");
    f.set(condition);
    const outer = this.#mask;
    this.#masked(() => {
      if (outer === undefined) return f.get(condition);
      f.get(outer);
      f.get(condition);
      f.op("v128.and");
    }, () => this.list(s.then));
    if (!s.else) return;
    const other = s.else;
    this.#masked(() => {
      if (outer !== undefined) f.get(outer);
      f.get(condition);
      if (outer === undefined) f.op("v128.not");
      else f.op("v128.andnot");
    }, () => this.list(other));
  }

  /** Run `body` with the mask that `push` pushes, if any lane is active. */
  #masked(push: () => void, body: () => void): void {
    const { f } = this;
    const outer = this.#mask;
    const mask = f.local("v128");
    push();
    f.tee(mask);
    f.op("v128.any_true");
    f.if();
    this.#mask = mask;
    this.#maskDepth++;
    body();
    this.#maskDepth--;
    this.#mask = outer;
    f.op("end");
  }

  /** Keep a uniform integer in a local. */
  #keep(e: Expr): number {
    const local = this.f.local("i32");
    this.x.begin([e]);
    this.x.scalar(e);
    this.f.set(local);
    return local;
  }

  #for(s: ForStmt): void {
    const { f } = this;
    const counter = this.localOf(s.name);
    const from = this.#keep(s.from);
    const to = this.#keep(endOf(s));
    const constant = s.step.op === "const" ? Number(s.step.value) : undefined;
    const step = constant === undefined ? this.#keep(s.step) : undefined;
    f.get(from);
    f.set(counter);
    f.block();
    if (constant) this.#fastFor(s, { counter, from, to, step: constant });
    f.loop();
    f.get(counter);
    f.get(to);
    f.op("i32.ge_u");
    f.branchIf(1);
    this.list(s.body);
    f.get(counter);
    if (step === undefined) f.i32(constant!);
    else f.get(step);
    f.op("i32.add");
    f.set(counter);
    f.branch(0);
    f.op("end", "end");
  }

  /** An innermost loop whose loads go through pointers: unrolled, unchecked, for as many whole rounds as there are. */
  #fastFor(
    s: ForStmt,
    loop: { counter: number; from: number; to: number; step: number },
  ): void {
    const { f, x } = this;
    let nested = false;
    let size = 0;
    const seen = new Set<Expr>();
    walkStatements(s.body, (inner) => {
      nested ||= inner.op === "for" || inner.op === "if";
      for (const e of expressionsOf(inner)) {
        walkExpression(e, () => size++, seen);
      }
    });
    if (nested || !x.shapes.isUniform(s.from)) return;
    const groups = findPointers(s, x.shapes, {
      writable: this.#writable,
    });
    if (groups.length === 0) return;
    // Steps and strides so large that offsets of an unrolled round would not fit 32 bits are not unrolled.
    const far = groups.some(({ stride }) =>
      loop.step * (typeof stride === "number" ? Math.max(1, stride) : 1) >=
        MAX_LEAP
    );
    const unroll = far || size > UNROLL_TWO ? 1 : size > UNROLL_FOUR ? 2 : 4;
    const round = loop.step * unroll;

    // end = from + whole rounds, if from < to.
    const end = f.local("i32");
    f.get(loop.to);
    f.get(loop.from);
    f.op("i32.sub");
    f.i32(round);
    f.op("i32.div_u");
    f.i32(round);
    f.op("i32.mul");
    f.get(loop.from);
    f.op("i32.add");
    f.set(end);
    f.get(loop.from);
    f.get(loop.to);
    f.op("i32.lt_u");
    f.get(loop.from);
    f.get(end);
    f.op("i32.ne", "i32.and");
    f.if();
    const pointers = groups.map((group) => this.#pointer(group, loop, end));
    for (let i = 1; i < pointers.length; i++) f.op("i32.and");
    f.if();
    f.loop();
    for (let copy = 0; copy < unroll; copy++) {
      groups.forEach((group, i) => {
        const { pointer } = pointers[i]!;
        for (const [load, constant] of group.loads) {
          const steps = typeof group.stride === "number"
            ? constant + copy * loop.step * group.stride
            : constant;
          x.pointed.set(load, { pointer, offset: 4 * steps });
        }
      });
      this.list(s.body);
      groups.forEach((group, i) => {
        const last = copy === unroll - 1;
        if (typeof group.stride === "number" && (!last || !group.stride)) {
          return;
        }
        const { pointer, bytes } = pointers[i]!;
        f.get(pointer);
        if (typeof group.stride === "number") f.i32(4 * round * group.stride);
        else f.get(bytes!);
        f.op("i32.add");
        f.set(pointer);
      });
      f.get(loop.counter);
      f.i32(loop.step);
      f.op("i32.add");
      f.set(loop.counter);
    }
    for (const group of groups) {
      for (const load of group.loads.keys()) x.pointed.delete(load);
    }
    f.get(loop.counter);
    f.get(end);
    f.op("i32.ne");
    f.branchIf(0);
    f.op("end");
    // Nothing is left for the loop that checks every access.
    if (spanOf(s) % round === 0) f.branch(2);
    f.op("end", "end");
  }

  /** Set a group's pointer to its first element, and push whether all of its elements are in the array. */
  #pointer(
    group: PointerGroup,
    loop: { counter: number; from: number; step: number },
    end: number,
  ): { pointer: number; bytes?: number } {
    const { f, x } = this;
    const view = x.views.get(group.array)!;
    const pointer = f.local("i32");
    const base = f.local("i32");
    f.i32(0);
    for (const term of group.terms) {
      x.begin([term]);
      x.scalar(term);
      f.op("i32.add");
    }
    f.set(base);
    const stride = f.local("i32");
    if (typeof group.stride === "number") f.i32(group.stride);
    else {
      x.begin(group.stride);
      x.scalar(group.stride.reduce((a, b) => mul(a, b)));
    }
    f.set(stride);
    f.get(base);
    f.get(stride);
    f.get(loop.from);
    f.op("i32.mul", "i32.add");
    f.i32(2);
    f.op("i32.shl");
    f.get(view.address);
    f.op("i32.add");
    f.set(pointer);
    let bytes: number | undefined;
    if (typeof group.stride !== "number") {
      bytes = f.local("i32");
      f.get(stride);
      f.i32(4 * loop.step);
      f.op("i32.mul");
      f.set(bytes);
    }
    // In 64 bits nothing wraps: base + constant + stride * last counter < length.
    f.get(end);
    f.i32(1);
    f.op("i32.sub", "i64.extend_i32_u");
    f.get(stride);
    f.op("i64.extend_i32_u", "i64.mul");
    f.get(base);
    f.op("i64.extend_i32_u", "i64.add");
    f.i64(Math.max(...group.loads.values()));
    f.op("i64.add");
    f.get(view.length);
    f.op("i64.extend_i32_u", "i64.lt_u");
    return bytes === undefined ? { pointer } : { pointer, bytes };
  }

  #maskedFor(s: ForStmt): void {
    const { f, x } = this;
    const counter = this.localOf(s.name);
    const scalarCounter = this.isScalar(s.name);
    const end = endOf(s);
    x.begin([s.from, end, s.step]);
    if (scalarCounter) x.scalar(s.from);
    else x.vector(s.from);
    f.set(counter);
    const to = f.local("v128");
    x.vector(end);
    f.set(to);
    const step = f.local(scalarCounter ? "i32" : "v128");
    if (scalarCounter) x.scalar(s.step);
    else x.vector(s.step);
    f.set(step);
    const mask = f.local("v128");
    if (this.#mask === undefined) f.words(-1, -1, -1, -1);
    else f.get(this.#mask);
    f.set(mask);
    const outer = this.#mask;
    f.block();
    f.loop();
    x.begin([]);
    x.vector({ op: "local", type: "u32", name: s.name });
    f.get(to);
    f.op("i32x4.lt_u");
    f.get(mask);
    f.op("v128.and");
    f.tee(mask);
    f.op("v128.any_true", "i32.eqz");
    f.branchIf(1);
    this.#mask = mask;
    this.#maskDepth++;
    this.list(s.body);
    this.#maskDepth--;
    this.#mask = outer;
    f.get(counter);
    f.get(step);
    f.op(scalarCounter ? "i32.add" : "i32x4.add");
    f.set(counter);
    f.branch(0);
    f.op("end", "end");
  }

  #store(
    s: Extract<Stmt, { op: "store" | "sharedStore" }>,
    array: string,
  ): void {
    const { f, x } = this;
    const view = x.views.get(array);
    invariant(view, `array '${array}' is not declared`);
    x.begin([s.index, s.value]);
    const { stride } = x.shapes.of(s.index);
    if (stride === 0) {
      const same = x.shapes.isUniform(s.value);
      if (same || this.#mask === undefined) {
        return this.#storeOne(s.index, s.value, view, same ? 0 : 3);
      }
    }
    if (stride === 1) return this.#storeRun(s.index, s.value, view);
    f.get(view.address);
    f.get(view.length);
    x.vector(s.index);
    x.vector(s.value);
    if (this.#mask === undefined) f.words(-1, -1, -1, -1);
    else f.get(this.#mask);
    f.call(this.#storeLanes());
  }

  /** All lanes store to one element; of different values the last stays. */
  #storeOne(index: Expr, value: Expr, view: MemoryView, lane: number): void {
    const { f, x } = this;
    const i = f.local("i32");
    const scalar = x.isScalar(value) && x.shapes.isUniform(value);
    const kept = f.local(scalar ? "i32" : "v128");
    if (scalar) x.scalar(value);
    else x.vector(value);
    f.set(kept);
    x.scalar(index);
    f.tee(i);
    f.get(view.length);
    f.op("i32.lt_u");
    f.if();
    f.get(view.address);
    f.get(i);
    f.i32(2);
    f.op("i32.shl", "i32.add");
    f.get(kept);
    if (scalar) f.load("i32.store");
    else f.storeLane(lane);
    f.op("end");
  }

  /** Lanes store to consecutive elements: at once where all are active and in range. */
  #storeRun(index: Expr, value: Expr, view: MemoryView): void {
    const { f, x } = this;
    const i = f.local("i32");
    const kept = f.local("v128");
    x.vector(value);
    f.set(kept);
    x.scalar(index);
    f.tee(i);
    f.get(view.length);
    f.op("i32.lt_u");
    f.get(i);
    f.i32(3);
    f.op("i32.add");
    f.get(view.length);
    f.op("i32.lt_u", "i32.and");
    if (this.#mask !== undefined) {
      f.get(this.#mask);
      f.op("i32x4.all_true", "i32.and");
    }
    f.if();
    f.get(view.address);
    f.get(i);
    f.i32(2);
    f.op("i32.shl", "i32.add");
    f.get(kept);
    f.load("v128.store");
    f.op("else");
    f.get(view.address);
    f.get(view.length);
    f.get(i);
    f.op("i32x4.splat");
    f.words(0, 1, 2, 3);
    f.op("i32x4.add");
    f.get(kept);
    if (this.#mask === undefined) f.words(-1, -1, -1, -1);
    else f.get(this.#mask);
    f.call(this.#storeLanes());
    f.op("end");
  }
}
