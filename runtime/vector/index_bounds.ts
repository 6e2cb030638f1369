/**
 * Upper bounds of integers in the iterations of nested loops: invariant terms, plus a constant. Sums with terms wrap at
 * 2^32, the constant does not.
 */

import { mul, u32 } from "../../spec/kernel/build.ts";
import type { Expr } from "../../spec/kernel/tree.ts";
import { sum } from "../../spec/sum.ts";
import type { Loop } from "./accesses.ts";
import { maxSpanOf } from "./analyze.ts";
import { FormsOfNames, type Invariants, MAX_PARTS } from "./pointers.ts";

type Binary = Extract<Expr, { op: "binary" }>;

/** Exclusive limit of the constant of a bound, and of that of a bounds check. */
export const CONSTANT_LIMIT = 2 ** 31;

/** The sum of invariant terms, plus at most `max`. */
export interface IndexBound {
  readonly terms: readonly Expr[];
  readonly max: number;
}

/** The bounds of the integers of nested loops. */
export class IndexBounds {
  readonly #invariants: Invariants;
  /** Of counters and definitions. */
  readonly #bounds = new FormsOfNames<IndexBound>();

  /** `invariants`: those of the outermost loop. */
  constructor(invariants: Invariants) {
    this.#invariants = invariants;
  }

  /** Adds the counter of a loop, outer loops first. */
  addCounter(s: Loop): void {
    const [from, to] = [this.of(s.from), this.of(s.to)];
    const span = maxSpanOf(s);
    const step = s.step.op === "const" ? Number(s.step.value) : NaN;
    const length = Math.floor((span - 1) / step) * step;
    const bound = from && length >= 0
      ? { terms: from.terms, max: from.max + length }
      : to?.terms.length === 0
      ? { terms: [], max: Math.max(0, to.max - 1) }
      : undefined;
    this.#bounds.known.set(s.name, limited(bound));
  }

  /** The bound of an integer. Undefined if it is unknown. */
  of(e: Expr): IndexBound | undefined {
    if (e.type !== "u32" && e.type !== "i32") return undefined;
    return limited(this.#parts(e)) ??
      (this.#isTerm(e) ? { terms: [e], max: 0 } : undefined);
  }

  /** The bound of a sum. Undefined if that of a summand is unknown. */
  sum(summands: readonly Expr[]): IndexBound | undefined {
    const bounds = summands.map((e) => this.of(e));
    return bounds.every((bound) => bound !== undefined)
      ? {
        terms: bounds.flatMap(({ terms }) => terms),
        max: sum(bounds.map(({ max }) => max)),
      }
      : undefined;
  }

  #isTerm(e: Expr): boolean {
    const { shapes } = this.#invariants;
    return this.#invariants.holds(e) && shapes.of(e).stride !== null;
  }

  #parts(e: Expr): IndexBound | undefined {
    if (e.op === "const") return { terms: [], max: Number(e.value) >>> 0 };
    if (e.op === "local") return this.#ofLocal(e.name);
    return e.op === "binary" ? this.#ofBinary(e) : undefined;
  }

  #ofLocal(name: string): IndexBound | undefined {
    return this.#bounds.of(name, () => {
      const definition = this.#invariants.definition(name);
      return definition && this.of(definition);
    });
  }

  #ofBinary(e: Binary): IndexBound | undefined {
    const { fn, a, b } = e;
    if (fn === "add") return this.sum([a, b]);
    const [first, by] = [this.#constant(a), this.#constant(b)];
    if (fn === "mul" && first !== undefined) return this.#times(b, first);
    if (by === undefined) return undefined;
    if (fn === "mul") return this.#times(a, by);
    if (fn === "shl") return this.#times(a, 2 ** (by & 31));
    if (e.type !== "u32" || by === 0 || this.#isTerm(e)) return undefined;
    const bound = this.of(a);
    const max = bound?.terms.length === 0 ? bound.max : Infinity;
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

  /** The bits of a constant as a u32: it may be a converted i32. */
  #constant(e: Expr): number | undefined {
    const { value } = this.#invariants.shapes.of(e);
    return value === undefined ? undefined : value >>> 0;
  }

  #times(e: Expr, factor: number): IndexBound | undefined {
    const bound = this.of(e);
    return bound && {
      terms: bound.terms.map((term) => mul(term, u32(factor))),
      max: bound.max * factor,
    };
  }
}

/** A bound with few terms and a small constant. */
function limited(bound: IndexBound | undefined): IndexBound | undefined {
  return bound && bound.max < CONSTANT_LIMIT && bound.terms.length <= MAX_PARTS
    ? bound
    : undefined;
}
