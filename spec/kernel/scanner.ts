/** Walks over the tokens of kernel text: what stands next, and what was expected instead. */

import {
  type Hole,
  KernelText,
  KernelTextError,
  type Token,
  tokensOf,
} from "./text.ts";

/** Words of WGSL that begin what the subset does not have. */
export const OUTSIDE: ReadonlySet<string> = new Set(
  "alias break const const_assert continue fn loop override return struct switch while"
    .split(" "),
);

/** The tokens of one text. What its holes have is only looked at to say what is wrong. */
export class Scanner {
  readonly #tokens: readonly Token[];
  #at = 0;

  constructor(readonly text: KernelText) {
    this.#tokens = tokensOf(text.template);
  }

  /** The next token, or one after it. */
  peek(ahead = 0): Token {
    return this.#tokens[this.#at + ahead] ?? this.#tokens.at(-1)!;
  }

  /** The next token, which is then behind. */
  next(): Token {
    const token = this.peek();
    if (token.kind !== "end") this.#at++;
    return token;
  }

  /** Whether an operator or a word stands next. */
  is(text: string): boolean {
    return textOf(this.peek()) === text;
  }

  /** Read an operator or a word if it stands next. */
  take(text: string): boolean {
    if (!this.is(text)) return false;
    this.#at++;
    return true;
  }

  /** Read operators and words that must stand next. */
  skip(text: string, ...more: readonly string[]): void {
    if (!this.take(text)) throw this.expected(`'${text}'`);
    if (more.length > 0) more.forEach((text) => this.skip(text));
  }

  /** A name that must stand next, or a hole with one. */
  name(what: string): Token {
    const { kind } = this.peek();
    if (kind === "name" || kind === "parts" || kind === "hole") {
      return this.next();
    }
    throw this.expected(what);
  }

  /** Something else stands next where `what` should. */
  expected(what: string): KernelTextError {
    return expected(this.text, what, this.peek());
  }
}

/** What a token says, without holes. */
function textOf(token: Token): string | undefined {
  return token.kind === "operator" || token.kind === "name"
    ? token.text
    : undefined;
}

/** Something else stands where `what` should. */
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
