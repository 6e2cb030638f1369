/** Statements of the kernel tree to WebAssembly, for the invocations of one vector. Divergent conditions become masks. */

import { invariant } from "../../spec/errors.ts";
import { endOf } from "../../spec/kernel/build.ts";
import type { Expr, Stmt } from "../../spec/kernel/tree.ts";
import { hasUniformTrip } from "../vector/analyze.ts";
import type { MemoryView } from "./array_access.ts";
import type { Expressions, Place } from "./expression.ts";
import { type Ahead, lookAhead, printFastLoop } from "./fast_loop.ts";
import type { WasmFunction } from "./wasm.ts";

type ForStmt = Extract<Stmt, { op: "for" }>;

/** Prints statements into one function. */
export class Statements {
  readonly x: Expressions;
  readonly f: WasmFunction;
  readonly #writable: ReadonlySet<string>;
  /** Index of the function that stores lanes one by one. */
  readonly #storeLanes: () => number;
  readonly #take: () => Place;
  /** Local of the mask of active lanes; undefined: all are. */
  #mask: number | undefined;
  #maskDepth = 0;
  readonly #declaredAt = new Map<string, number>();
  readonly #ahead = new Map<ForStmt, Ahead>();

  constructor(x: Expressions, options: {
    readonly writable: ReadonlySet<string>;
    readonly storeLanes: () => number;
    /** Memory for a word. */
    readonly take: () => Place;
  }) {
    this.x = x;
    this.f = x.f;
    this.#writable = options.writable;
    this.#storeLanes = options.storeLanes;
    this.#take = options.take;
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
        return this.#assign(s.name, () => this.#push(s.name, s.value));
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
    const declared = this.#declaredAt.get(name);
    invariant(declared !== undefined, `variable '${name}' is not declared`);
    this.#assign(name, () => {
      this.#push(name, value);
      if (declared >= this.#maskDepth) return;
      // Lanes that are not active keep the value that they have.
      this.x.variable(name);
      f.get(this.#mask!);
      f.op("v128.bitselect");
    });
  }

  /** Give a variable what `push` pushes. */
  #assign(name: string, push: () => void): void {
    const place = this.x.resting.get(name);
    if (place) this.f.get(place.base);
    push();
    if (place) this.f.load("v128.store", place.offset);
    else this.f.set(this.localOf(name));
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
    const on = { x: this.x, writable: this.#writable, take: this.#take };
    for (const [loop, ahead] of lookAhead(s, counter, on)) {
      this.#ahead.set(loop, ahead);
    }
    f.get(from);
    f.set(counter);
    f.block();
    if (constant) {
      printFastLoop(s, { counter, from, to, step: constant }, {
        ...on,
        ahead: this.#ahead.get(s),
        printBody: () => this.list(s.body),
      });
    }
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
