/** Expressions of the kernel tree to WebAssembly: integers and bools that do not vary are scalars, all else vectors. */

import { invariant } from "../../spec/errors.ts";
import type { BinaryOp, Expr } from "../../spec/kernel/tree.ts";
import { repeated } from "../vector/analyze.ts";
import {
  gather,
  type MemoryView,
  type PointedLoad,
  pushAddress,
  pushRunAddress,
} from "./array_access.ts";
import {
  isCalled,
  type MathLibrary,
  type Push,
  roundF16,
  unpackF16,
  VectorCode,
} from "./math.ts";
import type { Shapes } from "../vector/shape.ts";
import { f32Bits, type WasmFunction, type WasmOp } from "./wasm.ts";

type Binary = Extract<Expr, { op: "binary" }>;

const INT_OPS: { readonly [O in BinaryOp]?: string } = {
  add: "add",
  sub: "sub",
  mul: "mul",
  and: "and",
  or: "or",
  xor: "xor",
  land: "and",
  lor: "or",
  shl: "shl",
  eq: "eq",
  ne: "ne",
};
/** Operations that differ for signed and unsigned. */
const SIGNED_OPS = new Set<BinaryOp>(["shr", "lt", "le", "gt", "ge"]);

/** An offset behind the address in a local. */
export interface Place {
  readonly base: number;
  readonly offset: number;
}

/** Prints expressions into one function. */
export class Expressions {
  readonly f: WasmFunction;
  readonly shapes: Shapes;
  readonly code: VectorCode;
  /** Wasm locals of the kernel's variables. */
  readonly locals = new Map<string, number>();
  /** Where variables are that have memory and no local. */
  readonly resting = new Map<string, Place>();
  readonly views = new Map<string, MemoryView>();
  /** Locals of `group.x/y/z` and `local` (its first lane). */
  readonly ids = new Map<string, number>();
  readonly pointed = new Map<Expr, PointedLoad>();
  readonly #math: MathLibrary;
  #shared = new Set<Expr>();
  #cached = new Map<Expr, { scalar?: number; vector?: number }>();

  constructor(f: WasmFunction, shapes: Shapes, math: MathLibrary) {
    this.f = f;
    this.shapes = shapes;
    this.code = new VectorCode(f);
    this.#math = math;
  }

  /** Start a statement: nodes that occur more than once in these expressions are evaluated once. */
  begin(expressions: readonly Expr[]): void {
    this.#cached.clear();
    this.#shared = repeated(expressions);
  }

  #once(e: Expr, form: "scalar" | "vector", push: () => void): void {
    if (!this.#shared.has(e)) return push();
    let cached = this.#cached.get(e);
    if (!cached) this.#cached.set(e, cached = {});
    const known = cached[form];
    if (known !== undefined) return this.f.get(known);
    push();
    cached[form] = this.f.local(form === "scalar" ? "i32" : "v128");
    this.f.tee(cached[form]);
  }

  /** Whether a value is kept as an i32: integers of known stride, uniform bools. */
  isScalar(e: Expr): boolean {
    return e.type !== "f32" && this.shapes.of(e).stride !== null;
  }

  /** Push lane 0 of an integer or bool that `isScalar`; bools are 0 or 1. */
  scalar(e: Expr): void {
    this.#once(e, "scalar", () => this.#scalar(e));
  }

  /** Push all lanes; bools are masks. */
  vector(e: Expr): void {
    this.#once(e, "vector", () => {
      if (this.isScalar(e)) this.#spread(e);
      else this.#vector(e);
    });
  }

  #spread(e: Expr): void {
    const { f } = this;
    if (e.op === "const") {
      const word = e.type === "bool" ? (e.value ? -1 : 0) : Number(e.value);
      return f.words(word, word, word, word);
    }
    if (e.type === "bool") {
      f.i32(0);
      this.scalar(e);
      return f.op("i32.sub", "i32x4.splat");
    }
    this.scalar(e);
    f.op("i32x4.splat");
    const stride = this.shapes.of(e).stride!;
    if (stride !== 0) {
      f.words(0, stride, Math.imul(stride, 2), Math.imul(stride, 3));
      f.op("i32x4.add");
    }
  }

  #scalar(e: Expr): void {
    const { f } = this;
    switch (e.op) {
      case "const":
        return f.i32(Number(e.value));
      case "local":
        return f.get(this.#localOf(e.name));
      case "id":
        return f.get(this.ids.get(e.name)!);
      case "load":
        return this.#scalarLoad(e, e.binding);
      case "shared":
        return this.#scalarLoad(e, e.array);
      case "unary":
        if (e.fn === "neg") {
          f.i32(0);
          this.scalar(e.a);
          return f.op("i32.sub");
        }
        this.scalar(e.a);
        if (e.type === "bool") return f.op("i32.eqz");
        f.i32(-1);
        return f.op("i32.xor");
      case "binary":
        return this.#scalarBinary(e);
      case "select":
        this.scalar(e.a);
        this.scalar(e.b);
        this.scalar(e.condition);
        return f.op("select");
      case "convert":
        return this.#scalarConvert(e);
      case "bitcast":
        if (e.a.type !== "f32") return this.scalar(e.a);
        this.vector(e.a);
        return f.extract(0);
      case "call":
        throw new Error(`internal: '${e.fn}' as an integer`);
    }
  }

  /** Push a variable that is kept as a vector. */
  variable(name: string): void {
    const place = this.resting.get(name);
    if (!place) return this.f.get(this.#localOf(name));
    this.f.get(place.base);
    this.f.load("v128.load", place.offset);
  }

  #localOf(name: string): number {
    const local = this.locals.get(name);
    invariant(local !== undefined, `variable '${name}' is not declared`);
    return local;
  }

  #scalarConvert(e: Extract<Expr, { op: "convert" }>): void {
    const { f } = this;
    if (e.a.type !== "f32") {
      this.scalar(e.a);
      if (e.type === "bool" && e.a.type !== "bool") {
        f.i32(0);
        f.op("i32.ne");
      }
      return;
    }
    this.#vectorConvert(e);
    f.extract(0);
    if (e.type === "bool") {
      f.i32(1);
      f.op("i32.and");
    }
  }

  #scalarBinary(e: Binary): void {
    const { f } = this;
    if (e.a.type === "f32") {
      this.#vectorBinary(e);
      f.extract(0);
      f.i32(1);
      return f.op("i32.and");
    }
    const signed = e.a.type === "i32";
    const suffix = signed ? "_s" : "_u";
    this.scalar(e.a);
    this.scalar(e.b);
    if (e.fn === "min" || e.fn === "max") {
      const a = f.local("i32");
      const b = f.local("i32");
      f.set(b);
      f.tee(a);
      f.get(b);
      f.get(a);
      f.get(b);
      f.op(`i32.${e.fn === "min" ? "lt" : "gt"}${suffix}` as WasmOp);
      return f.op("select");
    }
    if (e.fn === "div" || e.fn === "rem") {
      return this.#divide(e.fn, signed, this.shapes.of(e.b).value);
    }
    if (SIGNED_OPS.has(e.fn)) return f.op(`i32.${e.fn}${suffix}` as WasmOp);
    f.op(`i32.${INT_OPS[e.fn]!}` as WasmOp);
  }

  /** a / b or a % b of two i32 on the stack; like WGSL, division by zero gives a / 1 and nothing traps. */
  #divide(fn: "div" | "rem", signed: boolean, divisor?: number): void {
    const { f } = this;
    const op = `i32.${fn}${signed ? "_s" : "_u"}` as WasmOp;
    // A known value may be that of a u32: 4294967295 is -1.
    if (divisor !== undefined && (divisor | 0) !== 0 && (divisor | 0) !== -1) {
      return f.op(op);
    }
    const a = f.local("i32");
    const b = f.local("i32");
    f.set(b);
    f.set(a);
    f.get(a);
    f.i32(1);
    f.get(b);
    f.get(b);
    f.op("i32.eqz");
    if (signed) {
      f.get(a);
      f.i32(-(2 ** 31));
      f.op("i32.eq");
      f.get(b);
      f.i32(-1);
      f.op("i32.eq", "i32.and", "i32.or");
    }
    f.op("select", op);
  }

  #vector(e: Expr): void {
    const { f } = this;
    switch (e.op) {
      case "const":
        return f.f32x4(Number(e.value));
      case "local":
        return this.variable(e.name);
      case "load":
        return this.#vectorLoad(e, e.binding);
      case "shared":
        return this.#vectorLoad(e, e.array);
      case "unary":
        this.vector(e.a);
        if (e.fn === "not") return f.op("v128.not");
        return f.op(e.type === "f32" ? "f32x4.neg" : "i32x4.neg");
      case "binary":
        return this.#vectorBinary(e);
      case "call":
        return this.#call(e);
      case "select":
        this.vector(e.a);
        this.vector(e.b);
        if (this.isScalar(e.condition)) {
          this.scalar(e.condition);
          return f.op("select");
        }
        this.vector(e.condition);
        return f.op("v128.bitselect");
      case "convert":
        return this.#vectorConvert(e);
      case "bitcast":
        return this.vector(e.a);
      case "id":
        throw new Error(`internal: '${e.name}' is not affine`);
    }
  }

  #vectorConvert(e: Extract<Expr, { op: "convert" }>): void {
    const { f } = this;
    this.vector(e.a);
    if (e.type === e.a.type) return;
    if (e.type === "bool") {
      f.words(0, 0, 0, 0);
      return f.op(e.a.type === "f32" ? "f32x4.ne" : "i32x4.ne");
    }
    if (e.a.type === "bool") {
      const one = e.type === "f32" ? f32Bits(1) : 1;
      f.words(one, one, one, one);
      return f.op("v128.and");
    }
    if (e.type === "f32") {
      return f.op(
        e.a.type === "i32" ? "f32x4.convert_i32x4_s" : "f32x4.convert_i32x4_u",
      );
    }
    if (e.a.type === "f32") {
      f.op(
        e.type === "i32"
          ? "i32x4.trunc_sat_f32x4_s"
          : "i32x4.trunc_sat_f32x4_u",
      );
    }
  }

  #vectorBinary(e: Binary): void {
    const { f } = this;
    if (e.fn === "shl" || e.fn === "shr") return this.#shift(e);
    if (e.type !== "f32" && (e.fn === "div" || e.fn === "rem")) {
      return this.#divideLanes(e);
    }
    const floats = e.a.type === "f32";
    if (floats && e.fn === "rem") {
      const a = this.code.bind(() => this.vector(e.a));
      const b = this.code.bind(() => this.vector(e.b));
      const { op } = this.code;
      const whole = op("f32x4.trunc", op("f32x4.div", a, b));
      return op("f32x4.sub", a, op("f32x4.mul", b, whole))();
    }
    this.vector(e.a);
    this.vector(e.b);
    if (floats) {
      const name = e.fn === "min" || e.fn === "max" ? `p${e.fn}` : e.fn;
      return f.op(`f32x4.${name}` as WasmOp);
    }
    if (["and", "or", "xor", "land", "lor"].includes(e.fn)) {
      return f.op(`v128.${INT_OPS[e.fn]!}` as WasmOp);
    }
    const suffix = SIGNED_OPS.has(e.fn) || e.fn === "min" || e.fn === "max"
      ? (e.a.type === "i32" ? "_s" : "_u")
      : "";
    f.op(`i32x4.${e.fn}${suffix}` as WasmOp);
  }

  #shift(e: Binary): void {
    const { f } = this;
    const signed = e.type === "i32" ? "_s" : "_u";
    const suffix = e.fn === "shl" ? "shl" : `shr${signed}`;
    this.vector(e.a);
    if (this.shapes.isUniform(e.b)) {
      this.scalar(e.b);
      return f.op(`i32x4.${suffix}` as WasmOp);
    }
    this.vector(e.b);
    this.#eachLane(() => f.op(`i32.${suffix}` as WasmOp));
  }

  #divideLanes(e: Binary): void {
    this.vector(e.a);
    this.vector(e.b);
    const divisor = this.shapes.of(e.b).value;
    const { fn } = e;
    if (fn === "div" || fn === "rem") {
      this.#eachLane(() => this.#divide(fn, e.type === "i32", divisor));
    }
  }

  /** Apply a scalar operation to each lane of the two vectors on the stack. */
  #eachLane(operation: () => void): void {
    const { f } = this;
    const a = f.local("v128");
    const b = f.local("v128");
    f.set(b);
    f.tee(a);
    for (let lane = 0; lane < 4; lane++) {
      f.get(a);
      f.extract(lane);
      f.get(b);
      f.extract(lane);
      operation();
      f.replace(lane);
    }
  }

  #call(e: Extract<Expr, { op: "call" }>): void {
    const { f } = this;
    const args = e.args.map((arg): Push => () => this.vector(arg));
    const [a, b, c] = args as [Push, Push, Push];
    const { op, bind, pick, f32 } = this.code;
    if (isCalled(e.fn)) {
      for (const arg of args) arg();
      return f.call(this.#math.index(e.fn));
    }
    switch (e.fn) {
      case "fma":
        return op("f32x4.add", op("f32x4.mul", a, b), c)();
      case "sqrt":
        return op("f32x4.sqrt", a)();
      case "rsqrt":
        return op("f32x4.div", f32(1), op("f32x4.sqrt", a))();
      case "abs":
      case "floor":
      case "ceil":
      case "trunc":
        return op(`f32x4.${e.fn}`, a)();
      case "round":
        return op("f32x4.nearest", a)();
      case "sign": {
        const x = bind(a);
        const one = op("v128.or", f32(1), op("v128.and", x, f32(-0)));
        return pick(op("f32x4.eq", x, f32(0)), f32(0), one)();
      }
      case "roundF16":
        return roundF16(this.code, a)();
      case "unpackF16Lo":
        return unpackF16(this.code, a, "low")();
      case "unpackF16Hi":
        return unpackF16(this.code, a, "high")();
      default:
        throw new Error(`internal: function '${e.fn}'`);
    }
  }

  #view(name: string): MemoryView {
    const view = this.views.get(name);
    invariant(view, `array '${name}' is not declared`);
    return view;
  }

  #scalarLoad(
    e: Extract<Expr, { op: "load" | "shared" }>,
    array: string,
  ): void {
    const pointed = this.pointed.get(e);
    if (pointed) {
      this.f.get(pointed.pointer);
      return this.f.load("i32.load", pointed.offset);
    }
    pushAddress(this.f, this.#view(array), () => this.scalar(e.index));
    this.f.load("i32.load");
  }

  #vectorLoad(
    e: Extract<Expr, { op: "load" | "shared" }>,
    array: string,
  ): void {
    const { f } = this;
    const { stride } = this.shapes.of(e.index);
    const op = stride === 0 ? "v128.load32_splat" : "v128.load";
    const pointed = this.pointed.get(e);
    if (pointed) {
      f.get(pointed.pointer);
      return f.load(op, pointed.offset);
    }
    const view = this.#view(array);
    if (stride === 0) {
      pushAddress(f, view, () => this.scalar(e.index));
      return f.load(op);
    }
    if (stride === 1) {
      pushRunAddress(f, view, () => this.scalar(e.index));
      return f.load(op);
    }
    gather(f, view, () => this.vector(e.index));
  }
}
