/** Token stream of kernel text with expectations. */

import {
  type Hole,
  KernelText,
  KernelTextError,
  type Token,
  tokensOf,
} from "./text.ts";

/** Words of WGSL that start syntax outside the subset. */
export const OUTSIDE: ReadonlySet<string> = new Set(
  "alias break const const_assert continue fn loop override return struct switch while"
    .split(" "),
);

/** The tokens of one text. The contents of holes are used only for error messages. */
export class Scanner {
  readonly #tokens: readonly Token[];
  #at = 0;

  constructor(readonly text: KernelText) {
    this.#tokens = tokensOf(text.template);
  }

  /** The next token, or a later one. */
  peek(ahead = 0): Token {
    return this.#tokens[this.#at + ahead] ?? this.#tokens.at(-1)!;
  }

  /** Consumes the next token. */
  next(): Token {
    const token = this.peek();
    if (token.kind !== "end") this.#at++;
    return token;
  }

  /** Whether the next token is an operator or a word. */
  is(text: string): boolean {
    return textOf(this.peek()) === text;
  }

  /** Consumes an operator or a word if it is next. */
  take(text: string): boolean {
    if (!this.is(text)) return false;
    this.#at++;
    return true;
  }

  /** Consumes required operators and words. */
  skip(text: string, ...more: readonly string[]): void {
    if (!this.take(text)) throw this.expected(`'${text}'`);
    if (more.length > 0) more.forEach((text) => this.skip(text));
  }

  /** Consumes a required name, or a hole with one. */
  name(what: string): Token {
    const { kind } = this.peek();
    if (kind === "name" || kind === "parts" || kind === "hole") {
      return this.next();
    }
    throw this.expected(what);
  }

  /** The error for another token than `what`. */
  expected(what: string): KernelTextError {
    return expected(this.text, what, this.peek());
  }
}

/** The text of a token, without holes. */
function textOf(token: Token): string | undefined {
  return token.kind === "operator" || token.kind === "name"
    ? token.text
    : undefined;
}

/** The error for another token than `what`. */
export function expected(
  text: KernelText,
  what: string,
  token: Token,
): KernelTextError {
  const found = token.kind === "end"
    ? "the text ends"
    : token.kind === "hole"
    ? `a hole with ${kindOf(text.holes[token.hole])} is there`
    : `'${"text" in token ? token.text : "${…}"}' is there`;
  const outside = token.kind === "name" && OUTSIDE.has(token.text)
    ? `. Kernel text has no '${token.text}'; see spec/kernels.md`
    : "";
  const sentence = `Cannot read ${what}: ${found}${outside}`;
  return new KernelTextError(sentence, text.template, token);
}

function kindOf(hole: Hole): string {
  if (typeof hole === "number") return "a number";
  if (typeof hole === "string") return "a name";
  if (hole instanceof KernelText) return "text";
  if (hole === false || hole === undefined) return "nothing";
  return Array.isArray(hole) ? "statements" : "an expression";
}
