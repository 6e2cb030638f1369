/** Walks over the tokens of kernel text: what stands next, names with holes put together, and what was expected instead. */

import {
  type Hole,
  KernelText,
  KernelTextError,
  type Template,
  type Token,
} from "./text.ts";

/** A name, or that of a register with its indices. */
const NAME = /^[A-Za-z_]\w*(\[\w+\])*$/;

const INDEX = /\[\w+\]/g;

/** Words of WGSL that begin what the subset does not have. */
export const OUTSIDE: ReadonlySet<string> = new Set(
  "alias break const const_assert continue fn loop override return struct switch while"
    .split(" "),
);

/** The tokens of one text, and of texts in its holes while they are read. */
export class Scanner {
  #text: KernelText = new KernelText(NOTHING, []);
  #tokens: readonly Token[] = NOTHING.tokens;
  #at = 0;

  /** Read another text from its first token to its last. */
  inside<T>(text: KernelText, read: () => T): T {
    const [outer, at] = [this.#text, this.#at];
    this.#text = text;
    this.#tokens = text.template.tokens;
    this.#at = 0;
    const result = read();
    if (this.peek().kind !== "end") {
      throw this.expected("the end of the text", this.peek());
    }
    this.#text = outer;
    this.#tokens = outer.template.tokens;
    this.#at = at;
    return result;
  }

  /** The next token. */
  peek(): Token {
    return this.#tokens[this.#at]!;
  }

  /** The next token, which is then behind. */
  next(): Token {
    const token = this.peek();
    if (token.kind !== "end") this.#at++;
    return token;
  }

  /** Whether an operator stands next. */
  is(text: string): boolean {
    const token = this.peek();
    return token.kind === "operator" && token.text === text;
  }

  /** Read an operator if it stands next. */
  take(text: string): boolean {
    if (!this.is(text)) return false;
    this.#at++;
    return true;
  }

  /** Read operators and words that must stand next. */
  skip(...texts: string[]): void {
    for (const text of texts) {
      const token = this.next();
      const found = "text" in token ? token.text : this.nameOf(token);
      if (found !== text) throw this.expected(`'${text}'`, token);
    }
  }

  /** What a hole takes. */
  hole(index: number): Hole {
    return this.#text.holes[index];
  }

  /** The name that a token is, with its holes filled; undefined: it is none. */
  nameOf(token: Token): string | undefined {
    if (token.kind === "name") return token.text;
    if (token.kind === "hole") {
      const hole = this.hole(token.hole);
      if (typeof hole !== "string") return undefined;
      if (!NAME.test(hole)) {
        throw this.error(
          token,
          `Cannot use '${hole}' as a name: names are letters, digits and '_'. Rename it`,
        );
      }
      return hole;
    }
    if (token.kind !== "parts" || this.suffixed(token)) return undefined;
    const name = token.parts.map((part) => {
      const piece = typeof part === "string" ? part : this.hole(part);
      if (typeof piece === "string" || typeof piece === "number") return piece;
      throw this.error(
        token,
        "Cannot put a name together: a hole in it holds neither a word nor a number. Give it one, or separate it by a space",
      );
    }).join("");
    // What stands behind the name of a register is part of it: `sum[r]` and `_block` are `sum_block[r]`.
    const whole = name.includes("[")
      ? name.replace(INDEX, "") + name.match(INDEX)?.join("")
      : name;
    if (NAME.test(whole)) return whole;
    throw this.error(
      token,
      `Cannot use '${name}' as a name: names are letters, digits and '_'. Rename it`,
    );
  }

  /** A number in a hole with the suffix behind it. */
  suffixed(
    token: Token,
  ): { readonly value: number; readonly suffix: string } | undefined {
    if (token.kind !== "parts" || token.parts.length !== 2) return undefined;
    const [hole, suffix] = token.parts;
    if (typeof hole !== "number" || typeof suffix !== "string") {
      return undefined;
    }
    const value = this.hole(hole);
    return typeof value === "number" && /^[uif]$/.test(suffix)
      ? { value, suffix }
      : undefined;
  }

  /** A name that must stand next. */
  name(what: string): string {
    const token = this.next();
    const name = this.nameOf(token);
    if (name === undefined) throw this.expected(what, token);
    return name;
  }

  /** The text at hand. */
  get text(): KernelText {
    return this.#text;
  }

  /** A mistake at a token of a text; by default of the one at hand. */
  error(
    token: Token,
    sentence: string,
    text: KernelText = this.#text,
  ): KernelTextError {
    return new KernelTextError(sentence, text.template, token);
  }

  /** Something else stands where `what` should. */
  expected(what: string, token: Token): KernelTextError {
    const found = token.kind === "end"
      ? "the text ends"
      : token.kind === "hole"
      ? `a hole with ${kindOf(this.hole(token.hole))} is there`
      : `'${"text" in token ? token.text : "${…}"}' is there`;
    const outside = token.kind === "name" && OUTSIDE.has(token.text)
      ? `. Kernel text has no '${token.text}'; see spec/kernels.md`
      : "";
    return this.error(token, `Cannot read ${what}: ${found}${outside}`);
  }
}

const NOTHING: Template = {
  tokens: [{ kind: "end", line: 1, column: 1 }],
  source: "",
  site: () => undefined,
};

function kindOf(hole: Hole): string {
  if (typeof hole === "number") return "a number";
  if (typeof hole === "string") return "a name";
  if (hole instanceof KernelText) return "text";
  if (hole === false || hole === undefined) return "nothing";
  return Array.isArray(hole) ? "statements" : "an expression";
}
