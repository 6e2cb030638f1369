/** Prints expressions of kernel trees as WGSL. */

import { OPERATOR_TEXTS } from "../operators.ts";
import { wordLoads } from "../vectors.ts";
import type { Expr } from "../tree.ts";
import {
  constantRight,
  isConstant,
  printConstant,
  printHidden,
} from "./constants.ts";
import { functionName } from "./functions.ts";
import type { WgslNames } from "./names.ts";

/** How a kernel names its variables, arrays and functions. */
export interface Naming {
  readonly names: WgslNames;
  /** Elements of the arrays in workgroup memory, by name. */
  readonly lengths: ReadonlyMap<string, number>;
  /** Whether the device has the built-in dot product of bytes. */
  readonly packedDot: boolean;
}

type Of<Op extends Expr["op"]> = Extract<Expr, { readonly op: Op }>;

/** The text of an expression. */
export function printExpression(e: Expr, on: Naming): string {
  switch (e.op) {
    case "const":
      return printConstant(e);
    case "local":
      return on.names.local(e.name);
    case "id":
      return e.name === "local" ? "lane" : e.name;
    case "load": {
      const words = wordLoads(e);
      return words
        ? `(${printExpression(words, on)})`
        : `${on.names.global(e.binding)}[${printExpression(e.index, on)}]`;
    }
    case "shared":
      return printElement(e.array, e.index, on);
    case "unary":
      return printUnary(e, on);
    case "binary":
      return printBinary(e, on);
    case "call":
      return printCall(e, on);
    case "select":
      return `select(${early(e.b, on)}, ${early(e.a, on)}, ${
        argument(e.condition, e, on)
      })`;
    case "convert":
      return `${e.type}(${argument(e.a, e, on)})`;
    case "bitcast":
      return `bitcast<${e.type}>(${argument(e.a, e, on)})`;
  }
}

/** An expression as an operand: in parentheses if it is an operator. */
export function printOperand(e: Expr, on: Naming): string {
  const text = printExpression(e, on);
  return e.op === "binary" && OPERATOR_TEXTS[e.fn] ? `(${text})` : text;
}

/** An element of an array of known length, which constant indices must not exceed. */
export function printElement(array: string, index: Expr, on: Naming): string {
  const beyond = index.op === "const" &&
    Number(index.value) >= on.lengths.get(array)!;
  return `${on.names.global(array)}[${
    beyond ? printHidden(index) : printExpression(index, on)
  }]`;
}

/** `--x` would be parsed as a decrement, and a negative constant starts with a minus. */
function printUnary(e: Of<"unary">, on: Naming): string {
  const text = first(e.a, e, on);
  const operand = e.a.op === "unary" || text.startsWith("-")
    ? `(${text})`
    : text;
  return `${e.fn === "neg" ? "-" : "!"}${operand}`;
}

function printBinary(e: Of<"binary">, on: Naming): string {
  const operator = OPERATOR_TEXTS[e.fn];
  return operator
    ? `${first(e.a, e, on)} ${operator} ${
      printOperand(constantRight(e.fn, e.b), on)
    }`
    : `${e.fn}(${argument(e.a, e, on)}, ${printExpression(e.b, on)})`;
}

function printCall(e: Of<"call">, on: Naming): string {
  const [a, ...others] = e.args;
  if (e.fn === "unpackF16Lo" || e.fn === "unpackF16Hi") {
    const half = e.fn === "unpackF16Lo" ? "x" : "y";
    return `unpack2x16float(${argument(a!, e, on)}).${half}`;
  }
  const args = [
    argument(a!, e, on),
    ...others.map((other) => printExpression(other, on)),
  ];
  return `${functionName(e.fn, on)}(${args.join(", ")})`;
}

/** The first operand of `of`; in a constant expression, it is a variable. */
function first(operand: Expr, of: Expr, on: Naming): string {
  return operand.op === "const" && isConstant(of)
    ? printHidden(operand)
    : printOperand(operand, on);
}

/** The first operand of `of` as the argument of a function. */
function argument(operand: Expr, of: Expr, on: Naming): string {
  return operand.op === "const"
    ? first(operand, of, on)
    : printExpression(operand, on);
}

/** An argument followed by others: WGSL parses `a < b, c >` as template parameters. */
function early(e: Expr, on: Naming): string {
  const text = printExpression(e, on);
  return e.op === "binary" && e.fn === "lt" ? `(${text})` : text;
}
