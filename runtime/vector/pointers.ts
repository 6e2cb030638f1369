/**
 * Loads and stores whose index is linear in a loop's counter: `invariant + counter * stride + constant`. The loop has
 * their addresses in locals; their range is checked once, before it or the outer loop starts.
 */

import { cachedJson } from "../../spec/kernel/exact_json.ts";
import type { Expr } from "../../spec/kernel/tree.ts";
import { mul, u32 } from "../../spec/kernel/build.ts";
import { someNode, walkStatements } from "../../spec/kernel/walk.ts";
import {
  arrayOf,
  isOfBytes,
  type Loop,
  type Store,
  walkLoads,
} from "./accesses.ts";
import type { Shapes } from "./shape.ts";

/** Loads with the same invariant part and stride, and stores between them. */
export interface PointerGroup {
  readonly array: string;
  /** Elements between lanes. */
  readonly apart: number;
  /** Elements are bytes, of which loads have four. */
  readonly bytes: boolean;
  /** Lanes have consecutive words in each iteration, so that the loads of several can be transposed. */
  readonly transposed: boolean;
  /** Terms of the invariant part of the index. */
  readonly terms: readonly Expr[];
  /** Elements per iteration: a number, or factors of an invariant product. */
  readonly stride: number | readonly Expr[];
  /** Constant parts of the indices, by load. */
  readonly loads: Map<Expr, number>;
  /** Constant parts of the indices, by store. A loop that updates what it loads needs no other pointer. */
  readonly stores: Map<Store, number>;
}

/** The last element that a group accesses in an iteration, after that of its pointer. */
export function extentOf(
  { bytes, apart, loads, stores }: PointerGroup,
  lanes: number,
): number {
  const last = apart * (lanes - 1);
  // Vectors that are loaded may extend past the end, into guard bytes. Stored vectors may not.
  return Math.max(
    ...[...loads.values()].map((first) =>
      first + (bytes ? 3 : 0) + (apart > 1 ? last : 0)
    ),
    ...[...stores.values()].map((first) => first + last),
  );
}

interface Linear {
  readonly constant: number;
  readonly terms: readonly Expr[];
  /** Coefficient of the counter; 0 if it does not occur. */
  readonly stride: number;
  /** Further factors of the coefficient. */
  readonly factors: readonly Expr[];
}

/** Maximum terms and factors of an index, and definitions that are followed, before it is not analyzed further. */
export const MAX_PARTS = 32;

/** Forms of definitions, each derived once: many others may refer to one. */
export class FormsOfNames<T> {
  readonly known = new Map<string, T | undefined>();
  #depth = 0;

  /** The form of a name. Undefined if there is none, or if too many definitions were followed. */
  of(name: string, derive: () => T | undefined): T | undefined {
    if (this.known.has(name)) return this.known.get(name);
    if (this.#depth >= MAX_PARTS) return undefined;
    this.#depth++;
    const form = derive();
    this.#depth--;
    this.known.set(name, form);
    return form;
  }
}

/** Invariants of a loop. */
export class Invariants {
  readonly forms = new FormsOfNames<Linear>();
  readonly #changing: Set<string>;
  readonly #stored = new Set<string>();
  readonly #writable: ReadonlySet<string>;
  readonly counter: string;
  readonly shapes: Shapes;

  /** `writable`: bindings that the kernel writes. */
  constructor(
    loop: Loop,
    shapes: Shapes,
    writable: ReadonlySet<string>,
  ) {
    this.counter = loop.name;
    this.shapes = shapes;
    this.#writable = writable;
    this.#changing = new Set([loop.name]);
    walkStatements(loop.body, (s) => {
      if ("name" in s) this.#changing.add(s.name);
      if (s.op === "store") this.#stored.add(s.binding);
      if (s.op === "sharedStore") this.#stored.add(s.array);
    });
  }

  /** Whether no iteration stores to an array, so that several loads can be executed together. */
  keeps(array: string): boolean {
    return !this.#stored.has(array);
  }

  /** Whether the value is loop-invariant and available before the loop. */
  holds(e: Expr): boolean {
    return !someNode(e, (node) => {
      if (node.op === "local") return this.#changing.has(node.name);
      if (node.op === "load") return this.#writable.has(node.binding);
      return node.op === "shared";
    });
  }

  /** The definition of a `let` that can replace it: its operands cannot have changed. */
  definition(name: string): Expr | undefined {
    const variable = this.shapes.variables.get(name);
    const { definition, inMemory } = variable ?? {};
    if (!definition || inMemory) return undefined;
    if (definition.op !== "binary" && definition.op !== "local") {
      return definition.op === "const" || definition.op === "id"
        ? definition
        : undefined;
    }
    const varies = someNode(
      definition,
      (node) =>
        node.op === "load" || node.op === "shared" ||
        node.op === "local" &&
          this.shapes.variables.get(node.name)?.kind === "var",
    );
    return varies ? undefined : definition;
  }
}

/** `e` as a linear form of the counter, or as one term. Undefined if it is neither. */
function linear(e: Expr, known: Invariants): Linear | undefined {
  const form = linearParts(e, known);
  const small = form === undefined ||
    (form.constant < 2 ** 31 && form.stride < 2 ** 31 &&
      form.terms.length + form.factors.length <= MAX_PARTS);
  return small ? form : atomOf(e, known);
}

function atomOf(e: Expr, known: Invariants): Linear | undefined {
  return known.holds(e) && known.shapes.of(e).stride !== null
    ? { constant: 0, terms: [e], stride: 0, factors: [] }
    : undefined;
}

function linearParts(e: Expr, known: Invariants): Linear | undefined {
  const atom = () => atomOf(e, known);
  if (e.type !== "u32" && e.type !== "i32") return undefined;
  if (e.op === "const") {
    const value = Number(e.value);
    return value >= 0 && value < 2 ** 28
      ? { constant: value, terms: [], stride: 0, factors: [] }
      : atom();
  }
  if (e.op === "local") {
    if (e.name === known.counter) {
      return { constant: 0, terms: [], stride: 1, factors: [] };
    }
    const form = known.forms.of(e.name, () => {
      const definition = known.definition(e.name);
      return definition && linear(definition, known);
    });
    return form ?? atom();
  }
  if (e.op !== "binary") return atom();
  const a = linear(e.a, known);
  const b = linear(e.b, known);
  if (e.fn === "add" && a && b) {
    if (a.stride !== 0 && b.stride !== 0) return undefined;
    const counter = a.stride !== 0 ? a : b;
    return {
      constant: a.constant + b.constant,
      terms: [...a.terms, ...b.terms],
      stride: counter.stride,
      factors: counter.factors,
    };
  }
  const shift = e.fn === "shl" ? known.shapes.of(e.b).value : undefined;
  if ((e.fn === "mul" && a && b) || (shift !== undefined && a)) {
    const other = shift !== undefined
      ? { constant: 2 ** (shift & 31), terms: [], stride: 0, factors: [] }
      : b!;
    const [x, y, factor] = a.stride !== 0
      ? [a, other, shift === undefined ? e.b : u32(other.constant)]
      : [other, a, e.a];
    const pure = y.terms.length === 0 && y.stride === 0;
    if (x.stride === 0) {
      return pure && x.terms.length === 0
        ? { ...x, constant: x.constant * y.constant }
        : atom();
    }
    if (y.stride !== 0) return undefined;
    const terms = x.terms.map((term) => mul(term, factor));
    return pure
      ? {
        ...x,
        terms,
        constant: x.constant * y.constant,
        stride: x.stride * y.constant,
      }
      : {
        ...x,
        terms: x.constant ? [...terms, mul(u32(x.constant), factor)] : terms,
        constant: 0,
        factors: [...x.factors, factor],
      };
  }
  return atom();
}

/** Options of the search for pointer loads. */
export interface PointerOptions {
  /** Bindings that the kernel writes. */
  readonly writable: ReadonlySet<string>;
  /** Also loads whose lanes are more than one element apart. Default: no. */
  readonly apart?: boolean;
  /** Whether several iterations can be transposed. Default: no. */
  readonly turns?: boolean;
  /** Also stores where the loop loads. Default: no. */
  readonly stores?: boolean;
}

/** The loads and stores of an innermost loop that can use pointers, grouped by common parts. */
export function findPointers(
  loop: Loop,
  shapes: Shapes,
  { writable, apart = false, turns = false, stores = false }: PointerOptions,
): PointerGroup[] {
  const known = new Invariants(loop, shapes, writable);
  const groups = new Map<string, PointerGroup>();
  const seen = new Set<Expr>();
  /** The linear form of an index, and the key of its group. Undefined if it cannot use a pointer. */
  const keyed = (array: string, index: Expr, bytes: boolean) => {
    const { stride: lane } = shapes.of(index);
    if (lane === null || lane < 0) return undefined;
    if (lane > 0 && shapes.lanes === 1 || lane > 1 && !apart) return undefined;
    const form = linear(index, known);
    if (!form || form.constant >= 2 ** 26) return undefined;
    if (form.factors.some((factor) => !shapes.isUniform(factor))) {
      return undefined;
    }
    if (form.factors.length > 0 && form.stride !== 1) return undefined;
    if (form.stride < 0 || form.stride >= 2 ** 24) return undefined;
    const key = [
      array,
      bytes,
      lane,
      form.stride,
      form.factors.map(cachedJson).sort().join("*"),
      form.terms.map(cachedJson).sort().join("+"),
    ].join(";");
    return { form, key, lane };
  };
  for (const s of loop.body) {
    walkLoads(s, (e) => {
      const array = arrayOf(e);
      const bytes = isOfBytes(e);
      const found = keyed(array, e.index, bytes);
      if (!found) return;
      const { form, key, lane } = found;
      const fixed = form.factors.length === 0;
      const transposed = lane > 1 && turns && fixed &&
        form.stride === (bytes ? 4 : 1) &&
        known.keeps(array);
      if (lane > 1 && !transposed && !bytes) return;
      let group = groups.get(key);
      if (!group) {
        group = {
          array,
          apart: lane,
          bytes,
          transposed,
          terms: form.terms,
          stride: fixed ? form.stride : form.factors,
          loads: new Map(),
          stores: new Map(),
        };
        groups.set(key, group);
      }
      group.loads.set(e, form.constant);
    }, seen);
  }
  if (stores) {
    for (const s of loop.body) {
      if (s.op !== "store" && s.op !== "sharedStore") continue;
      const found = keyed(arrayOf(s), s.index, false);
      if (!found || found.lane > 1) continue;
      groups.get(found.key)?.stores.set(s, found.form.constant);
    }
  }
  return [...groups.values()];
}

/** An index as a linear form of a loop's counter. Undefined unless it advances by a constant. */
export function linearIn(
  invariants: Invariants,
  index: Expr,
): { readonly constant: number; readonly stride: number } | undefined {
  const form = linear(index, invariants);
  return form?.factors.length === 0 ? form : undefined;
}
