/**
 * Short form of kernel trees in documents: variables and counts, most of a tree, are one string each. `"f32 sum"` is
 * the variable `sum`, `"u32 64"` a constant.
 */

import type { Kernel } from "../kernel/tree.ts";

/** Fields with an expression; `args` has several. */
const EXPRESSIONS: ReadonlySet<string> = new Set([
  "value",
  "index",
  "from",
  "to",
  "step",
  "condition",
  "a",
  "b",
  "args",
]);

/** Schema of the short form of expressions. */
export const SHORT_EXPRESSION =
  "^(u32 (0|[1-9][0-9]{0,8})|(f32|i32|u32|bool) [A-Za-z][A-Za-z0-9_]*)$";

const SHORT = new RegExp(SHORT_EXPRESSION);

/** A tree with `of` applied to its expressions, outer ones first. */
function changed(tree: unknown, of: (expression: unknown) => unknown): unknown {
  const within = (value: unknown): unknown => {
    if (typeof value !== "object" || value === null) return value;
    if (Array.isArray(value)) return value.map(within);
    return Object.fromEntries(
      Object.entries(value).map(([key, item]) => [
        key,
        within(
          !EXPRESSIONS.has(key)
            ? item
            : Array.isArray(item)
            ? item.map(of)
            : of(item),
        ),
      ]),
    );
  };
  return within(tree);
}

function shortOf(expression: unknown): unknown {
  if (typeof expression !== "object" || expression === null) return expression;
  const { op, type, name, value } = expression as {
    readonly [field: string]: unknown;
  };
  const short = op === "local"
    ? `${type} ${name}`
    : op === "const" && type === "u32"
    ? `u32 ${value}`
    : "";
  return SHORT.test(short) && !Object.is(value, -0) ? short : expression;
}

function longOf(short: unknown): unknown {
  if (typeof short !== "string" || !SHORT.test(short)) return short;
  const [type, word] = short.split(" ") as [string, string];
  return /^\d/.test(word)
    ? { op: "const", type, value: Number(word) }
    : { op: "local", type, name: word };
}

/** The short form of a tree. */
export function shortTree(tree: Kernel): unknown {
  return changed(tree, shortOf);
}

/** The tree of a short form, as far as it is valid; the schema rejects the rest. */
export function longTree(written: unknown): unknown {
  return changed(written, longOf);
}
