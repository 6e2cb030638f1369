/** Reads an expression of kernel text into the kernel tree. Types are checked on the way. */

import {
  binary,
  bitcast,
  bool,
  call,
  convert,
  f32,
  i32,
  id,
  load,
  local,
  neg,
  select,
  shared,
  u32,
} from "./build.ts";
import { needsParentheses, type Operator, OPERATORS } from "./operators.ts";
import type { Scanner } from "./scanner.ts";
import { KernelText, type Token } from "./text.ts";
import type { TextScope, Variable } from "./text_scope.ts";
import type { BinaryOp, CallName, Expr, ScalarType } from "./tree.ts";
import { ARGUMENTS, binaryType, fitsType } from "./types.ts";
import {
  isKnown,
  partsOfName,
  type Registers,
  turnVariable,
} from "./unroll.ts";

/** Text that is being read, and the names that it sees. */
export interface Parsing {
  readonly scanner: Scanner;
  readonly scope: TextScope;
  readonly registers: Registers;
}

/** An integer without a suffix: it takes the type that its place wants. */
interface Literal {
  readonly op: "literal";
  readonly value: number;
  readonly token: Token;
  readonly text: KernelText;
}

/** What was read, and its outermost operator outside of parentheses. */
interface Operand {
  readonly value: Expr | Literal;
  readonly outer?: Operator;
}

const SCALARS: ReadonlySet<string> = new Set(["f32", "i32", "u32", "bool"]);
const CONSTANT = { f32, i32, u32 };

/** Functions whose WGSL name differs from the tree's. */
const NAMED: { readonly [wgsl: string]: CallName } = { inverseSqrt: "rsqrt" };

/** Read an expression; an integer without a suffix becomes one of type `wanted`. */
export function expression(p: Parsing, wanted?: ScalarType): Expr {
  return typed(p, operand(p, 1).value, wanted);
}

/** Read the length of an array: one value, as a `>` stands behind it. */
export function lengthOf(p: Parsing): Expr {
  return typed(p, unary(p).value, "u32");
}

/** Read an expression that must be of a type; `what` is how the message names it. */
export function expressionOf(
  p: Parsing,
  type: ScalarType,
  what: string,
): Expr {
  const token = p.scanner.peek();
  const value = expression(p, type);
  if (value.type !== type) {
    throw p.scanner.error(
      token,
      `Cannot use ${value.type} for ${what}: it must be ${type}. Convert it with ${type}()`,
    );
  }
  return value;
}

/** The value of an operand, which takes type `wanted` if it is an integer without a suffix. */
function typed(
  { scanner }: Parsing,
  value: Expr | Literal,
  wanted: ScalarType | undefined,
): Expr {
  if (value.op !== "literal") return value;
  if (wanted === undefined || wanted === "bool") {
    throw scanner.error(
      value.token,
      `Cannot tell the type of ${value.value}: nothing beside it has one. Write ${value.value}u, ${value.value}i or ${value.value}.0`,
      value.text,
    );
  }
  return constant(scanner, value, wanted);
}

function constant(
  scanner: Scanner,
  { value, token, text }: Omit<Literal, "op">,
  type: "f32" | "i32" | "u32",
): Expr {
  if (fitsType(type, value)) return CONSTANT[type](value);
  throw scanner.error(
    token,
    `Cannot use ${value} as ${type}: ${type} does not have it. Give a value in its range`,
    text,
  );
}

/** Operands and operators of at least a level. */
function operand(p: Parsing, least: number): Operand {
  let left = unary(p);
  for (;;) {
    const token = p.scanner.peek();
    const operator = token.kind === "operator"
      ? OPERATORS.get(token.text)
      : undefined;
    if (!operator || operator.level < least) return left;
    p.scanner.next();
    const right = operand(p, operator.level + 1);
    left = combine(p, { left, operator, right, token });
  }
}

function combine(
  p: Parsing,
  { left, operator, right, token }: {
    readonly left: Operand;
    readonly operator: Operator;
    readonly right: Operand;
    readonly token: Token;
  },
): Operand {
  const { fn, kind, text } = operator;
  for (const { outer } of [left, right]) {
    if (outer && needsParentheses(operator, outer)) {
      throw p.scanner.error(
        token,
        `Cannot mix '${outer.text}' and '${text}': neither comes before the other. Add parentheses`,
      );
    }
  }
  const typeOf = ({ value }: Operand) =>
    value.op === "literal" ? undefined : value.type;
  const shift = kind === "shift";
  const a = typed(p, left.value, shift ? undefined : typeOf(right));
  const b = typed(p, right.value, shift ? "u32" : a.type);
  return { value: checked(p, fn, { a, b, token, text }), outer: operator };
}

/** A binary operation whose operands fit. */
function checked(
  { scanner }: Parsing,
  fn: BinaryOp,
  { a, b, token, text }: {
    readonly a: Expr;
    readonly b: Expr;
    readonly token: Token;
    readonly text: string;
  },
): Expr {
  if (binaryType(fn, a.type, b.type) !== undefined) return binary(fn, a, b);
  throw scanner.error(
    token,
    `Cannot apply '${text}': the operands are ${a.type} and ${b.type}. Convert one of them`,
  );
}

function unary(p: Parsing): Operand {
  const { scanner } = p;
  const token = scanner.peek();
  if (scanner.take("-")) {
    const { value } = unary(p);
    if (value.op === "literal") {
      return { value: { ...value, value: -value.value } };
    }
    if (value.type === "f32" || value.type === "i32") {
      return {
        value: value.op === "const"
          ? CONSTANT[value.type](-Number(value.value))
          : neg(value),
      };
    }
    throw scanner.error(
      token,
      `Cannot negate ${value.type}: it has no negative values. Subtract it, or convert it`,
    );
  }
  if (scanner.take("!")) {
    const value = typed(p, unary(p).value, undefined);
    if (value.type !== "bool") {
      throw scanner.error(
        token,
        `Cannot apply '!': the operand is ${value.type} and not bool. Compare it with a value`,
      );
    }
    return { value: { op: "unary", type: "bool", fn: "not", a: value } };
  }
  if (scanner.take("(")) {
    const { value } = operand(p, 1);
    scanner.skip(")");
    return { value };
  }
  return { value: primary(p, scanner.next()) };
}

function primary(p: Parsing, token: Token): Expr | Literal {
  const { scanner } = p;
  if (token.kind === "number") {
    return numeric(scanner, {
      value: token.value,
      suffix: token.suffix,
      token,
    });
  }
  const number = scanner.suffixed(token);
  if (number) return numeric(scanner, { ...number, token });
  if (token.kind === "hole") {
    const hole = scanner.hole(token.hole);
    if (typeof hole === "number") {
      return numeric(scanner, { value: hole, suffix: "", token });
    }
    if (hole instanceof KernelText) {
      return scanner.inside(hole, () => operand(p, 1).value);
    }
    if (typeof hole === "object" && "type" in hole) return hole;
  }
  const name = scanner.nameOf(token);
  if (name === undefined) throw scanner.expected("an expression", token);
  if (scanner.is("(") || name === "bitcast") return called(p, name, token);
  const register = registerOf(p, name, token);
  if (register) return local(register.as, register.type);
  if (scanner.is("[")) return elementAt(p, name, indexOf(p, name, token));
  return named(p, name, token);
}

function numeric(
  scanner: Scanner,
  { value, suffix, token }: {
    readonly value: number;
    readonly suffix: string;
    readonly token: Token;
  },
): Expr | Literal {
  const { text } = scanner;
  if (suffix === "u" || suffix === "i") {
    const type = suffix === "u" ? "u32" : "i32";
    return constant(scanner, { value, token, text }, type);
  }
  return suffix === "" && Number.isInteger(value)
    ? { op: "literal", value, token, text }
    : constant(scanner, { value, token, text }, "f32");
}

/** What a name alone stands for. */
function named({ scanner, scope }: Parsing, name: string, token: Token): Expr {
  const variable = scope.variable(name);
  if (variable?.kind === "turn") return turnVariable(name);
  if (variable) return local(variable.as ?? name, variable.type);
  if (name === "lane") return id("local");
  if (name === "true" || name === "false") return bool(name === "true");
  if (name === "group") {
    scanner.skip(".");
    const axis = scanner.peek();
    const of = scanner.name("x, y or z");
    if (of === "x" || of === "y" || of === "z") return id(`group.${of}`);
    throw scanner.error(
      axis,
      `Cannot read 'group.${of}': workgroups are numbered in x, y and z. Name one of them`,
    );
  }
  throw scanner.error(
    token,
    scope.has(name)
      ? `Cannot use '${name}' as a value: it is an array. Add an index`
      : `Cannot read '${name}': nothing of that name is declared here. Declare it before, or add it to the bindings`,
  );
}

/** The name and indices of a register that stands next, from behind `name`, in which indices may be already. */
export function registerAt(
  p: Parsing,
  name: string,
  token: Token,
): { readonly base: string; readonly as: string } {
  const { scanner, scope, registers } = p;
  if (!name.endsWith("]") && !scanner.is("[")) return { base: name, as: name };
  const { base, indices: known } = partsOfName(name);
  const indices = known.map((text) => {
    if (/^\d+$/.test(text)) return u32(Number(text));
    if (scope.variable(text)?.kind === "turn") return turnVariable(text);
    throw scanner.error(
      token,
      `Cannot index '${base}' with '${text}': that is no variable of an unrolled loop. Write the loop around it`,
    );
  });
  while (scanner.take("[")) {
    const at = scanner.peek();
    const index = expressionOf(p, "u32", "an index");
    if (!isKnown(index)) {
      throw scanner.error(
        at,
        `Cannot index '${base}' with this: which register it is would be known only in a run. Use variables of unrolled loops`,
      );
    }
    indices.push(index);
    scanner.skip("]");
  }
  return { base, as: registers.nameOf(base, indices) };
}

/** A register that stands next, if `name` is one's. */
export function registerOf(
  p: Parsing,
  name: string,
  token: Token,
): (Variable & { readonly as: string }) | undefined {
  const indexed = name.endsWith("]");
  if (!indexed && !p.scanner.is("[")) return undefined;
  const variable = p.scope.variable(`${name.split("[")[0]}[]`);
  if (!indexed && !variable) return undefined;
  const { as } = registerAt(p, name, token);
  if (variable && (as.includes("[") || p.scope.has(as))) {
    return { ...variable, as };
  }
  throw p.scanner.error(
    token,
    `Cannot read '${as}': no register of that name is declared here. Declare it before`,
  );
}

/** An element of a binding or of workgroup memory. */
export function elementAt({ scope }: Parsing, name: string, index: Expr): Expr {
  const array = scope.array(name);
  return array
    ? shared(name, index, array.type)
    : load(name, index, scope.binding(name)!.type);
}

/** The index of an element that stands next. */
export function indexOf(
  p: Parsing,
  name: string,
  token: Token,
): Expr {
  const { scanner, scope } = p;
  const array = scope.array(name);
  if (!array && !scope.binding(name)) {
    const state = scope.variable(name)
      ? "is a variable"
      : "is neither a binding nor a workgroup array";
    throw scanner.error(
      token,
      `Cannot index '${name}': it ${state}. Declare it as one of them`,
    );
  }
  scanner.skip("[");
  const at = scanner.peek();
  const index = expressionOf(p, "u32", "an index");
  scanner.skip("]");
  if (array && index.op === "const" && Number(index.value) >= array.length) {
    throw scanner.error(
      at,
      `Cannot index '${name}' with ${index.value}: it has ${array.length} elements. Stay below that`,
    );
  }
  return index;
}

/** The halves of a word that is two floats of 16 bits. */
const HALVES: { readonly [part: string]: CallName } = {
  x: "unpackF16Lo",
  y: "unpackF16Hi",
};

/** A conversion or a function's value; its arguments stand next. */
function called(p: Parsing, name: string, token: Token): Expr {
  const { scanner } = p;
  if (name === "bitcast") return cast(p, token);
  if (SCALARS.has(name)) {
    const [value] = operands(p, name, { token, count: 1 });
    const type = name as ScalarType;
    return convert(type, typed(p, value!, type));
  }
  if (name === "min" || name === "max") {
    const [left, right] = operands(p, name, { token, count: 2 });
    const type = right!.op === "literal" ? undefined : right!.type;
    const a = typed(p, left!, type);
    const b = typed(p, right!, a.type);
    return checked(p, name, { a, b, token, text: name });
  }
  if (name === "select") return selected(p, token);
  if (name === "unpack2x16float") {
    const [word] = operands(p, name, { token, count: 1 });
    scanner.skip(".");
    const half = scanner.next();
    const fn = HALVES[scanner.nameOf(half) ?? ""];
    if (fn === undefined) throw scanner.expected("x or y", half);
    return function_(p, fn, { name, token, values: [word!] });
  }
  const fn = NAMED[name] ?? name as CallName;
  if (!Object.hasOwn(ARGUMENTS, fn)) {
    throw scanner.error(
      token,
      `Cannot call '${name}': there is no such function. Functions are ${
        Object.keys(ARGUMENTS).filter((f) => !/^unpack|rsqrt/.test(f)).join(
          ", ",
        )
      }, inverseSqrt, unpack2x16float, min, max, select and bitcast`,
    );
  }
  const values = operands(p, name, { token, count: ARGUMENTS[fn].length });
  return function_(p, fn, { name, token, values });
}

function function_(
  p: Parsing,
  fn: CallName,
  { name, token, values }: {
    readonly name: string;
    readonly token: Token;
    readonly values: readonly (Expr | Literal)[];
  },
): Expr {
  const args = values.map((value, i) => typed(p, value, ARGUMENTS[fn][i]));
  const given = args.map(({ type }) => type).join(", ");
  const wanted = ARGUMENTS[fn].join(", ");
  if (given === wanted) return call(fn, ...args);
  throw p.scanner.error(
    token,
    `Cannot call '${name}' with ${given}: it takes ${wanted}. Convert the arguments`,
  );
}

/** `select(ifFalse, ifTrue, condition)` */
function selected(p: Parsing, token: Token): Expr {
  const [no, yes, test] = operands(p, "select", { token, count: 3 }) as [
    Expr | Literal,
    Expr | Literal,
    Expr | Literal,
  ];
  const a = typed(p, yes, no.op === "literal" ? undefined : no.type);
  const b = typed(p, no, a.type);
  const condition = typed(p, test, undefined);
  if (condition.type === "bool" && a.type === b.type) {
    return select(condition, a, b);
  }
  throw p.scanner.error(
    token,
    `Cannot select by ${condition.type} between ${b.type} and ${a.type}: it takes two values of one type, then a bool. Convert one of them`,
  );
}

/** `bitcast<u32>(x)` */
function cast(p: Parsing, token: Token): Expr {
  const { scanner } = p;
  scanner.skip("<");
  const at = scanner.peek();
  const type = scanner.name("a type") as ScalarType;
  scanner.skip(">");
  const [value] = operands(p, "bitcast", { token, count: 1 });
  const from = typed(p, value!, undefined);
  if (SCALARS.has(type) && type !== "bool" && from.type !== "bool") {
    return bitcast(type, from);
  }
  throw scanner.error(
    at,
    `Cannot cast the bits of ${from.type} to '${type}': only f32, i32 and u32 have bits. Name one of them`,
  );
}

/** So many arguments in parentheses. */
function operands(
  p: Parsing,
  name: string,
  { token, count }: { readonly token: Token; readonly count: number },
): (Expr | Literal)[] {
  const { scanner } = p;
  const all: (Expr | Literal)[] = [];
  scanner.skip("(");
  while (!scanner.is(")")) {
    all.push(operand(p, 1).value);
    if (!scanner.take(",")) break;
  }
  scanner.skip(")");
  if (all.length === count) return all;
  throw scanner.error(
    token,
    `Cannot call '${name}' with ${all.length} arguments: it takes ${count}. Give as many`,
  );
}
