/** Verifies whether the stores of a kernel tree are linear in some of its bindings. Independent of plans. */

import type { Expr, Kernel, Stmt } from "../tree.ts";
import { scalarLoads } from "../vectors.ts";

/**
 * Dependence of a value on the elements of the given bindings. `zero` is both of the next two; `free` does not depend
 * on them; `linear` is a sum of them times free factors, or the bits of one; `other` is anything else.
 */
export type Degree = "zero" | "free" | "linear" | "other";

/** Degree of a selection between two values, or of their sum. */
function either(a: Degree, b: Degree): Degree {
  if (a === b || b === "zero") return a;
  return a === "zero" ? b : "other";
}

function product(a: Degree, b: Degree): Degree {
  if (a === "other" || b === "other") return "other";
  if (a === "zero" || b === "zero") return "zero";
  if (a === "free") return b;
  return b === "free" ? a : "other";
}

/** Degree of a nonlinear function: it is free if its arguments are. */
function opaque(...of: readonly Degree[]): Degree {
  return of.every(isFree) ? "free" : "other";
}

function isFree(degree: Degree): boolean {
  return degree === "zero" || degree === "free";
}

/** Kernels need two or three. */
const MAX_ROUNDS = 16;

/** The degree of all stores of a kernel, by binding, including the conditions of the stores. */
class LinearReader {
  readonly stored = new Map<string, Degree>();
  readonly #locals = new Map<Stmt, Degree>();
  readonly #shared = new Map<string, Degree>();
  readonly #elements = new Map<Stmt, readonly Stmt[]>();
  #scopes: Map<string, Stmt>[] = [];
  /** Degree of the conditions of the current statement. */
  #control: Degree = "free";
  #changed = false;

  constructor(
    readonly kernel: Kernel,
    readonly bindings: ReadonlySet<string>,
  ) {}

  /** Degrees only increase, from `zero`, so this ends. False if it takes too long, as a hostile tree may. */
  read(): boolean {
    for (let round = 0; round < MAX_ROUNDS; round++) {
      this.#changed = false;
      this.#block(this.kernel.body);
      if (!this.#changed) return true;
    }
    return false;
  }

  #grow<K>(of: Map<K, Degree>, key: K, degree: Degree): void {
    const known = of.get(key);
    const next = known === undefined ? degree : either(known, degree);
    if (next === known) return;
    of.set(key, next);
    this.#changed = true;
  }

  #declared(name: string): Stmt | undefined {
    for (let i = this.#scopes.length - 1; i >= 0; i--) {
      const found = this.#scopes[i]!.get(name);
      if (found) return found;
    }
    return undefined;
  }

  #declare(name: string, stmt: Stmt, degree: Degree): void {
    this.#scopes.at(-1)!.set(name, stmt);
    this.#grow(this.#locals, stmt, degree);
  }

  #block(body: readonly Stmt[], first?: () => void): void {
    this.#scopes.push(new Map());
    first?.();
    for (const stmt of body) this.#stmt(stmt);
    this.#scopes.pop();
  }

  /** Reads blocks whose execution has a condition of this degree. */
  #under(control: Degree, read: () => void): void {
    const outer = this.#control;
    if (!isFree(control)) this.#control = "other";
    read();
    this.#control = outer;
  }

  /** Degree of an assigned value, including its condition. */
  #savedDegree(value: Expr): Degree {
    const degree = this.#expr(value);
    return isFree(this.#control) ? degree : "other";
  }

  #stmt(stmt: Stmt): void {
    switch (stmt.op) {
      case "let":
      case "var":
        this.#declare(stmt.name, stmt, this.#savedDegree(stmt.value));
        return;
      case "loads": {
        const known = this.#elements.get(stmt) ?? scalarLoads(stmt);
        this.#elements.set(stmt, known);
        for (const element of known) this.#stmt(element);
        return;
      }
      case "set": {
        const declared = this.#declared(stmt.name);
        const degree = this.#savedDegree(stmt.value);
        if (declared) this.#grow(this.#locals, declared, degree);
        return;
      }
      case "store": {
        const degree = this.#savedDegree(stmt.value);
        const there = isFree(this.#expr(stmt.index)) ? degree : "other";
        this.#grow(this.stored, stmt.binding, there);
        return;
      }
      case "sharedStore": {
        const degree = this.#savedDegree(stmt.value);
        const there = isFree(this.#expr(stmt.index)) ? degree : "other";
        this.#grow(this.#shared, stmt.array, there);
        return;
      }
      case "for": {
        const bounds = [stmt.from, stmt.to, stmt.step].map((e) =>
          this.#expr(e)
        );
        this.#under(opaque(...bounds), () => {
          this.#block(
            stmt.body,
            () => this.#declare(stmt.name, stmt, opaque(...bounds)),
          );
        });
        return;
      }
      case "if":
        this.#under(this.#expr(stmt.condition), () => {
          this.#block(stmt.then);
          if (stmt.else) this.#block(stmt.else);
        });
        return;
      case "barrier":
        return;
      default:
        stmt satisfies never;
    }
  }

  #expr(expr: Expr): Degree {
    switch (expr.op) {
      case "const":
        return expr.value === 0 ? "zero" : "free";
      case "id":
        return "free";
      case "local": {
        const declared = this.#declared(expr.name);
        return declared && this.#locals.get(declared) || "zero";
      }
      case "load": {
        if (!isFree(this.#expr(expr.index))) return "other";
        return this.bindings.has(expr.binding) ? "linear" : "free";
      }
      case "shared": {
        if (!isFree(this.#expr(expr.index))) return "other";
        return this.#shared.get(expr.array) ?? "zero";
      }
      case "unary": {
        const a = this.#expr(expr.a);
        return expr.fn === "neg" && expr.type === "f32" ? a : opaque(a);
      }
      case "binary":
        return this.#binary(expr);
      case "call": {
        const args = expr.args.map((arg) => this.#expr(arg));
        const [a, b, c] = args;
        return expr.fn === "fma" && a && b && c
          ? either(product(a, b), c)
          : opaque(...args);
      }
      case "select": {
        const [condition, a, b] = [expr.condition, expr.a, expr.b]
          .map((e) => this.#expr(e)) as [Degree, Degree, Degree];
        return isFree(condition) ? either(a, b) : "other";
      }
      case "convert": {
        const a = this.#expr(expr.a);
        return expr.type === "f32" && expr.a.type === "f32" ? a : opaque(a);
      }
      case "bitcast":
        return this.#expr(expr.a);
      default:
        return expr satisfies never;
    }
  }

  #binary({ fn, type, a, b }: Extract<Expr, { op: "binary" }>): Degree {
    const [x, y] = [this.#expr(a), this.#expr(b)];
    // Bits are moved without arithmetic.
    if (type !== "f32") return opaque(x, y);
    switch (fn) {
      case "add":
      case "sub":
        return either(x, y);
      case "mul":
        return product(x, y);
      case "div":
        return isFree(y) ? x : "other";
      default:
        return opaque(x, y);
    }
  }
}

/**
 * The degree of a kernel's stores to each binding in its loads from `bindings`. Never throws on a tree that fits the
 * schema.
 */
export function degreesOf(
  kernel: Kernel,
  bindings: ReadonlySet<string>,
): ReadonlyMap<string, Degree> {
  const reader = new LinearReader(kernel, bindings);
  if (reader.read()) return reader.stored;
  return new Map([...reader.stored.keys()].map((name) => [name, "other"]));
}
