/** Constructors of kernel trees, with constant folding of index arithmetic. */

import {
  type HalfDType,
  isHalf,
  QUIET_NAN,
  type StoredDType,
} from "../dtype.ts";
import { invariant } from "../errors.ts";
import { BINARY, FUNCTIONS, isPredicate } from "./semantics.ts";
import type {
  BinaryOp,
  CallName,
  Expr,
  IdName,
  LoadsStmt,
  ScalarType,
  Stmt,
} from "./tree.ts";

/** A u32 constant. */
export function u32(value: number): Expr {
  return { op: "const", type: "u32", value };
}
/** An i32 constant. */
export function i32(value: number): Expr {
  return { op: "const", type: "i32", value };
}
/** An f32 constant; may be an infinity. */
export function f32(value: number): Expr {
  return { op: "const", type: "f32", value };
}
/** A bool constant. */
export function bool(value: boolean): Expr {
  return { op: "const", type: "bool", value };
}
/** A variable bound by `let_`, `var_` or a loop. */
export function local(name: string, type: ScalarType): Expr {
  return { op: "local", type, name };
}
/** A built-in number of the invocation. */
export function id(name: IdName): Expr {
  return { op: "id", type: "u32", name };
}
/** An element of a binding. */
export function load(
  binding: string,
  index: Expr,
  type: ScalarType = "f32",
): Expr {
  return { op: "load", type, binding, index };
}
/** Four bytes of a binding of words, the lowest first, from a byte on. */
export function loadBytes(binding: string, index: Expr): Expr {
  return { op: "load", type: "u32", binding, index, bytes: true };
}
/** An element of workgroup memory. */
export function shared(
  array: string,
  index: Expr,
  type: ScalarType = "f32",
): Expr {
  return { op: "shared", type, array, index };
}

/** Operators that are folded; folding does not change other kernels. */
const FOLDED: ReadonlySet<BinaryOp> = new Set(["add", "mul", "div", "rem"]);

/** Folds u32 arithmetic on constants and removes `+ 0`, `* 1`, `* 0`. Floats are not changed, because bits matter. */
function fold(fn: BinaryOp, a: Expr, b: Expr): Expr | undefined {
  if (a.type !== "u32") return undefined;
  const x = a.op === "const" ? a.value as number : undefined;
  const y = b.op === "const" ? b.value as number : undefined;
  if (x !== undefined && y !== undefined && FOLDED.has(fn)) {
    return u32(BINARY.u32[fn]!(x, y));
  }
  if (fn === "add") return x === 0 ? b : y === 0 ? a : undefined;
  if (fn === "mul") {
    if (x === 0 || y === 0) return u32(0);
    return x === 1 ? b : y === 1 ? a : undefined;
  }
  if (fn === "div") return y === 1 ? a : undefined;
  return fn === "rem" && y === 1 ? u32(0) : undefined;
}

/** A binary operation; operands have one type (a shift's right operand is u32). */
export function binary(fn: BinaryOp, a: Expr, b: Expr): Expr {
  if (a.type !== b.type) {
    const shift = fn === "shl" || fn === "shr";
    invariant(shift, `'${fn}' of ${a.type} and ${b.type}`);
  }
  return fold(fn, a, b) ??
    { op: "binary", type: isPredicate(fn) ? "bool" : a.type, fn, a, b };
}
/** a + b + … */
export function add(first: Expr, ...rest: Expr[]): Expr {
  return rest.reduce((a, b) => binary("add", a, b), first);
}
/** a * b * … */
export function mul(first: Expr, ...rest: Expr[]): Expr {
  return rest.reduce((a, b) => binary("mul", a, b), first);
}
/** a - b */
export function sub(a: Expr, b: Expr): Expr {
  return binary("sub", a, b);
}
/** a / b */
export function div(a: Expr, b: Expr): Expr {
  return binary("div", a, b);
}
/** a mod b */
export function rem(a: Expr, b: Expr): Expr {
  return binary("rem", a, b);
}
/** a < b */
export function lt(a: Expr, b: Expr): Expr {
  return binary("lt", a, b);
}
/** a > b */
export function gt(a: Expr, b: Expr): Expr {
  return binary("gt", a, b);
}
/** a == b */
export function eq(a: Expr, b: Expr): Expr {
  return binary("eq", a, b);
}
/** a && b */
export function and(first: Expr, ...rest: Expr[]): Expr {
  return rest.reduce((a, b) => binary("land", a, b), first);
}
/** The minimum of two values. */
export function min(a: Expr, b: Expr): Expr {
  return binary("min", a, b);
}
/** The maximum of two values. */
export function max(a: Expr, b: Expr): Expr {
  return binary("max", a, b);
}
/** -a */
export function neg(a: Expr): Expr {
  return { op: "unary", type: a.type, fn: "neg", a };
}
/** The value of a function. */
export function call(fn: CallName, ...args: Expr[]): Expr {
  return { op: "call", type: FUNCTIONS[fn].type, fn, args };
}
/** a * b + c in one node. */
export function fma(a: Expr, b: Expr, c: Expr): Expr {
  return call("fma", a, b, c);
}
/** `condition ? a : b`; both are evaluated. */
export function select(condition: Expr, a: Expr, b: Expr): Expr {
  return { op: "select", type: a.type, condition, a, b };
}
/** Numeric conversion. */
export function convert(type: ScalarType, a: Expr): Expr {
  return a.type === type ? a : { op: "convert", type, a };
}
/** The same bits as another type. */
export function bitcast(type: ScalarType, a: Expr): Expr {
  return a.type === type ? a : { op: "bitcast", type, a };
}

/** Binds a value once. */
export function let_(name: string, value: Expr): Stmt {
  return { op: "let", name, value };
}
/** Binds names to consecutive elements of a binding, starting at `index` times their number. */
export function loads(
  names: readonly string[],
  from: {
    readonly binding: string;
    readonly index: Expr;
    readonly type?: LoadsStmt["type"];
  },
): Stmt {
  return { op: "loads", names, type: "f32", ...from };
}
/** Declares a variable with its initial value. */
export function var_(name: string, value: Expr): Stmt {
  return { op: "var", name, value };
}
/** Assigns a variable. */
export function set(name: string, value: Expr): Stmt {
  return { op: "set", name, value };
}
/** Stores an element of a binding. */
export function store(binding: string, index: Expr, value: Expr): Stmt {
  return { op: "store", binding, index, value };
}
/** Stores an element of workgroup memory. */
export function sharedStore(array: string, index: Expr, value: Expr): Stmt {
  return { op: "sharedStore", array, index, value };
}
/** Counts `name` from `from` below `to`. */
export function for_(
  name: string,
  from: Expr,
  to: Expr,
  body: readonly Stmt[],
  step: Expr = u32(1),
): Stmt {
  return { op: "for", name, from, to, step, body };
}
/**
 * The bound of a loop's counter: `to`, or if steps greater than 1 could overflow 2^32, the largest multiple of 4 from
 * which they do not. Every loop therefore ends.
 */
export function endOf(
  { to, step }: Pick<Extract<Stmt, { readonly op: "for" }>, "to" | "step">,
): Expr {
  const size = step.op === "const" ? Number(step.value) : 1;
  if (size === 1) return to;
  const last = Math.floor((2 ** 32 - size) / 4) * 4;
  if (to.op !== "const") return min(to, u32(last));
  return Number(to.value) <= last ? to : u32(last);
}
/** Executes `then` if the condition holds. */
export function if_(
  condition: Expr,
  then: readonly Stmt[],
  else_?: readonly Stmt[],
): Stmt {
  return else_
    ? { op: "if", condition, then, else: else_ }
    : { op: "if", condition, then };
}
/** Waits for the workgroup and makes its shared memory visible. */
export function barrier(): Stmt {
  return { op: "barrier" };
}

/**
 * An element of a checkpoint tensor stored as f32, f16 or bf16, as f32; of bytes, as u32. They are stored two or four
 * per u32.
 */
export function loadStored(
  binding: string,
  stored: StoredDType,
  index: Expr,
): Expr {
  if (stored === "u8") {
    const word = load(binding, binary("shr", index, u32(2)), "u32");
    const at = binary("shl", binary("and", index, u32(3)), u32(3));
    return binary("and", binary("shr", word, at), u32(255));
  }
  if (!isHalf(stored)) return load(binding, index, stored);
  const word = load(binding, binary("shr", index, u32(1)), "u32");
  const odd = eq(binary("and", index, u32(1)), u32(1));
  const [low, high] = unpackHalves(stored, word);
  return select(odd, high, low);
}
/** The two 16-bit floats in a u32, in memory order, as f32. A bf16 is the upper half of an f32. */
export function unpackHalves(
  stored: HalfDType,
  word: Expr,
): readonly [low: Expr, high: Expr] {
  return stored === "bf16"
    ? [
      bitcast("f32", binary("shl", word, u32(16))),
      bitcast("f32", binary("and", word, u32(0xffff0000))),
    ]
    : [call("unpackF16Lo", word), call("unpackF16Hi", word)];
}
/**
 * The bits of an f32 value rounded to the nearest 16-bit float (ties to even, subnormals preserved), in the low half of
 * a u32. Overflow becomes an infinity, NaN the positive quiet NaN. `value` is used several times and should be a local.
 */
export function packBits(stored: HalfDType, value: Expr): Expr {
  const bits = bitcast("u32", value);
  const shifted = (a: Expr, by: number) => binary("shr", a, u32(by));
  const sign = binary("and", shifted(bits, 16), u32(0x8000));
  const size = binary("and", bits, u32(0x7fffffff));
  const rounded = (drop: number) => {
    const odd = binary("and", shifted(size, drop), u32(1));
    return shifted(add(size, add(u32(2 ** (drop - 1) - 1), odd)), drop);
  };
  const orNan = (rounded: Expr) =>
    select(
      binary("gt", size, u32(0x7f800000)),
      u32(QUIET_NAN[stored]),
      binary("or", sign, rounded),
    );
  if (stored === "bf16") return orNan(min(rounded(16), u32(0x7f80)));
  // Exponents of f32 have a bias larger by 112. Below 2^-14, f16 has steps of 2^-24.
  const normal = min(sub(rounded(13), u32(112 << 10)), u32(0x7c00));
  const steps = call("round", mul(bitcast("f32", size), f32(2 ** 24)));
  const tiny = lt(size, u32(113 << 23));
  const below = select(tiny, steps, f32(0));
  return orNan(select(tiny, convert("u32", below), normal));
}
