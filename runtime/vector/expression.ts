/**
 * Lowers expressions of the kernel tree to the vector IR. Integers and bools that are uniform, or a first lane plus a
 * stride, are words; all else is vectors. Bools are 0 or 1 in a word and masks in a vector.
 */

import { invariant } from "../../spec/errors.ts";
import type {
  BinaryOp,
  CallName,
  Expr,
  ScalarType,
  Stmt,
} from "../../spec/kernel/tree.ts";
import { arrayOf, isOfBytes, type Load } from "./accesses.ts";
import type { ByteBounds } from "./byte_bounds.ts";
import {
  apply,
  constant,
  f,
  get,
  laneOf,
  type Local,
  type Memory,
  type Op,
  type Type,
  u,
  v,
  type Value,
  word,
} from "./ir.ts";
import type { Shapes } from "./shape.ts";

type Binary = Extract<Expr, { op: "binary" }>;

/** Operators that differ for signed and unsigned integers. */
const SIGNED: ReadonlySet<BinaryOp> = new Set<BinaryOp>(
  ["shr", "div", "rem", "min", "max", "lt", "le", "gt", "ge"],
);

/** Functions that are operators. */
const OPERATORS: { readonly [F in CallName]?: Op } = {
  fma: "f.fma",
  sqrt: "f.sqrt",
  abs: "f.abs",
  floor: "f.floor",
  ceil: "f.ceil",
  trunc: "f.trunc",
  round: "f.nearest",
  dot4I8: "v.dot4",
  dot4U8I8: "v.dot4_unsigned",
};

/** Bytes up to which two or four products of pairs with i8, added in 16 bits, do not overflow. */
const SMALL = 63, TINY = 31;

/** A load that is known to be in bounds: through a pointer, or in a tile. */
export type Pointed =
  | {
    readonly pointer: Local;
    readonly offset: number;
    /** Elements between lanes. Default: one. */
    readonly apart?: number;
  }
  | { readonly tile: Local; readonly index: Value };

/** Bytes of a table of 16, and what selects them. */
interface Lookup {
  readonly indices: Value;
  readonly table: readonly number[];
}

/** The type of vectors of a scalar type. */
export function vectorType(type: ScalarType): "vf" | "vu" {
  return type === "f32" ? "vf" : "vu";
}

/** Lowers expressions of one kernel. */
export class Expressions {
  readonly shapes: Shapes;
  /** The kernel's variables, and `group.x/y/z` and `local` (its first lane). */
  readonly locals = new Map<string, Local>();
  readonly memories = new Map<string, Memory>();
  readonly pointed = new Map<Expr, Pointed>();
  /** Loads and innermost loops whose range was checked before the loops around them. */
  inRange: ReadonlySet<Expr | Stmt> = new Set();
  /** Set in code that rarely runs. */
  rare = false;
  readonly #bytes: ByteBounds;
  /** Variables of bytes that were looked up. */
  readonly #lookups = new Map<string, Lookup>();
  readonly #words = new Map<Expr, Value>();
  readonly #vectors = new Map<Expr, Value>();

  constructor(shapes: Shapes, bytes: ByteBounds) {
    this.shapes = shapes;
    this.#bytes = bytes;
  }

  /** Starts a statement, in which each expression is evaluated once. */
  begin(): void {
    this.#words.clear();
    this.#vectors.clear();
  }

  /** Whether a value is a word: an integer of known stride, or a uniform bool. */
  isWord(e: Expr): boolean {
    return e.type !== "f32" && this.shapes.of(e).stride !== null;
  }

  /** Lane 0 of a word value. */
  word(e: Expr): Value {
    const value = this.#words.get(e) ?? this.#word(e);
    this.#words.set(e, value);
    return value;
  }

  /** All lanes. */
  vector(e: Expr): Value {
    const value = this.#vectors.get(e) ??
      (this.isWord(e) ? this.#splat(e) : this.#vector(e));
    this.#vectors.set(e, value);
    return value;
  }

  /** All lanes as bits. */
  bits(e: Expr): Value {
    const value = this.vector(e);
    return e.type === "f32" ? v.bits(value) : value;
  }

  /** Prepares for another variable of a name. */
  forget(name: string): void {
    this.#lookups.delete(name);
  }

  /** The bytes that a call of `lookup16` finds. `name`: they are bound to it, `indices` to another. */
  lookup(
    { args: [, ...words] }: Extract<Expr, { op: "call" }>,
    indices: Value,
    name?: string,
  ): Value {
    const table = words.map((e) => Number((e as { value: number }).value));
    if (name !== undefined) this.#lookups.set(name, { indices, table });
    return { op: "lookup", type: "vu", table, args: [indices] };
  }

  /** The product of small bytes that a value is: two or four of them are added in 16 bits. Undefined: it is none. */
  smallProduct(e: Expr): "v.dot4_small" | "v.dot4_tiny" | undefined {
    if (e.op !== "call" || !OPERATORS[e.fn]?.startsWith("v.dot4")) return;
    const bound = this.#bytes.of(e.args[0]!);
    return bound > SMALL
      ? undefined
      : bound > TINY
      ? "v.dot4_small"
      : "v.dot4_tiny";
  }

  /** The variable of a name. */
  local(name: string): Local {
    const local = this.locals.get(name);
    invariant(local, `variable '${name}' is not declared`);
    return local;
  }

  /** The array of a name. */
  memory(name: string): Memory {
    const memory = this.memories.get(name);
    invariant(memory, `array '${name}' is not declared`);
    return memory;
  }

  #splat(e: Expr): Value {
    if (e.op === "const") {
      const value = Number(e.value);
      return constant("vu", e.type === "bool" && value ? -1 : value);
    }
    const first = this.word(e);
    if (e.type === "bool") {
      return v.splat(u.sub(0, first));
    }
    const stride = this.shapes.of(e).stride!;
    const splat = v.splat(first);
    if (stride === 0) return splat;
    return v.add(splat, { op: "iota", type: "vu", stride, args: [] });
  }

  #word(e: Expr): Value {
    switch (e.op) {
      case "const":
        return word(Number(e.value));
      case "local":
      case "id":
        return get(this.local(e.name));
      case "load":
      case "shared":
        return this.#load(e, "u");
      case "unary": {
        const a = this.word(e.a);
        if (e.fn === "neg") return u.sub(0, a);
        return e.type === "bool" ? u.eqz(a) : u.xor(a, -1);
      }
      case "binary":
        return this.#wordBinary(e);
      case "select":
        return u.select(this.word(e.a), this.word(e.b), this.word(e.condition));
      case "convert": {
        if (e.a.type === "f32") {
          const first = laneOf(this.#convert(e), 0);
          return e.type === "bool" ? u.and(first, 1) : first;
        }
        const a = this.word(e.a);
        return e.type === "bool" && e.a.type !== "bool" ? u.ne(a, 0) : a;
      }
      case "bitcast":
        return e.a.type === "f32" ? laneOf(this.bits(e.a), 0) : this.word(e.a);
      case "call":
        return laneOf(this.#vector(e), 0);
    }
  }

  #wordBinary(e: Binary): Value {
    if (e.a.type === "f32") {
      return u.and(laneOf(this.#binary(e), 0), 1);
    }
    const signed = e.a.type === "i32";
    const [a, b] = [this.word(e.a), this.word(e.b)];
    const name = nameOf(e.fn, signed);
    if (e.fn === "min" || e.fn === "max") {
      const order = e.fn === "min" ? "lt" : "gt";
      const first = apply(`u.${order}${signed ? "_s" : "_u"}`, a, b);
      return u.select(a, b, first);
    }
    if (e.fn !== "div" && e.fn !== "rem") return apply(`u.${name}` as Op, a, b);
    // A known value may be a u32: 4294967295 is -1.
    const known = (this.shapes.of(e.b).value ?? 0) | 0;
    if (known !== 0 && known !== -1) return apply(`u.${name}` as Op, a, b);
    // As in WGSL, a division by zero returns a / 1, without a trap.
    const zero = u.eqz(b);
    const isMin = u.eq(a, 2 ** 31);
    const wraps = u.and(isMin, u.eq(b, -1));
    const bad = signed ? u.or(zero, wraps) : zero;
    return apply(`u.${name}` as Op, a, u.select(1, b, bad));
  }

  #vector(e: Expr): Value {
    switch (e.op) {
      case "const":
        return constant("vf", Number(e.value));
      case "local":
        return get(this.local(e.name));
      case "load":
      case "shared":
        return this.#load(e, vectorType(e.type));
      case "unary": {
        const a = this.vector(e.a);
        if (e.fn === "not") return v.not(a);
        return apply(e.type === "f32" ? "f.neg" : "v.neg", a);
      }
      case "binary":
        return this.#binary(e);
      case "call": {
        const args = e.args.map((arg) => this.vector(arg));
        const fn = OPERATORS[e.fn];
        const product = this.smallProduct(e) ?? fn;
        if (product) return apply(product, ...args);
        if (e.fn === "rsqrt") {
          return f.div(1, f.sqrt(...args));
        }
        if (e.fn === "lookup16") return this.lookup(e, args[0]!);
        return { op: "call", type: "vf", fn: e.fn, args };
      }
      case "select": {
        const family = e.type === "f32" ? "f" : "v";
        const [a, b] = [this.vector(e.a), this.vector(e.b)];
        return this.isWord(e.condition)
          ? apply(`${family}.select`, a, b, this.word(e.condition))
          : apply(`${family}.pick`, a, b, this.vector(e.condition));
      }
      case "convert":
        return this.#convert(e);
      case "bitcast": {
        const a = this.vector(e.a);
        if (vectorType(e.type) === vectorType(e.a.type)) return a;
        return apply(e.type === "f32" ? "f.bits" : "v.bits", a);
      }
      case "id":
        throw new Error(`internal: '${e.name}' is not affine`);
    }
  }

  #convert(e: Extract<Expr, { op: "convert" }>): Value {
    const a = this.vector(e.a);
    const from = e.a.type;
    if (e.type === from) return a;
    if (e.type === "bool") {
      return from === "f32" ? f.ne(a, 0) : v.ne(a, 0);
    }
    if (from === "bool") {
      const one = (bits: number) => v.and(a, bits);
      return e.type === "f32" ? f.bits(one(0x3f800000)) : one(1);
    }
    if (e.type === "f32") {
      return from === "i32"
        ? this.#entry(e.a, f.from_s(a))
        : apply("f.from_u", a);
    }
    return from === "f32"
      ? apply(e.type === "i32" ? "v.to_s" : "v.to_u", a)
      : a;
  }

  /** An integer as f32, `value`. A signed byte that was looked up is an entry of a table of floats. */
  #entry(e: Expr, value: Value): Value {
    const found = signedByte(e);
    const known = found && found.word.op === "local"
      ? this.#lookups.get(found.word.name)
      : undefined;
    if (!found || !known) return value;
    const floats = known.table.flatMap((word) =>
      [24, 16, 8, 0].map((left) => word << left >> 24)
    );
    const args = [value, known.indices];
    return { op: "entry", type: "vf", shift: 8 * found.byte, floats, args };
  }

  #binary(e: Binary): Value {
    const a = this.vector(e.a);
    const signed = e.a.type === "i32";
    const name = nameOf(e.fn, signed);
    if (e.fn === "shl" || e.fn === "shr") {
      return this.shapes.isUniform(e.b)
        ? apply(`v.${name}` as Op, a, this.word(e.b))
        : apply(
          `v.${name.replace(e.fn, `${e.fn}_each`)}` as Op,
          a,
          this.vector(e.b),
        );
    }
    const b = this.vector(e.b);
    if (e.a.type === "f32") {
      if (e.fn !== "rem") return apply(`f.${e.fn}` as Op, a, b);
      const quotient = f.trunc(f.div(a, b));
      return f.sub(a, f.mul(b, quotient));
    }
    if (e.fn !== "div" && e.fn !== "rem") return apply(`v.${name}` as Op, a, b);
    const is = (x: Value, value: number) => v.eq(x, value);
    const wraps = v.and(is(a, -(2 ** 31)), is(b, -1));
    const bad = signed ? v.or(is(b, 0), wraps) : is(b, 0);
    const divisor = v.pick(1, b, bad);
    return apply(`v.${name}` as Op, a, divisor);
  }

  #load(e: Load, type: Type): Value {
    const { stride } = this.shapes.of(e.index);
    const bytes = isOfBytes(e);
    const form = type === "u"
      ? "one"
      : stride === 0
      ? "splat"
      : stride === 1 && !bytes
      ? "run"
      : "anywhere";
    const pointed = this.pointed.get(e);
    if (pointed && "tile" in pointed) {
      return { op: "tile", type, tile: pointed.tile, args: [pointed.index] };
    }
    if (pointed) {
      const { pointer, offset, apart = 1 } = pointed;
      const args = [get(pointer)];
      return { op: "read", type, form, offset, apart, bytes, args };
    }
    const index = form === "anywhere"
      ? this.vector(e.index)
      : this.word(e.index);
    const from = this.memory(arrayOf(e));
    const isKnown = this.inRange.has(e) && (form !== "anywhere" || bytes);
    const check = isKnown ? "none" : this.rare ? "called" : "inline";
    return { op: "load", type, from, form, bytes, check, args: [index] };
  }
}

/** The word and the number of a byte, if a value is a signed byte of a word: `i32(word << 24 - 8 * byte) >> 24`. */
function signedByte(
  e: Expr,
): { readonly word: Expr; readonly byte: number } | undefined {
  if (e.op !== "binary" || e.fn !== "shr" || valueOf(e.b) !== 24) return;
  const { a: shifted } = e;
  if (shifted.op !== "convert" && shifted.op !== "bitcast") return;
  if (shifted.a.op !== "binary") return;
  const { fn, a: word, b } = shifted.a;
  const left = valueOf(b);
  if (fn !== "shl" || left === undefined || left > 24 || left % 8 !== 0) return;
  return { word, byte: 3 - left / 8 };
}

function valueOf(e: Expr): number | undefined {
  return e.op === "const" ? Number(e.value) : undefined;
}

/** The IR's name of an operator on integers or bools. */
function nameOf(fn: BinaryOp, signed: boolean): string {
  if (fn === "land") return "and";
  if (fn === "lor") return "or";
  return SIGNED.has(fn) ? `${fn}${signed ? "_s" : "_u"}` : fn;
}
