/** Declarations of kernel text: variables and registers. */

import { registerName } from "../register_name.ts";
import { registerAt } from "./resolve_expression.ts";
import { mistake, type Name, nameAt, type Resolving } from "./resolve_name.ts";
import type { TargetSyntax } from "./syntax.ts";
import type { Token } from "./text.ts";
import type { Variable } from "./text_scope.ts";

/** Statements being resolved, and the enclosing blocks. */
export interface Declaring extends Resolving {
  /** Number of enclosing loops and conditions. */
  depth: number;
  /** Enclosing unrolled loops: their depth, and the value of the iteration. */
  readonly iterations: { readonly depth: number; value: number }[];
}

/** Words that cannot name variables, because they have another meaning or start other syntax. */
const RESERVED: ReadonlySet<string> = new Set(
  "bitcast bool else f32 false for group i32 if lane let true u32 var vec2 vec4"
    .split(" "),
);

/** Checks that a name is free for a variable. */
export function freshName(p: Declaring, { at, indices }: TargetSyntax): Name {
  const { scope, iterations, depth } = p;
  const name = nameAt(p, at);
  const found = registerAt(p, { name, at, indices });
  const { base, register } = found;
  if (RESERVED.has(base)) {
    throw mistake(
      p,
      at,
      `Cannot declare '${base}': the word is reserved. Rename it`,
    );
  }
  // Each iteration of an unrolled loop has its own.
  const perIteration = !register && iterations.at(-1)?.depth === depth;
  const as = perIteration
    ? registerName(base, iterations.map((t) => t.value))
    : found.as;
  const known = register ? scope.isArray(base) : scope.has(base);
  const taken = known ? base : scope.has(as) ? as : undefined;
  if (taken === undefined) return { base, as, register };
  throw mistake(
    p,
    at,
    `Cannot declare '${taken}': it is declared already. Rename it, or assign to it`,
  );
}

/** Declares a variable or a register. */
export function declare(
  p: Declaring,
  { base, as, register }: Name,
  { at, ...is }: Variable & { readonly at: Token },
): void {
  const { scope } = p;
  scope.declare(as, register ? { ...is, as } : is);
  if (!register) {
    if (as !== base) scope.declareInIteration(base, { ...is, as });
    return;
  }
  const known = scope.registers(base);
  if (!known) return scope.declareRegisters(base, is);
  if (known.type === is.type && known.kind === is.kind) return;
  throw mistake(
    p,
    at,
    `Cannot declare a register of '${base}' as ${is.kind} ${is.type}: others are ${known.kind} ${known.type}. Rename it`,
  );
}
