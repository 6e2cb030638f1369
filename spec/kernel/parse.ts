/** Reads the statements of kernel text into the kernel tree. */

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
} from "./build.ts";
import { OPERATORS } from "./operators.ts";
import {
  elementAt,
  expression,
  expressionOf,
  indexOf,
  lengthOf,
  registerOf,
} from "./parse_expression.ts";
import { declare, type Declaring, freshName, type Name } from "./parse_name.ts";
import { unrolled } from "./parse_unrolled.ts";
import { OUTSIDE, Scanner } from "./scanner.ts";
import {
  type Hole,
  KernelText,
  type KernelTextError,
  type Statements,
  type Token,
  wgsl,
} from "./text.ts";
import { TextScope, type VariableKind } from "./text_scope.ts";
import type {
  BinaryOp,
  Binding,
  Expr,
  ScalarType,
  SharedArray,
  Stmt,
} from "./tree.ts";
import { binaryType } from "./types.ts";
import { Registers } from "./unroll.ts";
import { loopFaults } from "../verify_loops.ts";

/** What kernel text says. */
export interface ParsedText {
  readonly body: readonly Stmt[];
  readonly shared: readonly SharedArray[];
  /** Barriers inside of loops and conditions, and what to throw where not every invocation arrives at one. */
  readonly nestedBarriers: ReadonlyMap<Stmt, () => KernelTextError>;
}

/** Operators of assignments that compute: `+=`, `++` and the like. */
const ASSIGNMENTS: ReadonlyMap<string, BinaryOp> = new Map([
  ["++", "add"],
  ...[...OPERATORS.values()]
    .filter(({ kind }) => kind === "arithmetic" || kind === "bits")
    .map(({ text, fn }) => [`${text}=`, fn] as const),
]);

interface Parser extends Declaring {
  readonly barriers: Map<Stmt, () => KernelTextError>;
}

/** Read statements that see some bindings. Throws KernelTextError where they are not as the subset wants them. */
export function parseStatements(
  text: Statements,
  bindings: readonly Binding[],
): ParsedText {
  const scope = new TextScope(bindings);
  const barriers: Parser["barriers"] = new Map();
  const p: Parser = {
    ...{ scanner: new Scanner(), scope, registers: new Registers() },
    ...{ barriers, depth: 0, turns: [] },
  };
  const body = included(p, text);
  return { body, shared: scope.shared, nestedBarriers: barriers };
}

/** Read an expression that sees nothing but what its holes bring. Throws as `parseStatements`. */
function parseExpression(text: KernelText): Expr {
  const scanner = new Scanner();
  const scope = new TextScope([]);
  const registers = new Registers();
  return scanner.inside(text, () => expression({ scanner, scope, registers }));
}

/** An expression of the kernel tree, written as kernel text whose names are all in holes. */
export function expr(
  strings: TemplateStringsArray,
  ...holes: readonly Hole[]
): Expr {
  return parseExpression(wgsl(strings, ...holes));
}

/** Statements of a hole, as if they stood there. */
function included(p: Parser, from: Statements): Stmt[] {
  if (from instanceof KernelText) {
    return p.scanner.inside(from, () => statements(p));
  }
  return from.flatMap((s) => {
    if (s instanceof KernelText) return included(p, s);
    p.scope.declareAll([s]);
    return [s];
  });
}

/** Statements up to a closing brace or the end of the text. */
function statements(p: Parser): Stmt[] {
  const { scanner } = p;
  const all: Stmt[] = [];
  for (;;) {
    const token = scanner.peek();
    if (token.kind === "end" || scanner.is("}")) return all;
    if (token.kind === "hole") {
      const hole = scanner.hole(token.hole);
      if (hole === false || hole === undefined) {
        scanner.next();
        continue;
      }
      if (hole instanceof KernelText || isList(hole)) {
        scanner.next();
        all.push(...included(p, hole));
        continue;
      }
    }
    if (scanner.is("@")) {
      all.push(...unrolled(p, () => statements(p)));
      continue;
    }
    const read = statement(p, token);
    if (read) all.push(read);
  }
}

function isList(hole: Hole): hole is readonly (Stmt | KernelText)[] {
  return Array.isArray(hole);
}

function block(p: Parser, before?: () => void): Stmt[] {
  p.scanner.skip("{");
  p.depth++;
  const body = p.scope.block(() => {
    before?.();
    return statements(p);
  });
  p.depth--;
  p.scanner.skip("}");
  return body;
}

function statement(p: Parser, token: Token): Stmt | undefined {
  const { scanner } = p;
  const word = scanner.nameOf(token);
  if (word === undefined || OUTSIDE.has(word)) {
    throw scanner.expected("a statement", token);
  }
  switch (word) {
    case "let":
    case "var":
      scanner.next();
      if (word === "var" && scanner.is("<")) return declareArray(p);
      if (word === "let" && scanner.is("(")) return vector(p);
      return declaration(p, word);
    case "for":
      return loop(p);
    case "if":
      return conditional(p);
    case "workgroupBarrier": {
      scanner.skip(word, "(", ")", ";");
      const wait = barrier();
      const { text } = scanner;
      if (p.depth > 0) {
        p.barriers.set(wait, () =>
          scanner.error(
            token,
            "Cannot wait at this barrier: not every invocation of the workgroup arrives. Make the bounds and conditions around it uniform",
            text,
          ));
      }
      return wait;
    }
    default:
      scanner.next();
      return assignment(p, word, token);
  }
}

/** `let x = 1u;`, `var x: u32 = 1;` */
function declaration(p: Parser, kind: VariableKind & Stmt["op"]): Stmt {
  const { scanner } = p;
  const fresh = freshName(p);
  const { as } = fresh;
  const type = scanner.take(":") ? scalarType(p) : undefined;
  scanner.skip("=");
  const value = type ? expressionOf(p, type, `'${as}'`) : expression(p);
  scanner.skip(";");
  declare(p, fresh, { type: value.type, kind });
  return kind === "let" ? let_(as, value) : var_(as, value);
}

function scalarType(p: Parser): ScalarType {
  const token = p.scanner.peek();
  const type = p.scanner.name("a type");
  if (type === "f32" || type === "i32" || type === "u32" || type === "bool") {
    return type;
  }
  throw p.scanner.error(
    token,
    `Cannot read '${type}' as a type: types are f32, i32, u32 and bool. Name one of them`,
  );
}

/** `var<workgroup> cells: array<u32, 64>;` */
function declareArray(p: Parser): undefined {
  const { scanner } = p;
  scanner.skip("<", "workgroup", ">");
  const { name } = freshName(p);
  scanner.skip(":", "array", "<");
  const at = scanner.peek();
  const type = scalarType(p);
  if (type === "bool") {
    throw scanner.error(
      at,
      `Cannot declare '${name}': memory holds no bool. Use u32`,
    );
  }
  scanner.skip(",");
  const counted = scanner.peek();
  const length = lengthOf(p);
  if (length.op !== "const" || !(Number(length.value) >= 1)) {
    throw scanner.error(
      counted,
      `Cannot declare '${name}': its length is not a positive constant. Give a number`,
    );
  }
  scanner.skip(">", ";");
  p.scope.shared.push({ name, type, length: Number(length.value) });
}

/** `let (a, b, c, d) = vec4(weights)[i];`: elements 4i to 4i + 3 */
function vector(p: Parser): Stmt {
  const { scanner, scope } = p;
  const start = scanner.peek();
  scanner.skip("(");
  const names: Name[] = [];
  do names.push(freshName(p)); while (scanner.take(","));
  scanner.skip(")", "=");
  if (names.length !== 2 && names.length !== 4) {
    throw scanner.error(
      start,
      `Cannot load ${names.length} elements at once: vectors have 2 or 4. Name as many`,
    );
  }
  scanner.skip(`vec${names.length}`, "(");
  const at = scanner.peek();
  const binding = scanner.name("a binding");
  const declared = scope.binding(binding);
  if (declared?.access !== "read") {
    const state = declared ? "it is written" : "it is no binding";
    throw scanner.error(
      at,
      `Cannot load vectors from '${binding}': ${state}. Name a binding that is only read`,
    );
  }
  scanner.skip(")", "[");
  const index = expressionOf(p, "u32", "an index");
  scanner.skip("]", ";");
  const { type } = declared;
  names.forEach((name) => declare(p, name, { type, kind: "let" }));
  return loads(names.map(({ as }) => as), { binding, index, type });
}

/** `for (var i = from; i < to; i += step) { … }`, over u32; `i++` counts by one. */
function loop(p: Parser): Stmt {
  const { scanner } = p;
  scanner.skip("for", "(", "var");
  const { name } = freshName(p);
  scanner.skip("=");
  const from = unsigned(p, `the start of '${name}'`);
  scanner.skip(";", name, "<");
  const bound = scanner.peek();
  const to = unsigned(p, `the end of '${name}'`, "u32");
  scanner.skip(";", name);
  const at = scanner.peek();
  let step = u32(1);
  if (!scanner.take("++")) {
    scanner.skip("+=");
    step = unsigned(p, `the step of '${name}'`, "u32");
  }
  if (step.op !== "const" || step.value === 0) {
    throw scanner.error(
      at,
      `Cannot count '${name}' by this step: it is no positive constant. Give a number`,
    );
  }
  scanner.skip(")");
  const body = block(p, () => {
    p.scope.declare(name, { type: "u32", kind: "loop" });
  });
  const read = for_(name, from, to, body, step);
  if (read.op === "for" && loopFaults(read).length > 0) {
    throw scanner.error(
      bound,
      `Cannot count '${name}' to this end: it changes inside of the loop. Keep it in a 'let'`,
    );
  }
  return read;
}

function unsigned(p: Parser, what: string, wanted?: ScalarType): Expr {
  const token = p.scanner.peek();
  const value = expression(p, wanted);
  if (value.type === "u32") return value;
  throw p.scanner.error(
    token,
    `Cannot use ${value.type} for ${what}: loops count u32. Convert it with u32()`,
  );
}

function conditional(p: Parser): Stmt {
  const { scanner } = p;
  scanner.skip("if", "(");
  const condition = expressionOf(p, "bool", "a condition");
  scanner.skip(")");
  const then = block(p);
  const token = scanner.peek();
  if (scanner.nameOf(token) !== "else") return if_(condition, then);
  scanner.next();
  const other = scanner.peek();
  return if_(
    condition,
    then,
    scanner.nameOf(other) === "if" ? [conditional(p)] : block(p),
  );
}

/** `x = 1;`, `x += 1;`, `x++;`, `cells[i] = 1;`, `cells[i] += 1;` */
function assignment(p: Parser, name: string, token: Token): Stmt {
  const { scanner, scope } = p;
  if (scanner.is("(")) {
    throw scanner.error(
      token,
      `Cannot call '${name}' as a statement: only workgroupBarrier() is one. Use its value`,
    );
  }
  const register = registerOf(p, name, token);
  if (register || !scanner.is("[")) {
    const variable = register ?? scope.variable(name);
    if (variable?.kind !== "var") {
      const state = variable
        ? variable.kind === "let" ? "it is a 'let'" : "it counts a loop"
        : scope.has(name)
        ? "it is an array"
        : "nothing of that name is declared here";
      throw scanner.error(
        token,
        `Cannot assign to '${name}': ${state}. Declare a 'var'`,
      );
    }
    const { as = name } = variable;
    return set(as, assigned(p, local(as, variable.type), as));
  }
  const binding = scope.binding(name);
  if (binding?.access === "read") {
    throw scanner.error(
      token,
      `Cannot store to '${name}': the binding is only read. List it among those that are written`,
    );
  }
  const index = indexOf(p, name, token);
  const array = scope.array(name);
  const target = elementAt(p, name, index);
  const value = assigned(p, target, name);
  return array ? sharedStore(name, index, value) : store(name, index, value);
}

/** The value that an assignment gives to a target. */
function assigned(p: Parser, target: Expr, name: string): Expr {
  const { scanner } = p;
  const token = scanner.next();
  const text = token.kind === "operator" ? token.text : "";
  const fn = ASSIGNMENTS.get(text);
  if (text !== "=" && fn === undefined) throw scanner.expected("'='", token);
  const value = text === "++"
    ? u32(1)
    : expressionOf(p, target.type, `'${name}'`);
  scanner.skip(";");
  if (fn === undefined) return value;
  if (binaryType(fn, target.type, value.type) === undefined) {
    throw scanner.error(
      token,
      `Cannot apply '${text}' to '${name}': it is ${target.type}. Write the operation out`,
    );
  }
  return binary(fn, target, value);
}
