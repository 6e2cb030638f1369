/** Reads calls in the syntax of Python, with literals as arguments: `[f(city="Rome", days=2)]`. */

import type { CallText } from "./formats.ts";

/** Maximum depth of lists and dictionaries. */
const DEPTH = 64;

/** Names of constants, and their JSON. */
const CONSTANTS: { readonly [name: string]: string } = {
  True: "true",
  False: "false",
  None: "null",
  true: "true",
  false: "false",
  null: "null",
};

/** Characters after a backslash. */
const ESCAPES: { readonly [character: string]: string } = {
  n: "\n",
  t: "\t",
  r: "\r",
};

/** The complete calls at the start of a text. */
export function pythonCalls(text: string): CallText[] {
  const calls: CallText[] = [];
  const reader = new Reader(text);
  reader.take(/\[/y);
  for (;;) {
    const name = reader.take(/([\w.-]+)\s*\(/y);
    const values = name === undefined
      ? undefined
      : reader.fields(/([\w-]+)\s*=/y, ")");
    if (name === undefined || values === undefined) return calls;
    calls.push({ name, arguments: values });
    reader.take(/,/y);
  }
}

/** Reads literals. Each method returns undefined if the text is incomplete or another one. */
class Reader {
  readonly #text: string;
  #at = 0;

  constructor(text: string) {
    this.#text = text;
  }

  /** The first group, or the text, of a sticky pattern after spaces. */
  take(pattern: RegExp): string | undefined {
    const spaces = /\s*/y;
    spaces.lastIndex = this.#at;
    spaces.exec(this.#text);
    pattern.lastIndex = spaces.lastIndex;
    const found = pattern.exec(this.#text);
    if (!found) return undefined;
    this.#at = pattern.lastIndex;
    return found[1] ?? found[0];
  }

  /** JSON of an object whose fields begin with `key`, up to a closing character. */
  fields(key: RegExp, close: string, depth = 0): string | undefined {
    const fields: string[] = [];
    for (;;) {
      if (this.#closes(close)) return `{${fields.join(", ")}}`;
      const name = this.take(key) ?? this.#string();
      if (name === undefined) return undefined;
      this.take(/:/y);
      const value = this.#value(depth);
      if (value === undefined) return undefined;
      fields.push(`${JSON.stringify(name)}: ${value}`);
      this.take(/,/y);
    }
  }

  #closes(close: string): boolean {
    return this.take(/[)\]}]/y) === close;
  }

  #value(depth: number): string | undefined {
    if (depth > DEPTH) return undefined;
    if (this.take(/\[/y)) return this.#list(depth + 1);
    if (this.take(/\{/y)) return this.fields(NO_KEY, "}", depth + 1);
    const text = this.#string();
    if (text !== undefined) return JSON.stringify(text);
    const number = this.take(/-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?=[\s,)\]}])/y);
    return number ?? CONSTANTS[this.take(/\w+(?=[\s,)\]}])/y) ?? ""];
  }

  #list(depth: number): string | undefined {
    const items: string[] = [];
    for (;;) {
      if (this.#closes("]")) return `[${items.join(", ")}]`;
      const item = this.#value(depth);
      if (item === undefined) return undefined;
      items.push(item);
      this.take(/,/y);
    }
  }

  #string(): string | undefined {
    const text = this.take(/"(?:[^"\\]|\\[^])*"|'(?:[^'\\]|\\[^])*'/y);
    return text?.slice(1, -1).replace(
      /\\([^])/g,
      (_, character: string) => ESCAPES[character] ?? character,
    );
  }
}

/** Keys of dictionaries are strings. */
const NO_KEY = /(?!)/y;
