/**
 * Lowers statements of the kernel tree to the vector IR for the invocations of one vector. Conditions that differ
 * between lanes become masks.
 */

import { invariant } from "../../spec/errors.ts";
import { endOf } from "../../spec/kernel/build.ts";
import type { Expr, Stmt } from "../../spec/kernel/tree.ts";
import { arrayOf, type Loop, type Store } from "./accesses.ts";
import { hasUniformTrip, spanOf } from "./analyze.ts";
import type { ByteBounds } from "./byte_bounds.ts";
import { Expressions, vectorType } from "./expression.ts";
import {
  apply,
  constant,
  get,
  laneOf,
  type Local,
  newLocal,
  type ScratchSlot,
  type Statement,
  type Type,
  u,
  v,
  type Value,
  word,
} from "./ir.ts";
import { countedLoop } from "./loops.ts";
import type { Bounds } from "./loop_pointers.ts";
import { prefetchAccesses, type PrefetchLoop } from "./prefetch.ts";
import type { Shapes } from "./shape.ts";

/** Maximum known iterations of a loop that does not check for termination requests. */
const SHORT_LOOP = 4096;

/** Loop options of a device. */
export interface LoopOptions {
  /**
   * `unrolled`: innermost loops are unrolled here; `tiles`: a compiler unrolls, and strided loads are transposed.
   */
  readonly loops: "unrolled" | "tiles";
}

/** Lowers statements of one kernel. */
export class Statements {
  readonly x: Expressions;
  readonly loops: LoopOptions["loops"];
  /** Bindings that the kernel writes. */
  readonly writable: ReadonlySet<string>;
  /** Reserves memory for a vector. */
  readonly take: () => ScratchSlot;
  /** Stores that are known to be in bounds. */
  readonly stored = new Map<
    Store,
    { readonly pointer: Local; readonly offset: number }
  >();
  /** Variables that are declared around phases. */
  readonly outlived = new Set<string>();
  /** Workgroup memory that the phase at hand loads from. */
  readHere: ReadonlySet<string> = new Set();
  /** The loop that repeats the phase at hand, if any. */
  repeats: Bounds | undefined;
  /** The loop around the statement at hand whose later iterations are prefetched for. */
  around: PrefetchLoop | undefined;
  /** Whether an earlier loop has queued prefetches. */
  prefetchesLater = false;
  #out: Statement[] = [];
  /** Mask of active lanes. Undefined: all. */
  #mask: Value | undefined;
  #maskDepth = 0;
  readonly #declaredAt = new Map<string, number>();

  constructor(
    shapes: Shapes,
    options: LoopOptions & {
      readonly bytes: ByteBounds;
      readonly writable: ReadonlySet<string>;
      readonly take: () => ScratchSlot;
    },
  ) {
    this.x = new Expressions(shapes, options.bytes);
    this.loops = options.loops;
    this.writable = options.writable;
    this.take = options.take;
  }

  /** The statements that `lower` emits. */
  listOf(lower: () => void): readonly Statement[] {
    const outer = this.#out;
    const list: Statement[] = this.#out = [];
    lower();
    this.#out = outer;
    return list;
  }

  emit(statement: Statement): void {
    this.#out.push(statement);
  }

  /** Sets a variable. `declares`: it is declared in this block. */
  set(local: Local, value: Value, declares = true): void {
    this.emit({ op: "set", local, value, declares });
  }

  /** Binds a value to a name; a constant needs none. */
  keep(name: string, value: Value): Value {
    if (value.op === "const") return value;
    const local = newLocal(name, value.type);
    this.set(local, value);
    return get(local);
  }

  /** Binds a uniform integer to a name. */
  keepWord(e: Expr): Value {
    this.x.begin();
    return this.keep("t", this.x.word(e));
  }

  /** Binds the sum of uniform integers to a name. */
  keepSum(name: string, terms: readonly Expr[]): Value {
    const words = terms.map((term) => {
      this.x.begin();
      return this.x.word(term);
    });
    const sum = words.length === 0
      ? word(0)
      : words.reduce((a, b) => u.add(a, b));
    return this.keep(name, sum);
  }

  /** Emit `if`. */
  if(
    condition: Value,
    then: () => void,
    otherwise: () => void = () => {},
  ): void {
    this.emit({
      op: "if",
      condition,
      then: this.listOf(then),
      else: this.listOf(otherwise),
    });
  }

  /** Emits a loop over a counter. */
  count(
    bounds: {
      readonly counter: Local;
      readonly from: Value;
      readonly to: Value;
      readonly step: Value;
      readonly long: boolean;
      readonly unroll?: number;
    },
    body: () => void,
  ): void {
    const { counter, from, to, step, long, unroll = 1 } = bounds;
    const list = this.listOf(body);
    this.emit(
      { op: "count", counter, from, to, step, body: list, unroll, long },
    );
  }

  /** Whether a variable is a word. */
  isWord(name: string): boolean {
    const { type, shape } = this.x.shapes.variables.get(name)!;
    return type !== "f32" && shape.stride !== null;
  }

  /** The type of a variable. */
  typeOf(name: string): Type {
    return this.isWord(name)
      ? "u"
      : vectorType(this.x.shapes.variables.get(name)!.type);
  }

  /** The local of a variable, created on first use. */
  localOf(name: string): Local {
    let local = this.x.locals.get(name);
    if (!local) {
      local = newLocal(name, this.typeOf(name));
      this.x.locals.set(name, local);
    }
    return local;
  }

  /** Whether a loop may be so long that it checks for termination requests. */
  isLong(s: Loop): boolean {
    return !(spanOf(s) <= SHORT_LOOP);
  }

  /** Whether some lanes may be inactive. */
  get isMasked(): boolean {
    return this.#mask !== undefined;
  }

  list(body: readonly Stmt[]): void {
    for (const s of body) this.statement(s);
  }

  statement(s: Stmt): void {
    this.x.begin();
    if (this.around && !this.around.isInner && !this.isMasked) {
      prefetchAccesses(s, this.around.invariants, this);
    }
    switch (s.op) {
      case "let":
      case "var": {
        this.#declaredAt.set(s.name, this.#maskDepth);
        const value = this.#lookup(s) ?? this.#valueOf(s.name, s.value);
        const local = this.localOf(s.name);
        return this.set(local, value, !this.outlived.has(s.name));
      }
      case "set":
        return this.#set(s.name, s.value);
      case "store":
      case "sharedStore":
        return this.#store(s);
      case "if":
        return this.#if(s);
      case "for":
        return hasUniformTrip(s, this.x.shapes)
          ? countedLoop(s, this)
          : this.#maskedFor(s);
      case "loads":
      case "barrier":
        throw new Error("internal: '" + s.op + "' inside a phase");
    }
  }

  /** The bytes that a vector binds, whose indices are bound, too. */
  #lookup({ op, name, value }: Extract<Stmt, { op: "let" | "var" }>) {
    this.x.forget(name);
    const isLookup = value.op === "call" && value.fn === "lookup16";
    if (!isLookup || op === "var" || this.isWord(name)) return;
    // Indices end with their block.
    if (this.outlived.has(name)) return;
    const indices = this.keep("indices", this.x.vector(value.args[0]!));
    return this.x.lookup(value, indices, name);
  }

  #valueOf(name: string, e: Expr): Value {
    return this.isWord(name) ? this.x.word(e) : this.x.vector(e);
  }

  #set(name: string, e: Expr): void {
    const local = this.x.local(name);
    const declared = this.#declaredAt.get(name);
    invariant(declared !== undefined, `variable '${name}' is not declared`);
    const value = this.#valueOf(name, e);
    if (declared >= this.#maskDepth) return this.set(local, value, false);
    // Inactive lanes retain their value.
    const pick = local.type === "vf" ? "f.pick" : "v.pick";
    this.set(local, apply(pick, value, get(local), this.#mask!), false);
  }

  #if(s: Extract<Stmt, { op: "if" }>): void {
    const { x } = this;
    if (x.isWord(s.condition)) {
      return this.if(
        x.word(s.condition),
        () => this.list(s.then),
        () => this.list(s.else ?? []),
      );
    }
    const condition = this.keep("condition", x.vector(s.condition));
    const outer = this.#mask;
    const masked = (mask: Value, body: readonly Stmt[]) => {
      const saved = this.keep("mask", mask);
      this.if(v.any(saved), () => this.#under(saved, body));
    };
    masked(outer ? v.and(outer, condition) : condition, s.then);
    if (!s.else) return;
    masked(
      outer ? v.andnot(outer, condition) : v.not(condition),
      s.else,
    );
  }

  #under(mask: Value, body: readonly Stmt[]): void {
    const outer = this.#mask;
    this.#mask = mask;
    this.#maskDepth++;
    this.list(body);
    this.#maskDepth--;
    this.#mask = outer;
  }

  #maskedFor(s: Loop): void {
    const { x } = this;
    const counter = this.localOf(s.name);
    const scalar = this.isWord(s.name);
    const value = (e: Expr) => scalar ? x.word(e) : x.vector(e);
    this.set(counter, value(s.from));
    const to = this.keep("to", x.vector(endOf(s)));
    const step = this.keep("step", value(s.step));
    const mask = newLocal("mask", "vu");
    this.set(mask, this.#mask ?? constant("vu", -1));
    const head = this.listOf(() => {
      x.begin();
      const now = x.vector({ op: "local", type: "u32", name: s.name });
      const below = v.lt_u(now, to);
      this.set(mask, v.and(below, get(mask)), false);
    });
    const body = this.listOf(() => {
      this.#under(get(mask), s.body);
      const add = scalar ? "u.add" : "v.add";
      this.set(counter, apply(add, get(counter), step), false);
    });
    const condition = v.any(get(mask));
    this.emit({ op: "while", head, condition, body, long: this.isLong(s) });
  }

  #store(s: Store): void {
    const { x } = this;
    const to = x.memory(arrayOf(s));
    const { stride } = x.shapes.of(s.index);
    const same = x.shapes.isUniform(s.value);
    const stored = this.stored.get(s);
    if (stride === 0 && (same || !this.#mask)) {
      // All lanes store to one element; the last value wins.
      const value = same && x.isWord(s.value)
        ? x.word(s.value)
        : laneOf(x.bits(s.value), same ? 0 : x.shapes.lanes - 1);
      if (stored) return this.emit({ op: "write", ...stored, value });
      const index = x.word(s.index);
      const mask = undefined;
      return this.emit({ op: "store", to, form: "one", index, value, mask });
    }
    const run = stride === 1;
    const value = x.bits(s.value);
    if (stored) return this.emit({ op: "write", ...stored, value });
    this.emit({
      op: "store",
      to,
      form: run ? "run" : "anywhere",
      index: run ? x.word(s.index) : x.vector(s.index),
      value,
      mask: this.#mask,
    });
  }
}
