/**
 * Bounds of the integers in the iterations of nested loops: invariant terms and a rest with a known maximum. Sums wrap at
 * 2^32; the rest does not.
 */

import { mul, u32 } from "../../spec/kernel/build.ts";
import type { Expr, Stmt } from "../../spec/kernel/tree.ts";
import { spanOf } from "./analyze.ts";
import { type Invariants, MAX_PARTS } from "./pointers.ts";

type ForStmt = Extract<Stmt, { op: "for" }>;
type Binary = Extract<Expr, { op: "binary" }>;

/** Exclusive limit of a rest: constants of bounds checks are below 2^31. */
export const MAX_REST = 2 ** 31;

/** The sum of invariant terms, plus at most `max`. */
export interface Reach {
  readonly terms: readonly Expr[];
  readonly max: number;
}

/** The reaches of the values of nested loops. */
export class Reaches {
  readonly #invariants: Invariants;
  /** Of counters and definitions. */
  readonly #known = new Map<string, Reach | undefined>();
  #depth = 0;

  /** `invariants`: those of the outermost loop. */
  constructor(invariants: Invariants) {
    this.#invariants = invariants;
  }

  /** Adds the counter of a loop, outer loops first. */
  addCounter(s: ForStmt): void {
    const [from, to] = [this.of(s.from), this.of(s.to)];
    const span = spanOf(s);
    const step = s.step.op === "const" ? Number(s.step.value) : NaN;
    const length = Math.floor((span - 1) / step) * step;
    const reach = from && length >= 0
      ? { terms: from.terms, max: from.max + length }
      : to?.terms.length === 0
      ? { terms: [], max: Math.max(0, to.max - 1) }
      : undefined;
    this.#known.set(s.name, reach && smallest(reach));
  }

  /** The reach of an integer. Undefined if it is unknown. */
  of(e: Expr): Reach | undefined {
    if (e.type !== "u32" && e.type !== "i32") return undefined;
    return smallest(this.#parts(e)) ??
      (this.#isTerm(e) ? { terms: [e], max: 0 } : undefined);
  }

  /** The reach of a sum. Undefined if that of a summand is unknown. */
  sum(summands: readonly Expr[]): Reach | undefined {
    const reaches = summands.map((e) => this.of(e));
    const known = reaches.filter((reach) => reach !== undefined);
    return known.length < reaches.length ? undefined : {
      terms: known.flatMap(({ terms }) => terms),
      max: known.reduce((n, { max }) => n + max, 0),
    };
  }

  #isTerm(e: Expr): boolean {
    const { shapes } = this.#invariants;
    return this.#invariants.holds(e) && shapes.of(e).stride !== null;
  }

  #parts(e: Expr): Reach | undefined {
    if (e.op === "const") return { terms: [], max: Number(e.value) >>> 0 };
    if (e.op === "local") return this.#ofLocal(e.name);
    return e.op === "binary" ? this.#ofBinary(e) : undefined;
  }

  #ofLocal(name: string): Reach | undefined {
    if (this.#known.has(name)) return this.#known.get(name);
    if (this.#depth >= MAX_PARTS) return undefined;
    const definition = this.#invariants.definition(name);
    this.#depth++;
    const reach = definition && this.of(definition);
    this.#depth--;
    this.#known.set(name, reach);
    return reach;
  }

  #ofBinary(e: Binary): Reach | undefined {
    const { fn, a, b } = e;
    if (fn === "add") return this.sum([a, b]);
    const { shapes } = this.#invariants;
    const [first, by] = [a, b].map((side) => shapes.of(side).value);
    if (fn === "mul" && first !== undefined) return this.#times(b, first);
    if (by === undefined) return undefined;
    if (fn === "mul") return this.#times(a, by);
    if (fn === "shl") return this.#times(a, 2 ** (by & 31));
    if (e.type !== "u32" || by === 0 || this.#isTerm(e)) return undefined;
    const reach = this.of(a);
    const max = reach?.terms.length === 0 ? reach.max : Infinity;
    switch (fn) {
      case "div":
        return { terms: [], max: Math.floor(max / by) };
      case "rem":
        return { terms: [], max: Math.min(max, by - 1) };
      case "and":
      case "min":
        return { terms: [], max: Math.min(max, by) };
      default:
        return undefined;
    }
  }

  #times(e: Expr, by: number): Reach | undefined {
    const factor = by >>> 0;
    const reach = this.of(e);
    return reach && {
      terms: reach.terms.map((term) => mul(term, u32(factor))),
      max: reach.max * factor,
    };
  }
}

/** A reach with few terms and a small rest. */
function smallest(reach: Reach | undefined): Reach | undefined {
  return reach && reach.max < MAX_REST && reach.terms.length <= MAX_PARTS
    ? reach
    : undefined;
}
