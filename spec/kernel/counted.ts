/**
 * Kernel bodies prepared for counting work: the costs of expressions are added up once, because most of them do not
 * depend on values. Only integers that a condition, a loop or another such integer reads are evaluated.
 */

import { STORED_BYTES } from "../dtype.ts";
import { exactJson } from "./exact_json.ts";
import { FUNCTIONS } from "./semantics.ts";
import type { Expr, ForStmt, ScalarType, Stmt } from "./tree.ts";
import { scalarLoads } from "./vectors.ts";
import {
  addLocals,
  expressionsOf,
  operands,
  someNode,
  someStatement,
  walkStatements,
} from "./walk.ts";

/** Indices of totals: multiply-adds, operations; then of each binding, bytes loaded and bytes stored. */
export const FMA = 0, OTHER = 1, BINDINGS = 2;

/** Operations per load or store whose index differs between invocations. */
const SCATTERED_OPERATIONS = 5;

/** Operations to add to one, if the index differs. */
export const SCATTERED_MORE = SCATTERED_OPERATIONS - 1;

/** Variables that a value depends on; true if it depends on the number of the invocation. */
export type Sources = true | readonly string[];

/** Cost of the expressions and accesses of a statement. */
export interface Cost {
  /** Pairs of an index of totals and a number to add. Each access counts as one operation. */
  readonly fixed: readonly (readonly [total: number, added: number])[];
  /** Sources of the indices of loads and stores that may differ between invocations. */
  readonly accesses: readonly Sources[];
  readonly sources: Sources;
}

/** A statement, as it is counted. */
export type Counted =
  | {
    readonly op: "evaluate";
    readonly cost: Cost;
    /** The variable that is set. */
    readonly name?: string;
    /** Its value if it is needed. */
    readonly value?: Expr;
  }
  | {
    readonly op: "if";
    readonly cost: Cost;
    readonly condition: Expr;
    readonly then: readonly Counted[];
    readonly else: readonly Counted[];
    /** Variables set in a branch. */
    readonly sets: readonly string[];
  }
  | {
    readonly op: "for";
    readonly cost: Cost;
    readonly name: string;
    readonly from: Expr;
    readonly to: Expr;
    readonly step: Expr;
    readonly body: readonly Counted[];
    /** Variables set in the body. */
    readonly sets: readonly string[];
    /** Whether iterations pass no integers on, so that they can be counted in any order. */
    readonly steady: boolean;
    /** Maximum iterations if the bounds are unknown. */
    readonly max: number | undefined;
  };

/** A body, as it is counted. */
export interface CountedBody {
  readonly body: readonly Counted[];
  /** The number of each used binding in the totals. */
  readonly bindings: ReadonlyMap<string, number>;
}

/** Prepares a body. */
export function countedBody(body: readonly Stmt[]): CountedBody {
  const bindings = new Map<string, number>();
  const needed = neededNames(body);
  return {
    body: body.flatMap((s) => countedStatement(s, { bindings, needed })),
    bindings,
  };
}

interface Context {
  readonly bindings: Map<string, number>;
  readonly needed: ReadonlySet<string>;
}

function countedStatement(s: Stmt, context: Context): readonly Counted[] {
  const block = (body: readonly Stmt[]) =>
    body.flatMap((s) => countedStatement(s, context));
  switch (s.op) {
    case "let":
    case "var":
    case "set": {
      const { name, value } = s;
      const known = context.needed.has(name) ? { value } : {};
      return [{ op: "evaluate", cost: costOf(context, s), name, ...known }];
    }
    case "loads":
      return block(scalarLoads(s));
    case "store":
    case "sharedStore":
      return [{ op: "evaluate", cost: costOf(context, s) }];
    case "if":
      return [{
        op: "if",
        cost: costOf(context, s),
        condition: s.condition,
        then: block(s.then),
        else: block(s.else ?? []),
        sets: setNames([s]),
      }];
    case "for":
      return [{
        op: "for",
        cost: costOf(context, s),
        name: s.name,
        from: s.from,
        to: s.to,
        step: s.step,
        body: block(s.body),
        sets: setNames(s.body),
        steady: !someStatement(
          s.body,
          (s) => s.op === "set" && s.value.type !== "f32",
        ),
        max: maxIterations(s),
      }];
    case "barrier":
      return [];
  }
}

/** The cost of a statement, without that of its bodies. */
function costOf({ bindings }: Context, s: Stmt): Cost {
  const totals = new Map<number, number>();
  const accesses: Sources[] = [];
  const add = (at: number, n: number) =>
    void totals.set(at, (totals.get(at) ?? 0) + n);
  /** An access at an index: a load (0) or a store (1). */
  const access = (
    { binding, index }: { readonly binding: string; readonly index: Expr },
    { stored, type }: { readonly stored: 0 | 1; readonly type: ScalarType },
  ) => {
    const number = bindings.get(binding) ?? bindings.size;
    bindings.set(binding, number);
    const bytes = type === "bool" ? 4 : STORED_BYTES[type];
    add(BINDINGS + 2 * number + stored, bytes);
    const sources = sourcesOf([index]);
    add(OTHER, sources === true ? SCATTERED_OPERATIONS : 1);
    if (sources !== true && sources.length > 0) accesses.push(sources);
  };
  const evaluate = (e: Expr): void => {
    if (e.op === "load") access(e, { stored: 0, type: e.type });
    else if (e.op === "call") {
      if (e.fn === "fma") add(FMA, 1);
      else add(OTHER, FUNCTIONS[e.fn].operations);
    } else if (ARITHMETIC.has(e.op)) add(OTHER, 1);
    operands(e).forEach(evaluate);
  };
  const values = expressionsOf(s);
  values.forEach(evaluate);
  if (s.op === "store") access(s, { stored: 1, type: s.value.type });
  if (s.op === "sharedStore") add(OTHER, 1);
  return { fixed: [...totals], accesses, sources: sourcesOf(values) };
}

/** Nodes that count as one operation. */
const ARITHMETIC: ReadonlySet<Expr["op"]> = new Set<Expr["op"]>([
  "shared",
  "unary",
  "convert",
  "select",
  "binary",
]);

function sourcesOf(values: readonly Expr[]): Sources {
  const names = new Set<string>();
  for (const e of values) addLocals(e, names);
  const differs = values.some((e) =>
    someNode(e, (e) => e.op === "id" && e.name === "local")
  );
  return differs || [...names];
}

/** Whether counting may know a value: not floats, words of packed bytes, shared memory, bitcasts or results of functions. */
export function isKnowable(e: Expr): boolean {
  const unknown = e.op === "shared" || e.op === "bitcast" || e.op === "call" ||
    e.op === "load" && e.bytes === true;
  return e.type !== "f32" && !unknown;
}

/** Variables that conditions and loops depend on. */
function neededNames(body: readonly Stmt[]): Set<string> {
  const values = new Map<string, Expr[]>();
  const roots: Expr[] = [];
  walkStatements(body, (s) => {
    const set = s.op === "loads" ? scalarLoads(s) : [s];
    for (const s of set) {
      if (s.op === "let" || s.op === "var" || s.op === "set") {
        values.set(s.name, [...values.get(s.name) ?? [], s.value]);
      }
    }
    if (s.op === "if") roots.push(s.condition);
    if (s.op === "for") roots.push(s.from, s.to, s.step);
  });
  const needed = new Set<string>();
  const need = (e: Expr) => {
    if (!isKnowable(e)) return;
    operands(e).forEach(need);
    if (e.op !== "local" || needed.has(e.name)) return;
    needed.add(e.name);
    values.get(e.name)?.forEach(need);
  };
  roots.forEach(need);
  return needed;
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
  const same = exactJson(b.a) === exactJson(from) && b.b.op === "const";
  return same ? Math.ceil(Number(b.b.value) / Number(step.value)) : undefined;
}
