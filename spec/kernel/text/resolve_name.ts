/** Names of kernel text with their holes filled, and errors about them. */

import { expected } from "./scanner.ts";
import { type KernelText, KernelTextError, type Token, wgsl } from "./text.ts";
import type { ExprSyntax } from "./syntax.ts";
import { TextScope } from "./text_scope.ts";
import type { Binding } from "../tree.ts";

/** A name, or that of a register with its indices. */
const NAME = /^[A-Za-z_]\w*(\[\w+\])*$/;

const INDEX = /\[\w+\]/g;

/** A name and its indices: `sum[r][2]`. */
export interface NameParts {
  readonly name: string;
  readonly base: string;
  readonly indices: readonly string[];
}

/** Text being resolved, and its visible names. */
export interface Resolving {
  /** The current text, which changes while the text in a hole is resolved. */
  text: KernelText;
  readonly scope: TextScope;
  /** Checked names and their parts. */
  readonly names: Map<string, NameParts>;
  /** Trees without registers. */
  readonly plain: WeakSet<object>;
}

/** A resolver of text with visible bindings. */
export function resolving(bindings: readonly Binding[]): Resolving {
  const scope = new TextScope(bindings);
  return { text: wgsl``, scope, names: new Map(), plain: new WeakSet() };
}

/** Resolves the text in a hole. */
export function inside<T>(p: Resolving, text: KernelText, read: () => T): T {
  const outer = p.text;
  p.text = text;
  const result = read();
  p.text = outer;
  return result;
}

/** An error at a token of the current text. */
export function mistake(
  { text }: Resolving,
  token: Token,
  sentence: string,
): KernelTextError {
  return new KernelTextError(sentence, text.template, token);
}

/** The name of a token with its holes filled. Undefined: not a name. */
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
        "Cannot build a name: an interpolated part is neither a word nor a number. Give it one, or separate it by a space",
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

/** The parts of a name. Undefined: not a name. */
export function partsOf(
  { names }: Resolving,
  text: string,
): NameParts | undefined {
  let parts = names.get(text);
  if (!parts) {
    // Text after the name of a register belongs to it: `sum[r]` and `_block` are `sum_block[r]`.
    const indices = text.includes("[") ? text.match(INDEX) ?? [] : [];
    const base = indices.length > 0 ? text.replace(INDEX, "") : text;
    const name = base + indices.join("");
    if (!NAME.test(name)) return undefined;
    parts = { name, base, indices: indices.map((index) => index.slice(1, -1)) };
    names.set(text, parts);
  }
  return parts;
}

/** A number in a hole with the suffix after it. */
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

/** The name at a token. Throws if there is none. */
export function nameAt(p: Resolving, at: Token, what = "a name"): string {
  const name = nameOf(p, at);
  if (name === undefined) throw expected(p.text, what, at);
  return name;
}

/** A name with the indices after it. */
export interface Indexed {
  readonly name: string;
  readonly at: Token;
  readonly indices: readonly ExprSyntax[];
}

/** A name in the text, and in the tree: they differ for registers, and in iterations of unrolled loops. */
export interface Name {
  readonly base: string;
  readonly as: string;
  readonly register: boolean;
}

/** The value of an index that is the variable of an unrolled loop. */
export function iterationOf(
  p: Resolving,
  { kind, at }: ExprSyntax,
): number | undefined {
  return kind === "word" && at.kind === "name"
    ? p.scope.variable(at.text)?.value
    : undefined;
}
