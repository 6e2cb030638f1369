/** Names that kernel text declares: variables, and registers with their indices. */

import { type Parsing, registerAt } from "./parse_expression.ts";
import type { Token } from "./text.ts";
import type { Variable } from "./text_scope.ts";

/** Text that is being read, and the blocks around it. */
export interface Declaring extends Parsing {
  /** Loops and conditions around what is read. */
  depth: number;
  /** Loops around it that are written out, and the depth at which they stand. */
  readonly turns: { readonly name: string; readonly depth: number }[];
}

/** Words that no variable may be called: they mean something else, or other syntax begins with them. */
const RESERVED: ReadonlySet<string> = new Set(
  "bitcast bool else f32 false for group i32 if lane let true u32 var vec2 vec4"
    .split(" "),
);

/** A name in the text, and in the tree. A register's ends in `[]` in the text. */
export interface Name {
  readonly name: string;
  readonly as: string;
  readonly token: Token;
}

/** A name that is free for a variable. */
export function freshName(p: Declaring): Name {
  const { scanner, scope, turns, depth } = p;
  const token = scanner.peek();
  const { base, as } = registerAt(p, scanner.name("a name"), token);
  if (RESERVED.has(base)) {
    throw scanner.error(
      token,
      `Cannot declare '${base}': the word has a meaning of its own. Rename it`,
    );
  }
  if (scope.has(base) || as !== base && scope.has(as)) {
    throw scanner.error(
      token,
      `Cannot declare '${base}': it is declared already. Rename it, or assign to it`,
    );
  }
  if (as !== base) return { name: `${base}[]`, as, token };
  // Each turn of a loop that is written out has its own.
  return turns.at(-1)?.depth === depth
    ? { name: base, as: base + turns.map((t) => `[${t.name}]`).join(""), token }
    : { name: base, as, token };
}

/** Declare a variable, or a register. */
export function declare(
  p: Declaring,
  { name, as, token }: Name,
  is: Variable,
): void {
  const { scope, scanner, turns } = p;
  if (!name.endsWith("[]")) return scope.declare(name, { ...is, as });
  if (turns.length === 0) scope.declare(as, is);
  const known = scope.variable(name);
  if (!known) return scope.declare(name, is);
  if (known.type === is.type && known.kind === is.kind) return;
  throw scanner.error(
    token,
    `Cannot declare a register of '${
      name.slice(0, -2)
    }' as ${is.kind} ${is.type}: others are ${known.kind} ${known.type}. Rename it`,
  );
}
