/** Upper bounds of the bytes of words, for products of bytes: small ones can be added in 16 bits. */

import { wordBytes } from "../../spec/kernel/semantics.ts";
import type { Expr, Stmt } from "../../spec/kernel/tree.ts";
import { walkStatements } from "../../spec/kernel/walk.ts";

/** The maximum of any byte. */
const ANY = 255;

/** Maximum depth of followed definitions. */
const MAX_DEPTH = 32;

/** Bounds of the bytes of a kernel's values. */
export class ByteBounds {
  readonly #lets = new Map<string, Expr>();
  /** Values stored into arrays of workgroup memory, which start at 0. */
  readonly #stored = new Map<string, Expr[]>();
  readonly #known = new Map<Expr, number>();
  #depth = 0;

  /** Bounds for a kernel body with unique names. */
  constructor(body: readonly Stmt[]) {
    walkStatements(body, (s) => {
      if (s.op === "let") this.#lets.set(s.name, s.value);
      if (s.op !== "sharedStore") return;
      const values = this.#stored.get(s.array);
      if (values) values.push(s.value);
      else this.#stored.set(s.array, [s.value]);
    });
  }

  /** A number that no byte of a word exceeds: 255 if the word depends on itself, or on too many others. */
  of(e: Expr): number {
    if (e.type !== "u32" && e.type !== "i32") return ANY;
    const known = this.#known.get(e);
    if (known !== undefined) return known;
    if (this.#depth >= MAX_DEPTH) return ANY;
    this.#known.set(e, ANY);
    this.#depth++;
    const bound = this.#derive(e);
    this.#depth--;
    this.#known.set(e, bound);
    return bound;
  }

  #derive(e: Expr): number {
    switch (e.op) {
      case "const":
        return Math.max(...wordBytes(Number(e.value)));
      case "local": {
        const value = this.#lets.get(e.name);
        return value ? this.of(value) : ANY;
      }
      case "shared": {
        const values = this.#stored.get(e.array) ?? [];
        return Math.max(0, ...values.map((value) => this.of(value)));
      }
      case "binary":
        return this.#binary(e);
      case "bitcast":
        return this.of(e.a);
      case "call":
        return e.fn === "lookup16"
          ? Math.max(...e.args.slice(1).map((word) => this.of(word)))
          : ANY;
      default:
        return ANY;
    }
  }

  #binary({ fn, a, b }: Extract<Expr, { op: "binary" }>): number {
    if (fn === "and") return Math.min(this.of(a), this.of(b));
    if (fn === "or" || fn === "xor") {
      const larger = Math.max(this.of(a), this.of(b));
      return 2 ** (32 - Math.clz32(larger)) - 1;
    }
    if (fn === "shl" && b.op === "const") {
      // Bits that leave a byte enter the next one.
      const bound = this.of(a) * 2 ** (Number(b.value) & 31);
      return bound <= ANY ? bound : ANY;
    }
    return ANY;
  }
}
