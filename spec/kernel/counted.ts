/**
 * Kernel bodies prepared for counting work: the costs of expressions are added up once, because most of them do not
 * depend on values. Only integers that a condition, a loop or another such integer reads are evaluated. A branch is
 * prepared when an invocation enters it first: tiles have one for each number of rows, and a workload enters few.
 */

import { cachedIn } from "../bounded_cache.ts";
import { STORED_BYTES } from "../dtype.ts";
import { isSame } from "../same.ts";
import { BINARY, converted, FUNCTIONS, UNARY } from "./semantics.ts";
import type { Expr, ForStmt, IdName, ScalarType, Stmt } from "./tree.ts";
import { scalarLoads } from "./vectors.ts";
import {
  expressionsOf,
  operands,
  someOperand,
  someStatement,
  walkStatements,
} from "./walk.ts";

/** Indices of totals: multiply-adds, operations; then of each binding, bytes loaded and bytes stored. */
export const FMA = 0, OTHER = 1, BINDINGS = 2;

/** Operations per load or store whose index differs between invocations. */
const SCATTERED_OPERATIONS = 5;

/** Operations to add to one, if the index differs. */
export const SCATTERED_MORE = SCATTERED_OPERATIONS - 1;

/** Variables that a value depends on, by number; true if it depends on the number of the invocation. */
export type Sources = true | readonly number[];

/** Cost of the expressions and accesses of statements. */
export interface Cost {
  /** Pairs of an index of totals and a number to add. Each access counts as one operation. */
  readonly fixed: readonly (readonly [total: number, added: number])[];
  /**
   * Sources of the indices of loads and stores that may differ between invocations, and the number of these accesses.
   */
  readonly accesses: readonly (readonly [Sources, number])[];
}

/** A statement, as it is counted, with the cost of the statements before it that set nothing. */
export type Counted =
  & {
    readonly cost: Cost;
    /** What its value, its condition or its bounds depend on. */
    readonly sources: Sources;
  }
  & (
    | {
      readonly op: "evaluate";
      /** The variable that is set, if accesses or conditions depend on it. */
      readonly name: number | undefined;
      /** Its value if it is needed. */
      readonly value: Evaluated | undefined;
    }
    | {
      readonly op: "if";
      readonly condition: Evaluated;
      readonly then: () => readonly Counted[];
      readonly else: () => readonly Counted[];
      /** Variables set in a branch. */
      readonly sets: () => readonly number[];
    }
    | {
      readonly op: "for";
      readonly name: number;
      readonly from: Evaluated;
      readonly to: Evaluated;
      readonly step: Evaluated;
      readonly body: readonly Counted[];
      /** Variables set in the body. */
      readonly sets: readonly number[];
      /** Whether iterations pass no integers on, so that they can be counted in any order. */
      readonly steady: boolean;
      /** Maximum iterations if the bounds are unknown. */
      readonly max: number | undefined;
    }
  );

/** A body, as it is counted. */
export interface CountedBody {
  readonly body: readonly Counted[];
  /** The number of each used binding in the totals. */
  readonly bindings: ReadonlyMap<string, number>;
  /** Number of variables. */
  readonly variables: number;
}

/** Prepares a body. */
export function countedBody(body: readonly Stmt[]): CountedBody {
  const { accessed, counters, ...names } = usedNames(body);
  const bindings = numbered(accessed);
  const variables = numbered([...new Set([...names.marked, ...counters])]);
  return {
    body: countedBlock(body, { bindings, variables, ...names }),
    bindings,
    variables: variables.size,
  };
}

function numbered(names: Iterable<string>): Map<string, number> {
  return new Map([...names].map((name, number) => [name, number]));
}

/** Prepares when first called. */
function once<T>(prepare: () => T): () => T {
  let prepared: T | undefined;
  return () => prepared ??= prepare();
}

interface Context {
  readonly bindings: ReadonlyMap<string, number>;
  readonly variables: ReadonlyMap<string, number>;
  /** Variables that conditions and loops depend on. */
  readonly needed: ReadonlySet<string>;
  /** Variables that conditions, loops and accesses depend on. */
  readonly marked: ReadonlySet<string>;
}

function countedBlock(body: readonly Stmt[], context: Context): Counted[] {
  const block: Counted[] = [];
  let cost = new CostOf(context);
  const next = () => {
    const done = cost.done();
    cost = new CostOf(context);
    return done;
  };
  const variable = (name: string) => context.variables.get(name)!;
  const known = (e: Expr) => evaluated(e, variable);
  const sets = (body: readonly Stmt[]) =>
    setNames(body).filter((name) => context.needed.has(name)).map(variable);
  const add = (s: Stmt): void => {
    switch (s.op) {
      case "let":
      case "var":
      case "set": {
        const { name, value } = s;
        cost.add(s);
        if (!context.marked.has(name)) return;
        block.push({
          op: "evaluate",
          ...next(),
          name: variable(name),
          value: context.needed.has(name) ? known(value) : undefined,
        });
        return;
      }
      case "loads":
        return scalarLoads(s).forEach(add);
      case "store":
      case "sharedStore":
        return cost.add(s);
      case "if":
        cost.add(s);
        block.push({
          op: "if",
          ...next(),
          condition: known(s.condition),
          then: once(() => countedBlock(s.then, context)),
          else: once(() => countedBlock(s.else ?? [], context)),
          sets: once(() => sets([s])),
        });
        return;
      case "for":
        cost.add(s);
        block.push({
          op: "for",
          ...next(),
          name: variable(s.name),
          from: known(s.from),
          to: known(s.to),
          step: known(s.step),
          body: countedBlock(s.body, context),
          sets: sets(s.body),
          steady: !someStatement(
            s.body,
            (s) => s.op === "set" && s.value.type !== "f32",
          ),
          max: maxIterations(s),
        });
    }
  };
  body.forEach(add);
  const rest = next();
  if (rest.cost.fixed.length > 0) {
    block.push({ op: "evaluate", ...rest, name: undefined, value: undefined });
  }
  return block;
}

/** Adds up the cost of statements, without that of their bodies. */
class CostOf {
  #multiplyAdds = 0;
  #operations = 0;
  readonly #bytes = new Map<number, number>();
  readonly #accesses = new Map<string, readonly [Sources, number]>();
  readonly #context: Context;
  /** Those of the last statement. */
  #sources: Sources = NONE;

  constructor(context: Context) {
    this.#context = context;
  }

  add(s: Stmt): void {
    const all = expressionsOf(s).map((e) => this.#evaluate(e));
    this.#sources = all.reduce(both, NONE);
    if (s.op === "store") this.#access(s.binding, all[0]!, [1, s.value.type]);
    if (s.op === "sharedStore") this.#operations++;
  }

  done(): { readonly cost: Cost; readonly sources: Sources } {
    const numbers = [[FMA, this.#multiplyAdds], [OTHER, this.#operations]];
    const fixed = [...numbers as [number, number][], ...this.#bytes]
      .filter(([, added]) => added > 0);
    const accesses = [...this.#accesses.values()];
    return { cost: { fixed, accesses }, sources: this.#sources };
  }

  /** Adds an access at an index with these sources: a load (0) or a store (1). */
  #access(
    binding: string,
    sources: Sources,
    [stored, type]: readonly [0 | 1, ScalarType],
  ): void {
    const number = this.#context.bindings.get(binding)!;
    const at = BINDINGS + 2 * number + stored;
    const bytes = type === "bool" ? 4 : STORED_BYTES[type];
    this.#bytes.set(at, (this.#bytes.get(at) ?? 0) + bytes);
    this.#operations += sources === true ? SCATTERED_OPERATIONS : 1;
    if (sources === true || sources.length === 0) return;
    const key = sources.join();
    const [, times] = this.#accesses.get(key) ?? [sources, 0];
    this.#accesses.set(key, [sources, times + 1]);
  }

  /** Adds the cost of an expression. Returns its sources. */
  #evaluate(e: Expr): Sources {
    switch (e.op) {
      case "const":
        return NONE;
      case "id":
        return e.name === "local" || NONE;
      case "local": {
        const { marked, variables } = this.#context;
        return marked.has(e.name) ? [variables.get(e.name)!] : NONE;
      }
      case "load": {
        const sources = this.#evaluate(e.index);
        this.#access(e.binding, sources, [0, e.type]);
        return sources;
      }
      case "shared":
        this.#operations++;
        return this.#evaluate(e.index);
      case "unary":
      case "convert":
        this.#operations++;
        return this.#evaluate(e.a);
      case "bitcast":
        return this.#evaluate(e.a);
      case "binary":
        this.#operations++;
        return both(this.#evaluate(e.a), this.#evaluate(e.b));
      case "call":
        if (e.fn === "fma") this.#multiplyAdds++;
        else this.#operations += FUNCTIONS[e.fn].operations;
        break;
      case "select":
        this.#operations++;
    }
    return operands(e).map((a) => this.#evaluate(a)).reduce(both, NONE);
  }
}

const NONE: Sources = [];

function both(a: Sources, b: Sources): Sources {
  if (a === true || b === true) return true;
  if (a.length === 0) return b;
  const more = b.filter((source) => !a.includes(source));
  return more.length === 0 ? a : [...a, ...more];
}

/** Integers and booleans (0 and 1); floats are never known. */
export type Value = number | undefined;

/** A number of the invocation, or an integer in a binding. */
export type Read = IdName | {
  readonly binding: string;
  readonly index: number;
};

/** The state in which an expression is evaluated. */
export interface State {
  /** Values of variables, by number. */
  readonly values: readonly Value[];
  read(what: Read): Value;
}

/** An expression, prepared for evaluation. */
export type Evaluated = (state: State) => Value;

/** The value of an expression that is never known. */
export function unknown(): Value {
  return undefined;
}

/** Prepares an expression. `variable`: the number of a variable. */
function evaluated(e: Expr, variable: (name: string) => number): Evaluated {
  if (!isKnowable(e)) return unknown;
  const of = (e: Expr) => evaluated(e, variable);
  switch (e.op) {
    case "const": {
      const value = Number(e.value);
      return () => value;
    }
    case "local": {
      const number = variable(e.name);
      return ({ values }) => values[number];
    }
    case "id":
      return (state) => state.read(e.name);
    case "load": {
      const { binding } = e;
      const at = of(e.index);
      return (state) => {
        const index = at(state);
        return index === undefined ? undefined : state.read({ binding, index });
      };
    }
    case "unary": {
      const fn = UNARY[e.type][e.fn];
      return fn ? known(of(e.a), fn) : unknown;
    }
    case "convert": {
      const { type, a } = e;
      return known(of(a), (value) => converted(value, a.type, type));
    }
    case "select": {
      const [condition, a, b] = [of(e.condition), of(e.a), of(e.b)];
      return (state) => {
        const value = condition(state);
        return value === undefined ? undefined : (value ? a : b)(state);
      };
    }
    case "binary":
      return binaryOf(e, of(e.a), of(e.b));
    default:
      return unknown;
  }
}

/** A function of a value, if it is known. */
function known(a: Evaluated, fn: (value: number) => number): Evaluated {
  return (state) => {
    const value = a(state);
    return value === undefined ? undefined : fn(value);
  };
}

function binaryOf(
  { fn, a: { type } }: Expr & { readonly op: "binary" },
  left: Evaluated,
  right: Evaluated,
): Evaluated {
  const result = BINARY[type][fn];
  // A known operand of these may be enough.
  const enough = fn === "land" ? 0 : fn === "lor" ? 1 : undefined;
  return (state) => {
    const [a, b] = [left(state), right(state)];
    if (enough !== undefined && (a === enough || b === enough)) return enough;
    return a === undefined || b === undefined ? undefined : result?.(a, b);
  };
}

/**
 * Whether counting may know a value: not floats, words of packed bytes, shared memory, bitcasts or results of
 * functions.
 */
function isKnowable(e: Expr): boolean {
  const unknown = e.op === "shared" || e.op === "bitcast" || e.op === "call" ||
    e.op === "load" && e.bytes === true;
  return e.type !== "f32" && !unknown;
}

/** Names in a body. */
interface UsedNames extends Pick<Context, "needed" | "marked"> {
  /** Bindings. */
  readonly accessed: ReadonlySet<string>;
  /** Variables that count loops. */
  readonly counters: ReadonlySet<string>;
}

/** Variables on which conditions and loops depend (`needed`), and on which accesses also depend (`marked`). */
function usedNames(body: readonly Stmt[]): UsedNames {
  const values = new Map<string, Expr[]>();
  const roots: Expr[] = [];
  const indices: Expr[] = [];
  const accessed = new Set<string>();
  const counters = new Set<string>();
  const addIndices = (e: Expr): false => {
    if (e.op === "load") {
      indices.push(e.index);
      accessed.add(e.binding);
    }
    someOperand(e, addIndices);
    return false;
  };
  const add = (s: Stmt): void => {
    expressionsOf(s).forEach(addIndices);
    if ("name" in s) {
      const all = cachedIn(values, s.name, { create: () => [] });
      all.push(...expressionsOf(s));
    }
    if (s.op === "store") {
      indices.push(s.index);
      accessed.add(s.binding);
    }
    if (s.op === "for") counters.add(s.name);
    if (s.op === "if" || s.op === "for") roots.push(...expressionsOf(s));
  };
  walkStatements(body, (s) => {
    if (s.op === "loads") scalarLoads(s).forEach(add);
    else add(s);
  });
  return {
    accessed,
    counters,
    needed: readNames(roots, { values, reads: isKnowable }),
    marked: readNames([...roots, ...indices], { values, reads: () => true }),
  };
}

/**
 * Variables on which expressions depend, by all values of each; only through expressions that pass the test `reads`.
 */
function readNames(
  roots: readonly Expr[],
  { values, reads }: {
    readonly values: ReadonlyMap<string, readonly Expr[]>;
    readonly reads: (e: Expr) => boolean;
  },
): Set<string> {
  const names = new Set<string>();
  const need = (e: Expr): false => {
    if (!reads(e)) return false;
    someOperand(e, need);
    if (e.op !== "local" || names.has(e.name)) return false;
    names.add(e.name);
    values.get(e.name)?.forEach(need);
    return false;
  };
  roots.forEach(need);
  return names;
}

function setNames(body: readonly Stmt[]): string[] {
  const names = new Set<string>();
  walkStatements(body, (s) => {
    if (s.op === "set") names.add(s.name);
  });
  return [...names];
}

/** Maximum iterations of a loop whose end is the minimum of a value and a constant, also relative to its start. */
function maxIterations(
  { from, to, step }: ForStmt<Stmt>,
): number | undefined {
  if (to.op !== "binary" || to.fn !== "min") return undefined;
  const { b } = to;
  if (step.op !== "const") return undefined;
  if (b.op === "const" && from.op === "const") {
    return Math.ceil(
      (Number(b.value) - Number(from.value)) / Number(step.value),
    );
  }
  if (b.op !== "binary" || b.fn !== "add") return undefined;
  const same = isSame(b.a, from) && b.b.op === "const";
  return same ? Math.ceil(Number(b.b.value) / Number(step.value)) : undefined;
}
