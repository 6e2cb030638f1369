/** Builds valid kernel trees from random numbers: names are bound, types match, and nothing races. */

import {
  barrier,
  call,
  convert,
  f32,
  for_,
  i32,
  id,
  if_,
  let_,
  load,
  local,
  select,
  set,
  shared,
  sharedStore,
  store,
  u32,
  var_,
} from "../../spec/kernel/build.ts";
import type {
  BinaryOp,
  CallName,
  Expr,
  Kernel,
  ScalarType,
  Stmt,
} from "../../spec/kernel/tree.ts";

/** Elements of each binding. */
export const LENGTH = 96;

type Type = "f32" | "i32" | "u32" | "bool";

const WORDS = [
  0,
  1,
  2,
  3,
  4,
  5,
  7,
  8,
  31,
  32,
  95,
  96,
  2 ** 28,
  2 ** 31,
  2 ** 32 - 1,
];
const INTS = [0, 1, -1, 3, 100, -(2 ** 31), 2 ** 31 - 1];
const FLOATS = [
  0,
  -0,
  1,
  -1,
  0.5,
  3.25,
  1e-40,
  1e30,
  -65504,
  2 ** 31,
  Infinity,
];
const ARITHMETIC: readonly BinaryOp[] = [
  "add",
  "sub",
  "mul",
  "div",
  "rem",
  "min",
  "max",
];
const PORTABLE: readonly BinaryOp[] = ["add", "mul", "min", "max"];
const BITS: readonly BinaryOp[] = ["and", "or", "xor"];
const COMPARE: readonly BinaryOp[] = ["lt", "le", "gt", "ge", "eq", "ne"];
/** Functions that are exact on all targets and have one result for NaN. */
const CALLS: readonly CallName[] = [
  "sqrt",
  "abs",
  "floor",
  "ceil",
  "trunc",
  "round",
];

/** Table of sixteen bytes. */
const TABLE = [0x03020100, 0x0c080604, 0xfdfeff00, 0xf4f8fafc].map(u32);

/** As `binary` of build.ts, but without constant folding. */
function binary(fn: BinaryOp, a: Expr, b: Expr): Expr {
  const bool = COMPARE.includes(fn) || fn === "land" || fn === "lor";
  return { op: "binary", type: bool ? "bool" : a.type, fn, a, b };
}

interface Variable {
  readonly name: string;
  readonly type: Type;
  readonly kind: "let" | "var";
}

export interface RandomKernelOptions {
  /**
   * Uses only ops of floats that WGSL defines exactly, without quotients or square roots, and without differences:
   * reassociation, which WGSL allows, makes `-b` of `a - (a + b)`. Default: false.
   */
  readonly portable?: boolean;
}

/** Builds a kernel from random numbers. After the last number, it makes the first of all choices. */
class KernelBuilder {
  readonly #numbers: readonly number[];
  readonly #portable: boolean;
  #at = 0;
  #names = 0;
  #scope: Variable[] = [];
  #shared = false;
  #size = 1;

  constructor(
    numbers: readonly number[],
    { portable = false }: RandomKernelOptions,
  ) {
    this.#numbers = numbers;
    this.#portable = portable;
  }

  kernel(): Kernel {
    const workgroupSize = this.#of([4, 8, 16, 6, 1, 32]);
    this.#size = workgroupSize;
    const hasShared = this.#of([false, true]);
    const body: Stmt[] = [
      let_(
        "i",
        binary(
          "add",
          binary("mul", id("group.x"), u32(workgroupSize)),
          id("local"),
        ),
      ),
    ];
    this.#scope = [{ name: "i", type: "u32", kind: "let" }];
    body.push(...this.#block(3));
    if (hasShared) {
      body.push(sharedStore("s", id("local"), this.#expr("u32", 2)), barrier());
      this.#shared = true;
      body.push(...this.#block(3));
    }
    body.push(store("y", local("i", "u32"), this.#expr("f32", 3)));
    body.push(store("z", local("i", "u32"), this.#expr("u32", 3)));
    return {
      name: "random",
      workgroupSize,
      body,
      bindings: [
        { name: "a", type: "f32", access: "read" },
        { name: "n", type: "u32", access: "read" },
        { name: "y", type: "f32", access: "read_write" },
        { name: "z", type: "u32", access: "read_write" },
      ],
      shared: [{ name: "s", type: "u32", length: workgroupSize }],
    };
  }

  #below(n: number): number {
    return (this.#numbers[this.#at++] ?? 0) % n;
  }

  #of<T>(list: readonly T[]): T {
    return list[this.#below(list.length)]!;
  }

  #block(depth: number): Stmt[] {
    const before = this.#scope;
    this.#scope = [...before];
    const many = this.#below(4);
    const body = Array.from({ length: many }, () => this.#statement(depth));
    // Variables of the outermost blocks stay in scope.
    if (depth < 3) this.#scope = before;
    return body;
  }

  #statement(depth: number): Stmt {
    const settable = this.#scope.filter(({ kind }) => kind === "var");
    switch (this.#below(depth > 0 ? 6 : 4)) {
      case 0:
        return this.#declare("let");
      case 1:
        return this.#declare("var");
      case 2: {
        if (settable.length === 0) return this.#declare("var");
        const { name, type } = this.#of(settable);
        return set(name, this.#expr(type, 3));
      }
      case 3: {
        const [name, type] = this.#of([["y", "f32"], ["z", "u32"]] as const);
        return store(name, local("i", "u32"), this.#expr(type, 2));
      }
      case 4: {
        const condition = this.#expr("bool", 2);
        const then = this.#block(depth - 1);
        return this.#of([true, false])
          ? if_(condition, then, this.#block(depth - 1))
          : if_(condition, then);
      }
      default:
        return this.#loop(depth);
    }
  }

  /** Returns a loop of at most eight iterations. Nothing in the body changes its end. */
  #loop(depth: number): Stmt {
    const from = this.#of([
      u32(0),
      binary("and", this.#expr("u32", 1), u32(7)),
      u32(2 ** 32 - 9),
    ]);
    const name = `v${this.#names++}`;
    const fixed = this.#scope.filter(({ kind, type }) =>
      kind === "let" && type === "u32"
    );
    const end = this.#of([
      u32(8),
      u32(2 ** 32 - 1),
      binary("and", load("n", id("local"), "u32"), u32(7)),
      binary("and", local(this.#of(fixed).name, "u32"), u32(7)),
    ]);
    // Loops from small numbers to the largest would be too long.
    const to = end.op === "const" && from !== end &&
        (from.op !== "const" || Number(from.value) === 0)
      ? u32(8)
      : end;
    const step = this.#of([u32(1), u32(2), u32(3), u32(4), u32(2 ** 31)]);
    const before = this.#scope;
    this.#scope = [...before, { name, type: "u32", kind: "let" }];
    const body = this.#block(Math.min(2, depth - 1));
    this.#scope = before;
    return for_(name, from, to, body, step);
  }

  #declare(kind: "let" | "var"): Stmt {
    const type = this.#of<Type>(["u32", "f32", "i32", "bool"]);
    const value = this.#expr(type, 3);
    const name = `v${this.#names++}`;
    this.#scope.push({ name, type, kind });
    return kind === "let" ? let_(name, value) : var_(name, value);
  }

  #expr(type: Type, depth: number): Expr {
    const known = this.#scope.filter((variable) => variable.type === type);
    const pick = this.#below(depth > 0 ? 8 : 3);
    if (pick === 1 && known.length > 0) {
      return local(this.#of(known).name, type);
    }
    if (pick <= 1) return this.#constant(type);
    const sub = (of: Type) => this.#expr(of, depth - 1);
    if (pick === 2) return this.#leaf(type, depth);
    if (pick === 3) return select(sub("bool"), sub(type), sub(type));
    if (pick === 4) return this.#convert(type, depth);
    if (type === "bool") {
      if (pick === 5) {
        return binary(
          this.#of<BinaryOp>(["land", "lor"]),
          sub("bool"),
          sub("bool"),
        );
      }
      if (pick === 6) {
        return { op: "unary", type, fn: "not", a: sub("bool") };
      }
      const of = this.#of<Type>(["u32", "f32", "i32"]);
      return binary(this.#of(COMPARE), sub(of), sub(of));
    }
    if (type === "f32" && pick === 5) {
      return this.#of([true, false])
        ? call(
          this.#of(this.#portable ? CALLS.slice(1) : CALLS),
          sub("f32"),
        )
        : this.#portable
        ? call("abs", sub("f32"))
        : call("fma", sub("f32"), sub("f32"), sub("f32"));
    }
    if (type !== "f32" && pick === 5) {
      if (this.#of([false, false, true])) {
        // Small bytes use separate products.
        return type === "i32"
          ? call(
            this.#of(["dot4I8", "dot4U8I8"]),
            this.#of([true, false])
              ? sub("u32")
              : binary("and", sub("u32"), u32(0x3f3f3f3f)),
            // No byte is -128.
            binary("or", sub("u32"), u32(0x01010101)),
          )
          : call("lookup16", sub("u32"), ...TABLE);
      }
      return this.#of([true, false])
        ? binary(this.#of(BITS), sub(type), sub(type))
        : binary(this.#of<BinaryOp>(["shl", "shr"]), sub(type), sub("u32"));
    }
    const exact = type === "f32" && this.#portable;
    if (type !== "u32" && pick === 6 && !exact) {
      return { op: "unary", type, fn: "neg", a: sub(type) };
    }
    const operators = exact ? PORTABLE : ARITHMETIC;
    return binary(this.#of(operators), sub(type), sub(type));
  }

  #constant(type: Type): Expr {
    if (type === "u32") return u32(this.#of(WORDS));
    if (type === "i32") return i32(this.#of(INTS));
    if (type === "f32") return f32(this.#of(FLOATS));
    return { op: "const", type, value: this.#of([false, true]) };
  }

  /** Returns a load within bounds: other results are undefined. */
  #leaf(type: Type, depth: number): Expr {
    const within = (length: number): Expr =>
      this.#of([
        binary("rem", this.#expr("u32", Math.max(0, depth - 1)), u32(length)),
        id("local"),
      ]);
    // The invocation's index is at most 63.
    const ownIndex = binary(
      "add",
      local("i", "u32"),
      u32(this.#below(LENGTH - 64)),
    );
    const index = () => this.#of([true, false]) ? ownIndex : within(LENGTH);
    if (type === "f32") return load("a", index());
    if (type !== "u32") return this.#constant(type);
    const leaf = this.#below(this.#shared ? 4 : 3);
    if (leaf === 0) return id("local");
    if (leaf === 1) return id("group.x");
    if (leaf === 2) return load("n", index(), "u32");
    return shared("s", within(this.#size), "u32");
  }

  /** Converts between types. No float is cast to its bits: bits of NaN differ between targets. */
  #convert(type: Type, depth: number): Expr {
    const from = this.#of<ScalarType>(["u32", "i32", "f32", "bool"]);
    const value = this.#expr(from, depth - 1);
    return from === type ? value : convert(type, value);
  }
}

/** Builds a valid kernel. Deterministic by `numbers`. */
export function randomKernel(
  numbers: readonly number[],
  options: RandomKernelOptions = {},
): Kernel {
  return new KernelBuilder(numbers, options).kernel();
}
