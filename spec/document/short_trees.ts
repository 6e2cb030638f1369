/**
 * Kernel trees as documents have them: variables and counts, which are most of a tree, as one string each. `"f32 sum"` is
 * the variable `sum`, `"u32 64"` a constant.
 */

import type { Kernel } from "../kernel/tree.ts";

/** Fields that hold an expression; `args` holds several. */
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

/** The strings that stand for expressions, as a schema has them. */
export const SHORT_EXPRESSION =
  "^(u32 (0|[1-9][0-9]{0,8})|(f32|i32|u32|bool) [A-Za-z][A-Za-z0-9_]*)$";

const SHORT = new RegExp(SHORT_EXPRESSION);

/** A tree whose expressions `of` changes, each before what is in it. */
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

/** A tree as it is written. */
export function shortTree(tree: Kernel): unknown {
  return changed(tree, shortOf);
}

/** The tree that is written so, as far as it is one; the rest is for the schema to refuse. */
export function longTree(written: unknown): unknown {
  return changed(written, longOf);
}
