/** Resolves and type-checks expressions of kernel text. */

import {
  binary,
  bitcast,
  bool,
  call,
  convert,
  id,
  load,
  loadBytes,
  local,
  neg,
  select,
  shared,
  u32,
} from "../build.ts";
import { CONSTANT, constant, type Literal, typed, typeOf } from "./literal.ts";
import { expressionOf as syntaxOf } from "./parse.ts";
import { registerName } from "../register_name.ts";
import { replaceInValue, type Replacements } from "../replace.ts";
import {
  type Indexed,
  inside,
  iterationOf,
  mistake,
  type Name,
  nameAt,
  nameOf,
  partsOf,
  type Resolving,
  suffixed,
} from "./resolve_name.ts";
import type { ExprSyntax } from "./syntax.ts";
import { KernelText, type Token } from "./text.ts";
import type { Variable } from "./text_scope.ts";
import type { BinaryOp, CallName, Expr, ScalarType, Stmt } from "../tree.ts";
import { binaryType, FUNCTIONS } from "../semantics.ts";

type Call = Extract<ExprSyntax, { readonly kind: "call" }>;

const SCALARS: ReadonlySet<string> = new Set(["f32", "i32", "u32", "bool"]);
/** Functions whose WGSL name differs from that in the tree. */
const NAMED: { readonly [wgsl: string]: CallName } = {
  inverseSqrt: "rsqrt",
  dot4I8Packed: "dot4I8",
};

/** An expression; an integer without a suffix gets type `wanted`. Like the others, it throws KernelTextError. */
export function expression(
  p: Resolving,
  s: ExprSyntax,
  wanted?: ScalarType,
): Expr {
  return typed(operand(p, s), wanted);
}

/** An expression of a required type. `what`: its name in messages. */
export function expressionOf(
  p: Resolving,
  s: ExprSyntax,
  { type, what }: { readonly type: ScalarType; readonly what: string },
): Expr {
  const value = expression(p, s, type);
  if (value.type === type) return value;
  throw mistake(
    p,
    s.start,
    `Cannot use ${value.type} for ${what}: it must be ${type}. Convert it with ${type}()`,
  );
}

const INDEX = { type: "u32", what: "an index" } as const;

function operand(p: Resolving, s: ExprSyntax): Expr | Literal {
  switch (s.kind) {
    case "number":
      return numeric(p, s);
    case "word":
      return word(p, s.at);
    case "element":
      return element(p, s);
    case "call":
      return called(p, s);
    case "group":
      return group(p, s.axis);
    case "minus":
      return negated(p, s);
    case "not":
      return inverted(p, s);
    case "binary": {
      const { operator: { fn, kind, text }, at } = s;
      const shift = kind === "shift";
      const left = operand(p, s.a);
      const right = operand(p, s.b);
      const a = typed(left, shift ? undefined : typeOf(right));
      const b = typed(right, shift ? "u32" : a.type);
      return checked(p, fn, { a, b, at, text });
    }
  }
}

/** A binary operation with compatible operands. */
function checked(
  p: Resolving,
  fn: BinaryOp,
  { a, b, at, text }: {
    readonly a: Expr;
    readonly b: Expr;
    readonly at: Token;
    readonly text: string;
  },
): Expr {
  if (binaryType(fn, a.type, b.type) !== undefined) return binary(fn, a, b);
  throw mistake(
    p,
    at,
    `Cannot apply '${text}': the operands are ${a.type} and ${b.type}. Convert one of them`,
  );
}

type Prefixed = Extract<ExprSyntax, { readonly kind: "minus" | "not" }>;

function negated(p: Resolving, { a, at }: Prefixed): Expr | Literal {
  const value = operand(p, a);
  if (value.op === "literal") return { ...value, value: -value.value };
  if (value.type === "f32" || value.type === "i32") {
    return value.op === "const"
      ? CONSTANT[value.type](-Number(value.value))
      : neg(value);
  }
  throw mistake(
    p,
    at,
    `Cannot negate ${value.type}: it has no negative values. Subtract it, or convert it`,
  );
}

function inverted(p: Resolving, { a, at }: Prefixed): Expr {
  const value = expression(p, a);
  if (value.type === "bool") {
    return { op: "unary", type: "bool", fn: "not", a: value };
  }
  throw mistake(
    p,
    at,
    `Cannot apply '!': the operand is ${value.type} and not bool. Compare it with a value`,
  );
}

function numeric(
  { text }: Resolving,
  { value, suffix, at }: {
    readonly value: number;
    readonly suffix: string;
    readonly at: Token;
  },
): Expr | Literal {
  const literal = { value, token: at, text };
  if (suffix === "u") return constant(literal, "u32");
  if (suffix === "i") return constant(literal, "i32");
  return suffix === "" && Number.isInteger(value)
    ? { op: "literal", ...literal }
    : constant(literal, "f32");
}

/** A name, or the contents of a hole. */
function word(p: Resolving, at: Token): Expr | Literal {
  if (at.kind === "name") return named(p, at.text, at);
  if (at.kind === "hole") {
    const hole = p.text.holes[at.hole];
    if (typeof hole === "number") {
      return numeric(p, { value: hole, suffix: "", at });
    }
    if (hole instanceof KernelText) {
      return inside(p, hole, () => operand(p, syntaxOf(hole)));
    }
    if (typeof hole === "object" && "type" in hole) {
      return withRegisters(p, hole, { at, replace: replaceInValue });
    }
  }
  const number = suffixed(p, at);
  if (number) return numeric(p, { ...number, at });
  const name = nameAt(p, at, "an expression");
  const register = name.endsWith("]") &&
    registerOf(p, { name, at, indices: [] });
  return register ? valueOf(register, name) : named(p, name, at);
}

/** The value of a variable; that of an unrolled loop is a constant. */
function valueOf({ as, type, value }: Variable, name: string): Expr {
  return value === undefined ? local(as ?? name, type) : u32(value);
}

/** The meaning of a name without indices. */
function named(p: Resolving, name: string, at: Token): Expr {
  const variable = p.scope.variable(name);
  if (variable) return valueOf(variable, name);
  if (name === "lane") return id("local");
  if (name === "true" || name === "false") return bool(name === "true");
  throw mistake(
    p,
    at,
    p.scope.has(name)
      ? `Cannot use '${name}' as a value: it is an array. Add an index`
      : `Cannot read '${name}': nothing of that name is declared here. Declare it before, or add it to the bindings`,
  );
}

function group(p: Resolving, axis: Token): Expr {
  const of = nameAt(p, axis, "x, y or z");
  if (of === "x" || of === "y" || of === "z") return id(`group.${of}`);
  throw mistake(
    p,
    axis,
    `Cannot read 'group.${of}': workgroups are numbered in x, y and z. Name one of them`,
  );
}

/** A register, or an element of a binding or of workgroup memory. */
function element(
  p: Resolving,
  { at, indices }: Extract<ExprSyntax, { readonly kind: "element" }>,
): Expr {
  const name = nameAt(p, at, "an expression");
  const register = registerOf(p, { name, at, indices });
  return register
    ? valueOf(register, name)
    : elementAt(p, name, indexOf(p, { name, at, indices }));
}

/** An element of a binding or of workgroup memory. */
export function elementAt(
  { scope }: Resolving,
  name: string,
  index: Expr,
): Expr {
  const array = scope.array(name);
  return array
    ? shared(name, index, array.type)
    : load(name, index, scope.binding(name)!.type);
}

/** The index of an element. */
export function indexOf(
  p: Resolving,
  { name, at, indices: [first, second] }: Indexed,
): Expr {
  const { scope } = p;
  const array = scope.array(name);
  if (!array && !scope.binding(name)) {
    const state = scope.variable(name)
      ? "is a variable"
      : "is neither a binding nor a workgroup array";
    throw mistake(
      p,
      at,
      `Cannot index '${name}': it ${state}. Declare it as one of them`,
    );
  }
  if (second) {
    throw mistake(
      p,
      second.start,
      `Cannot index '${name}' twice: it has one axis. Compute one index`,
    );
  }
  const index = expressionOf(p, first!, INDEX);
  if (array && index.op === "const" && Number(index.value) >= array.length) {
    throw mistake(
      p,
      first!.start,
      `Cannot index '${name}' with ${index.value}: it has ${array.length} elements. Stay below that`,
    );
  }
  return index;
}

/** A register, if a name has indices. */
export function registerAt(
  p: Resolving,
  { name, at, indices }: Indexed,
): Name {
  if (indices.length === 0 && !name.endsWith("]")) {
    return { base: name, as: name, register: false };
  }
  const { base, indices: known } = partsOf(p, name)!;
  const numbers: number[] = [];
  for (const text of known) {
    const number = p.scope.variable(text)?.value ?? Number(text);
    if (Number.isNaN(number)) {
      throw mistake(
        p,
        at,
        `Cannot index '${base}' with '${text}': that is no variable of an unrolled loop. Write the loop around it`,
      );
    }
    numbers.push(number);
  }
  for (const index of indices) {
    const iteration = iterationOf(p, index);
    if (iteration !== undefined) {
      numbers.push(iteration);
      continue;
    }
    const value = expressionOf(p, index, INDEX);
    if (value.op !== "const") {
      throw mistake(
        p,
        index.start,
        `Cannot index '${base}' with this: the register must be known at compile time. Use variables of unrolled loops`,
      );
    }
    numbers.push(Number(value.value));
  }
  return { base, as: registerName(base, numbers), register: true };
}

/** The register of a name with indices. Undefined: none. */
export function registerOf(p: Resolving, from: Indexed): Variable | undefined {
  const { name, at, indices } = from;
  const named = name.endsWith("]") || p.scope.registers(name) !== undefined;
  // A tree may have declared them.
  const perhaps = named || indices.length > 0 && !p.scope.has(name) &&
      indices.every((index) => expression(p, index, "u32").op === "const");
  if (!perhaps) return undefined;
  const { as } = registerAt(p, from);
  const variable = p.scope.variable(as);
  if (variable) return variable.as ? variable : { ...variable, as };
  if (!named) return undefined;
  throw mistake(
    p,
    at,
    `Cannot read '${as}': no register of that name is declared here. Declare it before`,
  );
}

/** The tree in a hole, with the registers of the current iteration; the tree has them as locals such as `sum[r]`. */
export function withRegisters<T extends Expr | Stmt>(
  p: Resolving,
  tree: T,
  { at, replace }: {
    readonly at: Token;
    replace(tree: T, by: Replacements): T;
  },
): T {
  if (!p.scope.inIteration() || p.plain.has(tree)) return tree;
  let found = false;
  const variable = (name: string) => {
    if (!name.endsWith("]")) return name;
    found = true;
    return registerAt(p, { name, at, indices: [] }).as;
  };
  const replaced = replace(tree, { variable });
  if (found) return replaced;
  p.plain.add(tree);
  return tree;
}

/** Functions for the halves of a word of two 16-bit floats. */
const HALVES: { readonly [part: string]: CallName } = {
  x: "unpackF16Lo",
  y: "unpackF16Hi",
};

/** A conversion or a function call. */
function called(p: Resolving, s: Call): Expr {
  const { at } = s;
  const name = nameAt(p, at, "an expression");
  if (s.type) return cast(p, s, s.type);
  if (SCALARS.has(name)) {
    const [value] = operands(p, s, { name, count: 1 });
    const type = name as ScalarType;
    return convert(type, typed(value!, type));
  }
  if (name === "min" || name === "max") {
    const [left, right] = operands(p, s, { name, count: 2 });
    const a = typed(left!, typeOf(right!));
    const b = typed(right!, a.type);
    return checked(p, name, { a, b, at, text: name });
  }
  if (name === "select") return selected(p, s);
  if (name === "unpack4xI8") return unpackedByte(p, s);
  if (name === "bytesAt") return bytesAt(p, s);
  const half = s.part && HALVES[nameOf(p, s.part)!];
  const fn = half ?? NAMED[name] ?? name as CallName;
  if (!Object.hasOwn(FUNCTIONS, fn)) {
    throw mistake(
      p,
      at,
      `Cannot call '${name}': there is no such function. Functions are ${
        Object.keys(FUNCTIONS).filter((f) => !/^unpack|rsqrt|dot4I8/.test(f))
          .join(
            ", ",
          )
      }, inverseSqrt, dot4I8Packed, unpack2x16float, unpack4xI8, bytesAt, min, max, select and bitcast`,
    );
  }
  const wanted = FUNCTIONS[fn].args;
  const args = operands(p, s, { name, count: wanted.length })
    .map((value, i) => typed(value, wanted[i]));
  const { constantFrom = args.length } = FUNCTIONS[fn];
  if (args.slice(constantFrom).some(({ op }) => op !== "const")) {
    throw mistake(
      p,
      at,
      `Cannot call '${name}' with a table that is not constant: a kernel has it in its instructions. Give numbers`,
    );
  }
  if (args.every(({ type }, i) => type === wanted[i])) return call(fn, ...args);
  const given = args.map(({ type }) => type).join(", ");
  throw mistake(
    p,
    at,
    `Cannot call '${name}' with ${given}: it takes ${
      wanted.join(", ")
    }. Convert the arguments`,
  );
}

/** `bytesAt(words, i)`: four bytes of a binding of u32, from byte i on. */
function bytesAt(p: Resolving, s: Call): Expr {
  const [of, at] = s.args;
  const name = of?.kind === "word" ? nameAt(p, of.at, "a binding") : "";
  const type = p.scope.array(name) ? undefined : p.scope.binding(name)?.type;
  if (type === "u32" && at && s.args.length === 2) {
    return loadBytes(name, expressionOf(p, at, INDEX));
  }
  throw mistake(
    p,
    s.at,
    "Cannot call 'bytesAt' with this: it takes a binding of u32 and the number of a byte. Name such a binding",
  );
}

/** `unpack4xI8(word).x`: a byte of a word as an i32. */
function unpackedByte(p: Resolving, s: Call): Expr {
  const [value] = operands(p, s, { name: "unpack4xI8", count: 1 });
  const word = typed(value!, "u32");
  const left = 24 - 8 * "xyzw".indexOf(nameOf(p, s.part!)!);
  const top = checked(p, "shl", {
    a: word,
    b: u32(left),
    at: s.at,
    text: "<<",
  });
  return binary("shr", bitcast("i32", top), u32(24));
}

/** `select(ifFalse, ifTrue, condition)` */
function selected(p: Resolving, s: Call): Expr {
  const [no, yes, test] = operands(p, s, { name: "select", count: 3 }) as [
    Expr | Literal,
    Expr | Literal,
    Expr | Literal,
  ];
  const a = typed(yes, typeOf(no));
  const b = typed(no, a.type);
  const condition = typed(test, undefined);
  if (condition.type === "bool" && a.type === b.type) {
    return select(condition, a, b);
  }
  throw mistake(
    p,
    s.at,
    `Cannot select by ${condition.type} between ${b.type} and ${a.type}: it takes two values of one type, then a bool. Convert one of them`,
  );
}

/** `bitcast<u32>(x)` */
function cast(p: Resolving, s: Call, to: Token): Expr {
  const type = nameAt(p, to, "a type") as ScalarType;
  const [value] = operands(p, s, { name: "bitcast", count: 1 });
  const from = typed(value!, undefined);
  if (SCALARS.has(type) && type !== "bool" && from.type !== "bool") {
    return bitcast(type, from);
  }
  throw mistake(
    p,
    to,
    `Cannot cast the bits of ${from.type} to '${type}': only f32, i32 and u32 have bits. Name one of them`,
  );
}

/** Resolves a fixed number of arguments. */
function operands(
  p: Resolving,
  { args, at }: Call,
  { name, count }: { readonly name: string; readonly count: number },
): (Expr | Literal)[] {
  const all = args.map((arg) => operand(p, arg));
  if (all.length === count) return all;
  throw mistake(
    p,
    at,
    `Cannot call '${name}' with ${all.length} arguments: it takes ${count}. Give as many`,
  );
}
