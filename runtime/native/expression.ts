/**
 * Expressions of the kernel tree to C: integers and bools that are the same in all lanes, or a first lane and a stride, are
 * scalars of type `u`; all else is a vector, `vf` of f32 and `vu` of anything else. Bools are 0 or 1 in a scalar and masks in
 * a vector.
 */

import { invariant } from "../../spec/errors.ts";
import type {
  BinaryOp,
  CallName,
  Expr,
  ScalarType,
} from "../../spec/kernel/tree.ts";
import { repeated } from "../vector/analyze.ts";
import type { Shapes } from "../vector/shape.ts";
import type { Writer } from "./writer.ts";

type Binary = Extract<Expr, { op: "binary" }>;
type Load = Extract<Expr, { op: "load" | "shared" }>;

/** An array in memory: names of its address and its length. */
export interface ArrayNames {
  readonly address: string;
  readonly length: string;
}

/** Brackets in brackets up to which an expression is one text. */
const MAX_NESTING = 16;

/** Operators that are the same on bits, whatever the type. */
const OPERATORS: { readonly [O in BinaryOp]?: string } = {
  add: "+",
  sub: "-",
  mul: "*",
  and: "&",
  or: "|",
  xor: "^",
  land: "&",
  lor: "|",
  eq: "==",
  ne: "!=",
};
/** Operators that differ for signed and unsigned. */
const ORDERS: { readonly [O in BinaryOp]?: string } = {
  lt: "<",
  le: "<=",
  gt: ">",
  ge: ">=",
};
const CALLS: { readonly [F in CallName]: string } = {
  fma: "fma_of",
  rsqrt: "",
  exp: "exp_of",
  log: "log_of",
  sqrt: "root",
  sin: "sin_of",
  cos: "cos_of",
  tanh: "tanh_of",
  abs: "absolute",
  floor: "floor_of",
  ceil: "ceil_of",
  trunc: "truncated",
  round: "nearest",
  sign: "sign",
  pow: "pow_of",
  roundF16: "round_f16",
  unpackF16Lo: "unpack_low",
  unpackF16Hi: "unpack_high",
};

/** An f32 constant in C, of the same bits. */
export function floatInC(value: number): string {
  const x = Math.fround(value);
  if (Number.isNaN(x)) return "number(0x7fc00000u)";
  if (!Number.isFinite(x)) return x > 0 ? "INFINITY" : "-INFINITY";
  return `${x < 0 || Object.is(x, -0) ? "-" : ""}${
    Math.abs(x).toExponential(9)
  }f`;
}

/** How deeply brackets are nested in a text. */
function nesting(text: string): number {
  let depth = 0;
  let most = 0;
  for (const character of text) {
    if (character === "(") most = Math.max(most, ++depth);
    else if (character === ")") depth--;
  }
  return most;
}

/** Prints expressions into one function. */
export class Expressions {
  readonly writer: Writer;
  readonly shapes: Shapes;
  /** C names of the kernel's variables. */
  readonly locals = new Map<string, string>();
  readonly arrays = new Map<string, ArrayNames>();
  /** Texts of `group.x/y/z` and `local` (its first lane). */
  readonly ids = new Map<string, string>();
  /** Loads that are known to be in range: pointers to their first element, or vectors where lanes are further apart. */
  readonly pointed = new Map<Expr, string>();
  #shared = new Set<Expr>();
  #rare = false;
  #kept = new Map<Expr, { scalar?: string; vector?: string }>();

  constructor(writer: Writer, shapes: Shapes) {
    this.writer = writer;
    this.shapes = shapes;
  }

  /** Start a statement: nodes that occur more than once in these expressions are evaluated once, before it. */
  begin(...expressions: readonly Expr[]): void {
    this.#kept.clear();
    this.#shared = repeated(expressions);
  }

  /** Print what hardly ever runs: the less text the compiler has of it, the better. */
  rarely(print: () => void): void {
    const outer = this.#rare;
    this.#rare = true;
    print();
    this.#rare = outer;
  }

  #once(e: Expr, form: "scalar" | "vector", print: () => string): string {
    const known = this.#kept.get(e)?.[form];
    if (known !== undefined) return known;
    let text = print();
    if (this.#shared.has(e) || nesting(text) > MAX_NESTING) {
      text = this.keep(
        form === "scalar" ? "u" : this.vectorType(e.type),
        text,
      );
      this.#kept.set(e, { ...this.#kept.get(e), [form]: text });
    }
    return text;
  }

  /** Give a value a name. */
  keep(type: string, text: string): string {
    const name = this.writer.name("t");
    this.writer.line(`const ${type} ${name} = ${text};`);
    return name;
  }

  vectorType(type: ScalarType): "vf" | "vu" {
    return type === "f32" ? "vf" : "vu";
  }

  /** Whether a value is a scalar in C: integers of known stride, uniform bools. */
  isScalar(e: Expr): boolean {
    return e.type !== "f32" && this.shapes.of(e).stride !== null;
  }

  /** Lane 0 of an integer or bool that `isScalar`. */
  scalar(e: Expr): string {
    return this.#once(e, "scalar", () => this.#scalar(e));
  }

  /** All lanes. */
  vector(e: Expr): string {
    return this.#once(
      e,
      "vector",
      () => this.isScalar(e) ? this.#spread(e) : this.#vector(e),
    );
  }

  /** All lanes as words. */
  words(e: Expr): string {
    return e.type === "f32" ? `(vu)${this.vector(e)}` : this.vector(e);
  }

  /** Lane `lane` as a word. */
  lane(e: Expr, lane: number): string {
    return this.isScalar(e) && this.shapes.isUniform(e)
      ? this.scalar(e)
      : `(${this.words(e)})[${lane}]`;
  }

  #spread(e: Expr): string {
    if (e.type === "bool") return `mask(${this.scalar(e)})`;
    const stride = this.shapes.of(e).stride!;
    const first = `splat(${this.scalar(e)})`;
    if (stride === 0) return first;
    return `(${first} + IOTA${stride === 1 ? "" : ` * ${stride >>> 0}u`})`;
  }

  #scalar(e: Expr): string {
    switch (e.op) {
      case "const":
        return `${Number(e.value) >>> 0}u`;
      case "local":
        return this.#localOf(e.name);
      case "id":
        return this.ids.get(e.name)!;
      case "load":
      case "shared": {
        const pointer = this.pointed.get(e);
        if (pointer !== undefined) return `${pointer}[0]`;
        const { address, length } = this.#array(e);
        return `load(${address}, ${length}, ${this.scalar(e.index)})`;
      }
      case "unary":
        if (e.fn === "neg") return `(0u - ${this.scalar(e.a)})`;
        return e.type === "bool"
          ? `(${this.scalar(e.a)} ^ 1u)`
          : `(~${this.scalar(e.a)})`;
      case "binary":
        return this.#scalarBinary(e);
      case "select":
        return `(${this.scalar(e.condition)} ? ${this.scalar(e.a)} : ${
          this.scalar(e.b)
        })`;
      case "convert":
        if (e.a.type === "f32") {
          return e.type === "bool"
            ? `(${this.#vectorConvert(e)}[0] & 1u)`
            : `${this.#vectorConvert(e)}[0]`;
        }
        return e.type === "bool" && e.a.type !== "bool"
          ? `(u)(${this.scalar(e.a)} != 0u)`
          : this.scalar(e.a);
      case "bitcast":
        return e.a.type === "f32"
          ? `((vu)${this.vector(e.a)})[0]`
          : this.scalar(e.a);
      case "call":
        throw new Error(`internal: '${e.fn}' as an integer`);
    }
  }

  #scalarBinary(e: Binary): string {
    if (e.a.type === "f32") return `(${this.#vectorBinary(e)}[0] & 1u)`;
    const signed = e.a.type === "i32";
    const a = this.scalar(e.a);
    const b = this.scalar(e.b);
    const cast = signed ? "(i)" : "";
    switch (e.fn) {
      case "min":
        return `(${cast}${a} < ${cast}${b} ? ${a} : ${b})`;
      case "max":
        return `(${cast}${a} > ${cast}${b} ? ${a} : ${b})`;
      case "div":
        return `divide${signed ? "_signed" : ""}(${a}, ${b})`;
      case "rem":
        return `remain${signed ? "_signed" : ""}(${a}, ${b})`;
      case "shl":
        return `(${a} << (${b} & 31u))`;
      case "shr":
        return signed
          ? `((u)((i)${a} >> (${b} & 31u)))`
          : `(${a} >> (${b} & 31u))`;
    }
    const order = ORDERS[e.fn];
    if (order) return `((u)(${cast}${a} ${order} ${cast}${b}))`;
    const text = `(${a} ${OPERATORS[e.fn]!} ${b})`;
    return e.fn === "eq" || e.fn === "ne" ? `((u)${text})` : text;
  }

  #vector(e: Expr): string {
    switch (e.op) {
      case "const":
        return `splatf(${floatInC(Number(e.value))})`;
      case "local":
        return this.#localOf(e.name);
      case "load":
      case "shared":
        return this.#vectorLoad(e);
      case "unary":
        return `(${e.fn === "not" ? "~" : "-"}${this.vector(e.a)})`;
      case "binary":
        return this.#vectorBinary(e);
      case "call":
        return this.#call(e);
      case "select": {
        const type = this.vectorType(e.type);
        const [a, b] = [this.vector(e.a), this.vector(e.b)];
        if (this.isScalar(e.condition)) {
          return `(${this.scalar(e.condition)} ? ${a} : ${b})`;
        }
        return `pick${type === "vf" ? "f" : ""}(${
          this.vector(e.condition)
        }, ${a}, ${b})`;
      }
      case "convert":
        return this.#vectorConvert(e);
      case "bitcast":
        return `((${this.vectorType(e.type)})${this.vector(e.a)})`;
      case "id":
        throw new Error(`internal: '${e.name}' is not affine`);
    }
  }

  #vectorConvert(e: Extract<Expr, { op: "convert" }>): string {
    const a = this.vector(e.a);
    const from = e.a.type;
    if (e.type === from) return a;
    if (e.type === "bool") {
      return `((vu)(${a} != ${from === "f32" ? "0.0f" : "0u"}))`;
    }
    if (from === "bool") {
      return e.type === "f32" ? `((vf)(${a} & 0x3f800000u))` : `(${a} & 1u)`;
    }
    if (e.type === "f32") {
      return `from_${from === "i32" ? "signed" : "unsigned"}(${a})`;
    }
    if (from !== "f32") return a;
    return `to_${e.type === "i32" ? "signed" : "unsigned"}(${a})`;
  }

  #vectorBinary(e: Binary): string {
    const signed = e.a.type === "i32";
    const floats = e.a.type === "f32";
    const a = this.vector(e.a);
    if (e.fn === "shl" || e.fn === "shr") {
      const by = this.shapes.isUniform(e.b)
        ? `(${this.scalar(e.b)} & 31u)`
        : `(${this.vector(e.b)} & 31u)`;
      if (e.fn === "shl") return `(${a} << ${by})`;
      const kind = this.shapes.isUniform(e.b) ? "(i)" : "(vi)";
      return signed ? `((vu)((vi)${a} >> ${kind}${by}))` : `(${a} >> ${by})`;
    }
    const b = this.vector(e.b);
    const suffix = signed ? "_signed" : "";
    switch (e.fn) {
      case "min":
      case "max":
        return floats
          ? `${e.fn}_of(${a}, ${b})`
          : `${e.fn}_lanes${suffix}(${a}, ${b})`;
      case "div":
        if (floats) return `(${a} / ${b})`;
        return `divide_lanes${suffix}(${a}, ${b})`;
      case "rem":
        if (floats) return `remainder_of(${a}, ${b})`;
        return `remain_lanes${suffix}(${a}, ${b})`;
    }
    const cast = signed ? "(vi)" : "";
    const order = ORDERS[e.fn];
    if (order) return `((vu)(${cast}${a} ${order} ${cast}${b}))`;
    const text = `(${a} ${OPERATORS[e.fn]!} ${b})`;
    return e.fn === "eq" || e.fn === "ne" ? `((vu)${text})` : text;
  }

  #call(e: Extract<Expr, { op: "call" }>): string {
    const args = e.args.map((arg) => this.vector(arg));
    if (e.fn === "rsqrt") return `(1.0f / root(${args[0]}))`;
    return `${CALLS[e.fn]}(${args.join(", ")})`;
  }

  #localOf(name: string): string {
    const local = this.locals.get(name);
    invariant(local !== undefined, `variable '${name}' is not declared`);
    return local;
  }

  #array(e: Load): ArrayNames {
    const name = e.op === "load" ? e.binding : e.array;
    const array = this.arrays.get(name);
    invariant(array, `array '${name}' is not declared`);
    return array;
  }

  #vectorLoad(e: Load): string {
    const { stride } = this.shapes.of(e.index);
    const pointer = this.pointed.get(e);
    const { address, length } = this.#array(e);
    const words = pointer !== undefined
      ? stride === 0
        ? `splat(${pointer}[0])`
        : stride === 1
        ? `*(const run_of_words *)(${pointer})`
        : pointer
      : stride === 0
      ? `splat(load(${address}, ${length}, ${this.scalar(e.index)}))`
      : stride === 1
      ? `load_run(${address}, ${length}, ${this.scalar(e.index)})`
      : `gather${this.#rare ? "_called" : ""}(${address}, ${length}, ${
        this.vector(e.index)
      })`;
    return e.type === "f32" ? `((vf)${words})` : `((vu)${words})`;
  }
}
