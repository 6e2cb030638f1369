/** WGSL's operators: precedence, and combinations that are allowed without parentheses. */

import type { BinaryOp } from "./tree.ts";

/** A binary operator. Higher levels bind more tightly. */
export interface Operator {
  readonly fn: BinaryOp;
  readonly text: string;
  readonly level: number;
  readonly kind: "logic" | "bits" | "compare" | "shift" | "arithmetic";
}

type Row = readonly [
  kind: Operator["kind"],
  level: number,
  ...operators: (readonly [text: string, fn: BinaryOp])[],
];

const ROWS: readonly Row[] = [
  ["logic", 1, ["||", "lor"]],
  ["logic", 2, ["&&", "land"]],
  ["bits", 3, ["|", "or"], ["^", "xor"], ["&", "and"]],
  ["compare", 4, ["==", "eq"], ["!=", "ne"], ["<", "lt"], ["<=", "le"]],
  ["compare", 4, [">", "gt"], [">=", "ge"]],
  ["shift", 5, ["<<", "shl"], [">>", "shr"]],
  ["arithmetic", 6, ["+", "add"], ["-", "sub"]],
  ["arithmetic", 7, ["*", "mul"], ["/", "div"], ["%", "rem"]],
];

/** Operators by their text. */
export const OPERATORS: ReadonlyMap<string, Operator> = new Map(
  ROWS.flatMap(([kind, level, ...operators]) =>
    operators.map(([text, fn]) => [text, { fn, text, level, kind }] as const)
  ),
);

/** Operators as text, in WGSL and in C. */
export const OPERATOR_TEXTS: { readonly [fn: string]: string } = Object
  .fromEntries(
    Array.from(OPERATORS.values(), ({ fn, text }) => [fn, text]),
  );

/** Kinds of operators that an operand may have without parentheses. */
const OPERANDS: { readonly [K in Operator["kind"]]: readonly string[] } = {
  logic: ["compare"],
  bits: [],
  compare: ["shift", "arithmetic"],
  shift: [],
  arithmetic: ["arithmetic"],
};

/**
 * Whether an operand whose outermost operator is `inner` needs parentheses. WGSL does not define precedence for these.
 */
export function needsParentheses(outer: Operator, inner: Operator): boolean {
  const chained = outer.fn === inner.fn &&
    (outer.kind === "logic" || outer.kind === "bits");
  return !chained && !OPERANDS[outer.kind].includes(inner.kind);
}
