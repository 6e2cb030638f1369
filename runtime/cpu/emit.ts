/** Prints the vector IR as WebAssembly SIMD: words are i32, vectors v128 of four lanes, variables locals. */

import { invariant } from "../../spec/errors.ts";
import type { CallName } from "../../spec/kernel/tree.ts";
import {
  type Local,
  type Memory,
  type Op,
  repeatedIn,
  type Statement,
  type Value,
} from "../vector/ir.ts";
import { MATH } from "../vector/math.ts";
import {
  checkAddress,
  gather,
  type MemoryView,
  storeOne,
  storeRun,
} from "./array_access.ts";
import type { Library } from "./library.ts";
import type { WasmFunction, WasmOp } from "./wasm.ts";

/** The parameter of functions with the address of their scratch memory. */
export const SCRATCH = 3;

/** Types of instructions for operators. */
const TYPES = { u: "i32", v: "i32x4", f: "f32x4", d: "f64x2", l: "i64x2" };

/** Instructions of operators with different names. Operators of `each` lane are of i32. */
const INSTRUCTIONS: { readonly [O in Op]?: readonly WasmOp[] } = {
  "u.select": ["select"],
  "v.select": ["select"],
  "f.select": ["select"],
  "v.pick": ["v128.bitselect"],
  "f.pick": ["v128.bitselect"],
  "d.pick": ["v128.bitselect"],
  "v.and": ["v128.and"],
  "v.or": ["v128.or"],
  "v.xor": ["v128.xor"],
  "v.not": ["v128.not"],
  "v.andnot": ["v128.andnot"],
  "l.and": ["v128.and"],
  "l.or": ["v128.or"],
  "l.xor": ["v128.xor"],
  "v.any": ["v128.any_true"],
  "v.all": ["i32x4.all_true"],
  "v.bits": [],
  "f.bits": [],
  "d.bits": [],
  "l.bits": [],
  "v.to_s": ["i32x4.trunc_sat_f32x4_s"],
  "v.to_u": ["i32x4.trunc_sat_f32x4_u"],
  "v.whole": ["i32x4.trunc_sat_f32x4_s"],
  "f.from_s": ["f32x4.convert_i32x4_s"],
  "f.from_u": ["f32x4.convert_i32x4_u"],
  "f.min": ["f32x4.pmin"],
  "f.max": ["f32x4.pmax"],
  "d.min": ["f64x2.pmin"],
  "d.max": ["f64x2.pmax"],
  "l.from_d": ["i32x4.trunc_sat_f64x2_s_zero", "i64x2.extend_low_i32x4_s"],
};
/** Operators per lane without a vector instruction. */
const EACH: { readonly [O in Op]?: WasmOp } = {
  "v.shl_each": "i32.shl",
  "v.shr_each_s": "i32.shr_s",
  "v.shr_each_u": "i32.shr_u",
  "v.div_s": "i32.div_s",
  "v.div_u": "i32.div_u",
  "v.rem_s": "i32.rem_s",
  "v.rem_u": "i32.rem_u",
};

/** Emits into one function. */
export class Emitter {
  readonly f: WasmFunction;
  readonly locals = new Map<Local, number>();
  readonly views = new Map<Memory, MemoryView>();
  /**
   * Location of a vector's part of scratch memory: its first invocation, the start of the parts, and bytes per
   * invocation.
   */
  part = { local: 0, first: 0, parts: 0, bytes: 0 };
  readonly #library: Library;
  #repeated = new Set<Value>();
  #saved = new Map<Value, number>();
  #depth = 0;
  readonly #labels = new Map<object, number>();

  constructor(f: WasmFunction, library: Library) {
    this.f = f;
    this.#library = library;
  }

  /** Pushes the values of a statement. */
  values(...values: readonly Value[]): void {
    const outer = [this.#repeated, this.#saved] as const;
    this.#begin(...values);
    for (const value of values) this.#value(value);
    [this.#repeated, this.#saved] = outer;
  }

  #begin(...values: readonly Value[]): void {
    this.#repeated = repeatedIn(values);
    this.#saved = new Map();
  }

  /** The local of a variable, created on first use. */
  localOf(local: Local): number {
    let index = this.locals.get(local);
    if (index === undefined) {
      index = this.f.local(isScalar(local) ? "i32" : "v128");
      this.locals.set(local, index);
    }
    return index;
  }

  #value(value: Value): void {
    const saved = this.#saved.get(value);
    if (saved !== undefined) return this.f.get(saved);
    this.#print(value);
    if (!this.#repeated.has(value)) return;
    const local = this.f.local(isScalar(value) ? "i32" : "v128");
    this.f.tee(local);
    this.#saved.set(value, local);
  }

  #print(value: Value): void {
    const { f } = this;
    const [a, b, c] = value.args as [Value, Value, Value];
    switch (value.op) {
      case "const":
        return this.#constant(value);
      case "iota": {
        const { stride } = value;
        return f.words(0, stride, Math.imul(stride, 2), Math.imul(stride, 3));
      }
      case "get": {
        const { slot } = value.local;
        if (!slot) return f.get(this.localOf(value.local));
        f.get(slot.perVector ? this.part.local : SCRATCH);
        return f.load(
          isScalar(value) ? "i32.load" : "v128.load",
          slot.offset,
        );
      }
      case "apply":
        return this.#apply(value.fn, value.args);
      case "call":
        return this.#call(value.fn, value.args);
      case "wide":
        return this.#wide(value);
      case "lookup":
        f.words(...value.table as [number, number, number, number]);
        this.#value(a);
        f.words(0x0f0f0f0f, 0x0f0f0f0f, 0x0f0f0f0f, 0x0f0f0f0f);
        return f.op("v128.and", "i8x16.swizzle");
      case "entry":
        return this.#value(a);
      case "lane":
        this.#value(a);
        return f.extract(value.lane);
      case "load": {
        const view = this.#view(value.from);
        this.#value(a);
        if (value.form === "anywhere") return gather(f, view);
        checkAddress(f, view, value.form === "run" ? 4 : 1);
        return this.#load(value.form, 0);
      }
      case "read":
        this.#value(a);
        return this.#load(value.form, 4 * value.offset);
      case "address":
        if (value.of) f.get(this.#view(value.of).address);
        else this.#value(a);
        this.#bytes(value.args.at(-1)!);
        return f.op("i32.add");
      case "within":
        // 64-bit arithmetic does not wrap here.
        if (c) {
          this.#value(c);
          f.op("i64.extend_i32_u");
          this.#value(b);
          f.op("i64.extend_i32_u", "i64.mul");
        }
        this.#value(a);
        f.op("i64.extend_i32_u");
        if (c) f.op("i64.add");
        f.i64(value.constant);
        f.op("i64.add");
        f.get(this.#view(value.of).length);
        return f.op("i64.extend_i32_u", "i64.lt_u");
      case "tile":
        throw new Error("internal: tiles are not lowered for WebAssembly");
    }
  }

  #constant({ type, value }: Extract<Value, { op: "const" }>): void {
    const { f } = this;
    if (type === "u") return f.i32(Number(value));
    if (type === "vf") return f.f32x4(Number(value));
    if (type === "vd") return f.f64x2(Number(value));
    if (typeof value === "number") return f.words(value, value, value, value);
    const [low, high] = [value & 0xffffffffn, value >> 32n].map(Number);
    f.words(low!, high!, low!, high!);
  }

  /** Pushes the number of bytes of these words. */
  #bytes(words: Value): void {
    const { f } = this;
    if (words.op === "const") return f.i32(4 * Number(words.value));
    const [a, by] = words.args;
    if (words.op === "apply" && words.fn === "u.mul" && by?.op === "const") {
      this.#value(a!);
      f.i32(4 * Number(by.value));
      return f.op("i32.mul");
    }
    this.#value(words);
    f.i32(2);
    f.op("i32.shl");
  }

  #load(form: "one" | "splat" | "run" | "anywhere", offset: number): void {
    invariant(form !== "anywhere", "a vector is read at one address");
    const how = { one: "i32.load", splat: "v128.load32_splat" } as const;
    this.f.load(form === "run" ? "v128.load" : how[form], offset);
  }

  #apply(fn: Op, args: readonly Value[]): void {
    const { f } = this;
    const each = EACH[fn];
    if (fn === "f.fma") {
      for (const arg of args.slice(0, 2)) this.#value(arg);
      f.op("f32x4.mul");
      this.#value(args[2]!);
      return f.op("f32x4.add");
    }
    for (const arg of args) this.#value(arg);
    if (each) return this.#eachLane(each);
    if (fn === "v.dot4") return this.#dot4("shr_s");
    if (fn.startsWith("v.dot4_")) return this.#dot4("shr_u");
    if (fn === "d.from_l") {
      const value = f.local("v128");
      f.tee(value);
      f.get(value);
      f.shuffle(0, 2, 0, 2);
      return f.op("f64x2.convert_low_i32x4_s");
    }
    const [type, name] = fn.split(".") as [keyof typeof TYPES, string];
    f.op(...INSTRUCTIONS[fn] ?? [`${TYPES[type]}.${name}` as WasmOp]);
  }

  /**
   * Four products of bytes in each lane: those of even bytes, and of odd ones, as 16-bit integers; `left` widens the
   * first operand.
   */
  #dot4(left: "shr_s" | "shr_u"): void {
    const { f } = this;
    const vectors = [
      { local: f.local("v128"), shift: left },
      { local: f.local("v128"), shift: "shr_s" as const },
    ];
    for (const { local } of vectors.toReversed()) f.set(local);
    for (const { local, shift } of vectors) {
      f.get(local);
      f.i32(8);
      f.op("i16x8.shl");
      f.i32(8);
      f.op(`i16x8.${shift}`);
    }
    f.op("i32x4.dot_i16x8_s");
    for (const { local, shift } of vectors) {
      f.get(local);
      f.i32(8);
      f.op(`i16x8.${shift}`);
    }
    f.op("i32x4.dot_i16x8_s", "i32x4.add");
  }

  /** Applies an instruction to each lane of the two vectors on the stack. */
  #eachLane(op: WasmOp): void {
    const { f } = this;
    const [a, b] = [f.local("v128"), f.local("v128")];
    f.set(b);
    f.tee(a);
    for (let lane = 0; lane < 4; lane++) {
      f.get(a);
      f.extract(lane);
      f.get(b);
      f.extract(lane);
      f.op(op);
      f.replace(lane);
    }
  }

  #call(name: CallName, args: readonly Value[]): void {
    const { params, body, called } = MATH[name]!;
    for (const arg of args) this.#value(arg);
    if (called.includes("cpu")) return this.f.call(this.#library.math(name));
    for (const param of params.toReversed()) this.f.set(this.localOf(param));
    this.values(body);
  }

  #wide({ params, body, args }: Extract<Value, { op: "wide" }>): void {
    const { f } = this;
    const saved = args.map((arg) => {
      const local = f.local("v128");
      this.#value(arg);
      f.set(local);
      return local;
    });
    const half = f.local("v128");
    for (const [low, high] of [[0, 1], [2, 3]] as const) {
      params.forEach((param, i) => {
        f.get(saved[i]!);
        f.get(saved[i]!);
        f.shuffle(low, high, low, high);
        f.op("f64x2.promote_low_f32x4");
        f.set(this.localOf(param));
      });
      this.values(body);
      f.op("f32x4.demote_f64x2_zero");
      if (low === 0) f.set(half);
    }
    const upper = f.local("v128");
    f.set(upper);
    f.get(half);
    f.get(upper);
    f.shuffle(0, 1, 4, 5);
  }

  #view(memory: Memory): MemoryView {
    const view = this.views.get(memory);
    invariant(view, `array '${memory.name}' is not declared`);
    return view;
  }

  /** Emits statements. */
  list(body: readonly Statement[]): void {
    for (const s of body) this.#statement(s);
  }

  #nested(head: "if" | "block" | "loop", body: () => void): void {
    this.f[head]();
    this.#depth++;
    body();
    this.#depth--;
    this.f.op("end");
  }

  #statement(s: Statement): void {
    const { f } = this;
    switch (s.op) {
      case "declare":
        return;
      case "set":
        return this.#set(s.local, s.value);
      case "store":
        return this.#store(s);
      case "if":
        this.values(s.condition);
        return this.#nested("if", () => {
          this.list(s.then);
          if (s.else.length === 0) return;
          f.op("else");
          this.list(s.else);
        });
      case "count": {
        const counter = this.localOf(s.counter);
        const same = s.from.op === "get" && s.from.local === s.counter;
        if (!same) this.#set(s.counter, s.from);
        return this.#endless(() => {
          f.get(counter);
          this.values(s.to);
          f.op("i32.ge_u");
          f.branchIf(1);
          this.list(s.body);
          f.get(counter);
          this.values(s.step);
          f.op("i32.add");
          f.set(counter);
        });
      }
      case "while":
        return this.#endless(() => {
          this.list(s.head);
          this.values(s.condition);
          f.op("i32.eqz");
          f.branchIf(1);
          this.list(s.body);
        });
      case "repeat":
        return this.#nested("loop", () => {
          this.list(s.body);
          this.values(s.condition);
          f.branchIf(0);
        });
      case "block":
        return this.#nested("block", () => {
          this.#labels.set(s.label, this.#depth);
          this.list(s.body);
        });
      case "once":
        return this.list(s.body);
      case "leave":
        return f.branch(this.#depth - this.#labels.get(s.label)!);
      case "zero":
        f.get(SCRATCH);
        f.i32(s.offset);
        f.op("i32.add");
        f.i32(0);
        f.i32(s.bytes);
        return f.fill();
      case "own":
        f.get(this.part.first);
        f.i32(this.part.bytes);
        f.op("i32.mul");
        f.get(SCRATCH);
        f.op("i32.add");
        f.i32(this.part.parts);
        f.op("i32.add");
        return f.set(this.part.local);
      case "turn":
      case "write":
      case "prefetch":
      case "dequeue":
        throw new Error("internal: '" + s.op + "' is for compiled loops");
    }
  }

  /** A loop that `body` leaves by a branch. */
  #endless(body: () => void): void {
    this.#nested("block", () =>
      this.#nested("loop", () => {
        body();
        this.f.branch(0);
      }));
  }

  #set(local: Local, value: Value): void {
    const { slot } = local;
    if (!slot) {
      this.values(value);
      return this.f.set(this.localOf(local));
    }
    this.f.get(slot.perVector ? this.part.local : SCRATCH);
    this.values(value);
    this.f.load(isScalar(local) ? "i32.store" : "v128.store", slot.offset);
  }

  #store(s: Extract<Statement, { op: "store" }>): void {
    const { f } = this;
    const view = this.#view(s.to);
    const { mask } = s;
    this.#begin(s.value, s.index);
    if (s.form === "anywhere") {
      f.get(view.address);
      f.get(view.length);
      this.#value(s.index);
      this.#value(s.value);
      if (mask) this.#value(mask);
      else f.words(-1, -1, -1, -1);
      return f.call(this.#library.storeLanes());
    }
    const value = f.local(s.form === "one" ? "i32" : "v128");
    const index = f.local("i32");
    this.#value(s.value);
    f.set(value);
    this.#value(s.index);
    f.set(index);
    if (s.form === "one") return storeOne(f, view, { index, value });
    const lanes = this.#library.storeLanes();
    const active = mask && (() => this.#value(mask));
    storeRun(f, view, { index, value, mask: active, lanes });
  }
}

function isScalar({ type }: { readonly type: string }): boolean {
  return type === "u" || type === "pointer";
}
