/** Resolves kernel text to the kernel tree: names, types, and unrolled loops. */

import {
  barrier,
  binary,
  for_,
  if_,
  let_,
  loads,
  local,
  set,
  sharedStore,
  store,
  u32,
  var_,
} from "../build.ts";
import { OPERATORS } from "../operators.ts";
import { expressionOf as syntaxOf, rangesOf, statementsOf } from "./parse.ts";
import { replaceInStatement } from "../replace.ts";
import {
  elementAt,
  expression,
  expressionOf,
  indexOf,
  registerOf,
  withRegisters,
} from "./resolve_expression.ts";
import { inside, mistake, nameAt, resolving } from "./resolve_name.ts";
import { declare, type Declaring, freshName } from "./resolve_target.ts";
import { expected } from "./scanner.ts";
import type { ExprSyntax, RangeSyntax, StmtSyntax } from "./syntax.ts";
import {
  type Hole,
  KernelText,
  type KernelTextError,
  type Statements,
  type Token,
  wgsl,
} from "./text.ts";
import type {
  BinaryOp,
  Binding,
  Expr,
  ScalarType,
  SharedArray,
  Stmt,
} from "../tree.ts";
import { binaryType } from "../semantics.ts";
import { loopFaults } from "../verify/loops.ts";

/** Resolved kernel text. */
export interface ResolvedText {
  readonly body: readonly Stmt[];
  readonly shared: readonly SharedArray[];
  /** Barriers in loops and conditions, and the error to throw if not every invocation reaches one. */
  readonly nestedBarriers: ReadonlyMap<Stmt, () => KernelTextError>;
}

/** Operators of compound assignments: `+=`, `++` and so on. */
const ASSIGNMENTS: ReadonlyMap<string, BinaryOp> = new Map([
  ["++", "add"],
  ...[...OPERATORS.values()]
    .filter(({ kind }) => kind === "arithmetic" || kind === "bits")
    .map(({ text, fn }) => [`${text}=`, fn] as const),
]);

interface Resolver extends Declaring {
  readonly barriers: Map<Stmt, () => KernelTextError>;
}

/** A statement of a kind in the syntax tree. */
type Of<K> = Extract<StmtSyntax, { readonly kind: K }>;

/** Resolves statements with visible bindings. Throws KernelTextError for text outside the subset. */
export function resolveStatements(
  text: Statements,
  bindings: readonly Binding[],
): ResolvedText {
  const barriers: Resolver["barriers"] = new Map();
  const p: Resolver = {
    ...resolving(bindings),
    barriers,
    depth: 0,
    iterations: [],
  };
  const body: Stmt[] = [];
  include(p, text, { to: body });
  return { body, shared: p.scope.shared, nestedBarriers: barriers };
}

/** Resolves text without visible names. */
const HOLES = resolving([]);

/** An expression of the kernel tree, written as kernel text whose names are all in holes. */
export function expr(
  strings: TemplateStringsArray,
  ...holes: readonly Hole[]
): Expr {
  const text = wgsl(strings, ...holes);
  return inside(HOLES, text, () => expression(HOLES, syntaxOf(text)));
}

/** An expression of the kernel tree, from text with the names of bindings. */
export function exprIn(bindings: readonly Binding[], text: KernelText): Expr {
  const p = resolving(bindings);
  return inside(p, text, () => expression(p, syntaxOf(text)));
}

/** Inserts the statements of a hole. */
function include(
  p: Resolver,
  from: Statements,
  { to, at }: { readonly to: Stmt[]; readonly at?: Token },
): void {
  if (from instanceof KernelText) {
    return inside(p, from, () => statements(p, statementsOf(from), to));
  }
  const iteration = p.scope.inIteration() ? at : undefined;
  for (const s of from) {
    if (s instanceof KernelText) include(p, s, { to });
    else {
      const tree = iteration
        ? withRegisters(p, s, { at: iteration, replace: replaceInStatement })
        : s;
      p.scope.declareTree(tree);
      to.push(tree);
    }
  }
}

function statements(
  p: Resolver,
  all: readonly StmtSyntax[],
  to: Stmt[],
): void {
  for (const s of all) {
    if (s.kind === "hole") hole(p, s, to);
    else if (s.kind === "unroll") unroll(p, s, to);
    else if (s.kind === "array") declareArray(p, s);
    else to.push(statement(p, s));
  }
}

function statement(
  p: Resolver,
  s: Exclude<StmtSyntax, Of<"hole" | "unroll" | "array">>,
): Stmt {
  switch (s.kind) {
    case "let":
    case "var":
      return declaration(p, s);
    case "vector":
      return vector(p, s);
    case "for":
      return loop(p, s);
    case "if": {
      const test = { type: "bool", what: "a condition" } as const;
      return if_(
        expressionOf(p, s.condition, test),
        block(p, s.then),
        s.else && block(p, s.else),
      );
    }
    case "barrier":
      return wait(p, s.at);
    case "assign":
      return assignment(p, s);
  }
}

function hole(p: Resolver, { at, hole }: Of<"hole">, to: Stmt[]): void {
  const value = p.text.holes[hole];
  if (value === false || value === undefined) return;
  if (value instanceof KernelText || isList(value)) {
    return include(p, value, { to, at });
  }
  throw expected(p.text, "a statement", at);
}

function isList(hole: Hole): hole is readonly (Stmt | KernelText)[] {
  return Array.isArray(hole);
}

function block(
  p: Resolver,
  body: readonly StmtSyntax[],
  before?: () => void,
): Stmt[] {
  const to: Stmt[] = [];
  p.depth++;
  p.scope.block(() => {
    before?.();
    statements(p, body, to);
  });
  p.depth--;
  return to;
}

function wait(p: Resolver, at: Token): Stmt {
  const stmt = barrier();
  const { text } = p;
  if (p.depth > 0) {
    p.barriers.set(stmt, () =>
      mistake(
        { ...p, text },
        at,
        "Cannot wait at this barrier: not every invocation of the workgroup arrives. Make the bounds and conditions around it uniform",
      ));
  }
  return stmt;
}

/** `let x = 1u;`, `var x: u32 = 1;` */
function declaration(p: Resolver, s: Of<"let" | "var">): Stmt {
  const { kind, name: { at } } = s;
  const fresh = freshName(p, s.name);
  const { as } = fresh;
  const value = s.type
    ? expressionOf(p, s.value, { type: scalarType(p, s.type), what: `'${as}'` })
    : expression(p, s.value);
  declare(p, fresh, { type: value.type, kind, at });
  return kind === "let" ? let_(as, value) : var_(as, value);
}

function scalarType(p: Resolver, at: Token): ScalarType {
  const type = nameAt(p, at, "a type");
  if (type === "f32" || type === "i32" || type === "u32" || type === "bool") {
    return type;
  }
  throw mistake(
    p,
    at,
    `Cannot read '${type}' as a type: types are f32, i32, u32 and bool. Name one of them`,
  );
}

/** `var<workgroup> cells: array<u32, 64>;` */
function declareArray(p: Resolver, s: Of<"array">): void {
  const { base: name } = freshName(p, s.name);
  const type = scalarType(p, s.type);
  if (type === "bool") {
    throw mistake(
      p,
      s.type,
      `Cannot declare '${name}': memory holds no bool. Use u32`,
    );
  }
  const other = p.scope.declaredArray(name);
  if (other && other.type !== type) {
    throw mistake(
      p,
      s.type,
      `Cannot declare '${name}' as ${type}: another block has it as ${other.type}. Rename it`,
    );
  }
  const length = positive(p, s.length);
  if (length === undefined) {
    throw mistake(
      p,
      s.length.start,
      `Cannot declare '${name}': its length is not a positive constant. Give a number`,
    );
  }
  p.scope.declareArray({ name, type, length });
}

/** The value of a u32 constant other than 0. */
function positive(p: Resolver, s: ExprSyntax): number | undefined {
  const value = expression(p, s, "u32");
  return value.op === "const" && value.type === "u32" && value.value !== 0
    ? Number(value.value)
    : undefined;
}

/** `let (a, b, c, d) = vec4(weights)[i];`: elements 4i to 4i + 3 */
function vector(p: Resolver, s: Of<"vector">): Stmt {
  const names = s.names.map((name) => freshName(p, name));
  const binding = nameAt(p, s.binding, "a binding");
  const declared = p.scope.binding(binding);
  if (declared?.access !== "read") {
    const state = declared ? "it is written" : "it is no binding";
    throw mistake(
      p,
      s.binding,
      `Cannot load vectors from '${binding}': ${state}. Name a binding that is only read`,
    );
  }
  const index = expressionOf(p, s.index, { type: "u32", what: "an index" });
  const { type } = declared;
  names.forEach((name, i) =>
    declare(p, name, { type, kind: "let", at: s.names[i]!.at })
  );
  return loads(names.map(({ as }) => as), { binding, index, type });
}

/** `for (var i = from; i < to; i += step) { … }`, over u32; `i++` counts by one. */
function loop(p: Resolver, s: Of<"for">): Stmt {
  const { base: name } = freshName(p, s.name);
  for (const at of s.again) {
    if (nameAt(p, at, `'${name}'`) !== name) {
      throw expected(p.text, `'${name}'`, at);
    }
  }
  const from = counted(p, s.from, { what: `the start of '${name}'` });
  const to = counted(p, s.to, { what: `the end of '${name}'`, wanted: "u32" });
  const step = s.step
    ? counted(p, s.step, { what: `the step of '${name}'`, wanted: "u32" })
    : u32(1);
  if (s.step && (step.op !== "const" || step.value === 0)) {
    throw mistake(
      p,
      s.step.start,
      `Cannot count '${name}' by this step: it is no positive constant. Give a number`,
    );
  }
  const body = block(p, s.body, () => {
    p.scope.declare(name, { type: "u32", kind: "loop" });
  });
  const read = for_(name, from, to, body, step);
  if (read.op === "for" && loopFaults(read).length > 0) {
    throw mistake(
      p,
      s.to.start,
      `Cannot count '${name}' to this end: it changes inside of the loop. Keep it in a 'let'`,
    );
  }
  return read;
}

function counted(
  p: Resolver,
  s: ExprSyntax,
  { what, wanted }: { readonly what: string; readonly wanted?: ScalarType },
): Expr {
  const value = expression(p, s, wanted);
  if (value.type === "u32") return value;
  throw mistake(
    p,
    s.start,
    `Cannot use ${value.type} for ${what}: loops count u32. Convert it with u32()`,
  );
}

/** The values of a variable of an unrolled loop: from 0 below `end`. */
interface Range {
  readonly name: string;
  readonly end: number;
  readonly step: number;
}

/**
 * `@unroll (r < 4, c < 8 by 2) { … }`: the statements of all iterations, one after another; the last variable varies
 * fastest.
 */
function unroll(p: Resolver, s: Of<"unroll">, to: Stmt[]): void {
  const { given } = s;
  if (!given) {
    return iterations(p, s.body, { ranges: rangesIn(p, s.ranges), to });
  }
  const text = given.kind === "hole" ? p.text.holes[given.hole] : undefined;
  if (!(text instanceof KernelText)) throw expected(p.text, "a name", given);
  const ranges = inside(p, text, () => rangesIn(p, rangesOf(text)));
  iterations(p, s.body, { ranges, to });
}

function iterations(
  p: Resolver,
  body: readonly StmtSyntax[],
  { ranges, to, at = 0 }: {
    readonly ranges: readonly Range[];
    readonly to: Stmt[];
    /** The index of the next range. */
    readonly at?: number;
  },
): void {
  const range = ranges[at];
  if (!range) return statements(p, body, to);
  for (let value = 0; value < range.end; value += range.step) {
    p.scope.iteration(() => {
      p.scope.declareInIteration(range.name, {
        type: "u32",
        kind: "unrolled",
        value,
      });
      p.iterations.push({ depth: p.depth, value });
      iterations(p, body, { ranges, to, at: at + 1 });
      p.iterations.pop();
    });
  }
}

function rangesIn(p: Resolver, all: readonly RangeSyntax[]): Range[] {
  return all.map((s) => {
    const { base: name } = freshName(p, s.name);
    const number = (of: ExprSyntax) => {
      const value = positive(p, of);
      if (value !== undefined) return value;
      throw mistake(
        p,
        of.start,
        `Cannot unroll the loop over '${name}': the number of its iterations is not a positive constant. Give a number`,
      );
    };
    return { name, end: number(s.end), step: s.step ? number(s.step) : 1 };
  });
}

/** `x = 1;`, `x += 1;`, `x++;`, `cells[i] = 1;`, `cells[i] += 1;` */
function assignment(p: Resolver, s: Of<"assign">): Stmt {
  const { scope } = p;
  const { at, indices } = s.target;
  const name = nameAt(p, at, "a statement");
  const target = { name, at, indices };
  const register = registerOf(p, target);
  if (register || indices.length === 0) {
    const variable = register ?? scope.variable(name);
    if (variable?.kind !== "var") {
      const state = variable
        ? variable.kind === "let" ? "it is a 'let'" : "it counts a loop"
        : scope.has(name)
        ? "it is an array"
        : "nothing of that name is declared here";
      throw mistake(
        p,
        at,
        `Cannot assign to '${name}': ${state}. Declare a 'var'`,
      );
    }
    const { as = name } = variable;
    return set(as, assigned(p, s, { to: local(as, variable.type), name: as }));
  }
  const binding = scope.binding(name);
  if (binding?.access === "read") {
    throw mistake(
      p,
      at,
      `Cannot store to '${name}': the binding is only read. List it among those that are written`,
    );
  }
  const index = indexOf(p, target);
  const value = assigned(p, s, { to: elementAt(p, name, index), name });
  return scope.array(name)
    ? sharedStore(name, index, value)
    : store(name, index, value);
}

/** The value of an assignment. */
function assigned(
  p: Resolver,
  { operator, value: syntax }: Of<"assign">,
  { to, name }: { readonly to: Expr; readonly name: string },
): Expr {
  const text = operator.kind === "operator" ? operator.text : "";
  const fn = ASSIGNMENTS.get(text);
  if (text !== "=" && fn === undefined) {
    throw expected(p.text, "'='", operator);
  }
  const value = syntax
    ? expressionOf(p, syntax, { type: to.type, what: `'${name}'` })
    : u32(1);
  if (fn === undefined) return value;
  if (binaryType(fn, to.type, value.type) !== undefined) {
    return binary(fn, to, value);
  }
  throw mistake(
    p,
    operator,
    `Cannot apply '${text}' to '${name}': it is ${to.type}. Write the operation out`,
  );
}
