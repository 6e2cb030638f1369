/**
 * Rounds of loops that add one product of small bytes to each sum. All products of a sum are one statement, so that
 * some of them are added in 16 bits, and few sums are in registers at a time. Integer sums have the same bits in every
 * order.
 */

import type { Expr, Stmt } from "../../spec/kernel/tree.ts";
import { addLocals } from "../../spec/kernel/walk.ts";
import { range } from "../../spec/range.ts";
import type { Loop } from "./accesses.ts";
import { get, type Local, newLocal, u, v, type Value } from "./ir.ts";
import type { Statements } from "./statement.ts";

type LetStmt = Extract<Stmt, { op: "let" }>;

/** The body of such a loop. */
export interface ByteSums {
  readonly counter: string;
  readonly definitions: ReadonlyMap<string, LetStmt>;
  /** The product that an iteration adds to each sum. */
  readonly products: ReadonlyMap<string, Expr>;
}

/** The sums of a loop. Undefined if it does anything else, or if some lanes may be inactive. */
export function byteSums(
  { name, body }: Loop,
  on: Statements,
): ByteSums | undefined {
  if (on.isMasked) return undefined;
  const definitions = new Map<string, LetStmt>();
  const products = new Map<string, Expr>();
  const read = new Set<string>();
  for (const s of body) {
    if (s.op === "let") {
      definitions.set(s.name, s);
      addLocals(s.value, read);
      continue;
    }
    if (s.op !== "set" || s.value.op !== "binary" || s.value.fn !== "add") {
      return undefined;
    }
    const { a: sum, b: product } = s.value;
    if (sum.op !== "local" || sum.name !== s.name) return undefined;
    if (!on.x.smallProduct(product)) return undefined;
    if (on.isWord(s.name) || products.has(s.name)) return undefined;
    products.set(s.name, product);
    addLocals(product, read);
  }
  const isRead = [...products.keys()].some((sum) => read.has(sum));
  return products.size === 0 || isRead
    ? undefined
    : { counter: name, definitions, products };
}

/** Adds the products of some iterations from `start` on. `begin` sets the sources of an iteration's loads. */
export function addRound(
  { counter, definitions, products }: ByteSums,
  { start, iterations, begin, on }: {
    readonly start: Value;
    readonly iterations: number;
    readonly begin: (iteration: number) => void;
    readonly on: Statements;
  },
): void {
  const { x } = on;
  const outer = x.local(counter);
  const locals = range(iterations).map((iteration) => {
    const local = newLocal(counter, "u");
    on.set(local, u.add(start, iteration));
    return new Map<string, Local>([[counter, local]]);
  });
  /** Emits the definitions that an iteration's value uses, unless they were emitted. */
  const define = (iteration: number, value: Expr) => {
    const known = locals[iteration]!;
    const names = new Set<string>();
    addLocals(value, names);
    for (const name of names) {
      const definition = definitions.get(name);
      if (definition && !known.has(name)) {
        define(iteration, definition.value);
        x.locals.delete(name);
        on.statement(definition);
        known.set(name, x.local(name));
      }
      const local = known.get(name);
      if (local) x.locals.set(name, local);
    }
  };
  for (const [name, product] of products) {
    const terms = locals.map((_, iteration) => {
      begin(iteration);
      define(iteration, product);
      x.begin();
      return x.vector(product);
    });
    const sum = x.local(name);
    on.set(sum, terms.reduce((a, b) => v.add(a, b), get(sum)), false);
  }
  x.locals.set(counter, outer);
}
