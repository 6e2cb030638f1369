/** Names of kernel text with their holes filled, and what is said where they are wrong. */

import { expected } from "./scanner.ts";
import { type KernelText, KernelTextError, type Token, wgsl } from "./text.ts";
import type { ExprSyntax } from "./syntax.ts";
import { TextScope } from "./text_scope.ts";
import type { Binding } from "./tree.ts";

/** A name, or that of a register with its indices. */
const NAME = /^[A-Za-z_]\w*(\[\w+\])*$/;

const INDEX = /\[\w+\]/g;

/** A name, and the indices in it: `sum[r][2]`. */
export interface NameParts {
  readonly name: string;
  readonly base: string;
  readonly indices: readonly string[];
}

/** Text that is being resolved, and the names that it sees. */
export interface Resolving {
  /** The text at hand: another one while that in a hole is resolved. */
  text: KernelText;
  readonly scope: TextScope;
  /** Names that were checked, and their parts. */
  readonly names: Map<string, NameParts>;
  /** Trees without registers. */
  readonly plain: WeakSet<object>;
}

/** What resolves text that sees some bindings. */
export function resolving(bindings: readonly Binding[]): Resolving {
  const scope = new TextScope(bindings);
  return { text: wgsl``, scope, names: new Map(), plain: new WeakSet() };
}

/** Resolve the text in a hole. */
export function inside<T>(p: Resolving, text: KernelText, read: () => T): T {
  const outer = p.text;
  p.text = text;
  const result = read();
  p.text = outer;
  return result;
}

/** A mistake at a token of the text at hand. */
export function mistake(
  { text }: Resolving,
  token: Token,
  sentence: string,
): KernelTextError {
  return new KernelTextError(sentence, text.template, token);
}

/** The name that a token is, with its holes filled; undefined: it is none. */
export function nameOf(p: Resolving, token: Token): string | undefined {
  if (token.kind === "name") return token.text;
  if (token.kind === "hole") {
    const hole = p.text.holes[token.hole];
    return typeof hole === "string" ? checked(p, hole, token) : undefined;
  }
  if (token.kind !== "parts" || suffixed(p, token)) return undefined;
  let name = "";
  for (const part of token.parts) {
    const piece = typeof part === "string" ? part : p.text.holes[part];
    if (typeof piece !== "string" && typeof piece !== "number") {
      throw mistake(
        p,
        token,
        "Cannot put a name together: a hole in it holds neither a word nor a number. Give it one, or separate it by a space",
      );
    }
    name += piece;
  }
  return checked(p, name, token);
}

function checked(p: Resolving, text: string, token: Token): string {
  const parts = partsOf(p, text);
  if (parts) return parts.name;
  throw mistake(
    p,
    token,
    `Cannot use '${text}' as a name: names are letters, digits and '_'. Rename it`,
  );
}

/** The parts of a name; undefined: it is none. */
export function partsOf(
  { names }: Resolving,
  text: string,
): NameParts | undefined {
  let parts = names.get(text);
  if (!parts) {
    // What stands behind the name of a register is part of it: `sum[r]` and `_block` are `sum_block[r]`.
    const indices = text.includes("[") ? text.match(INDEX) ?? [] : [];
    const base = indices.length > 0 ? text.replace(INDEX, "") : text;
    const name = base + indices.join("");
    if (!NAME.test(name)) return undefined;
    parts = { name, base, indices: indices.map((index) => index.slice(1, -1)) };
    names.set(text, parts);
  }
  return parts;
}

/** A number in a hole with the suffix behind it. */
export function suffixed(
  { text }: Resolving,
  token: Token,
): { readonly value: number; readonly suffix: string } | undefined {
  if (token.kind !== "parts" || token.parts.length !== 2) return undefined;
  const [hole, suffix] = token.parts;
  if (typeof hole !== "number" || typeof suffix !== "string") return undefined;
  const value = text.holes[hole];
  return typeof value === "number" && /^[uif]$/.test(suffix)
    ? { value, suffix }
    : undefined;
}

/** The name that a token must be. */
export function nameAt(p: Resolving, at: Token, what = "a name"): string {
  const name = nameOf(p, at);
  if (name === undefined) throw expected(p.text, what, at);
  return name;
}

/** A name with the indices that stand behind it. */
export interface Indexed {
  readonly name: string;
  readonly at: Token;
  readonly indices: readonly ExprSyntax[];
}

/** A name in the text, and in the tree: they differ in registers, and in iterations of unrolled loops. */
export interface Name {
  readonly base: string;
  readonly as: string;
  readonly register: boolean;
}

/** The value of an index that is only the variable of an unrolled loop. */
export function iterationOf(
  p: Resolving,
  { kind, at }: ExprSyntax,
): number | undefined {
  return kind === "word" && at.kind === "name"
    ? p.scope.variable(at.text)?.value
    : undefined;
}
