/** Integers of kernel text without a suffix: their type follows from the context. */

import { MAX_ELEMENTS } from "../../limits.ts";
import { f32, i32, u32 } from "../build.ts";
import { elementCount } from "../element_count.ts";
import { fitsType } from "../semantics.ts";
import { type KernelText, KernelTextError, type Token } from "./text.ts";
import type { Expr, ScalarType } from "../tree.ts";

/** An integer without a suffix. Its type follows from the context. */
export interface Literal {
  readonly op: "literal";
  readonly value: number;
  readonly token: Token;
  readonly text: KernelText;
}

/** Constructors of constants. */
export const CONSTANT = { f32, i32, u32 };

/** The value of an operand, with type `wanted` for an integer without a suffix. */
export function typed(
  value: Expr | Literal,
  wanted: ScalarType | undefined,
): Expr {
  if (value.op !== "literal") return value;
  if (wanted !== undefined && wanted !== "bool") return constant(value, wanted);
  throw new KernelTextError(
    `Cannot infer the type of ${value.value}: no other operand has one. Write ${value.value}u, ${value.value}i or ${value.value}.0`,
    value.text.template,
    value.token,
  );
}

/** A constant of a type. */
export function constant(
  { value, token, text }: Omit<Literal, "op">,
  type: "f32" | "i32" | "u32",
): Expr {
  if (fitsType(type, value)) return CONSTANT[type](value);
  if (token.kind === "hole" && value > MAX_ELEMENTS) elementCount(value);
  throw new KernelTextError(
    `Cannot use ${value} as ${type}: ${type} does not have it. Give a value in its range`,
    text.template,
    token,
  );
}

/** The type of a value. Undefined: any integer type. */
export function typeOf(value: Expr | Literal): ScalarType | undefined {
  return value.op === "literal" ? undefined : value.type;
}
