/**
 * Kernel text: WGSL statements and expressions in a tagged template. Here it is cut into tokens; `parse.ts` reads their
 * syntax, once for each template, and `resolve.ts` makes a kernel tree of it where it is used, because only there the names
 * that it mentions have types. See spec/kernels.md.
 */

import { laterCallSite } from "../call_site.ts";
import type { Span } from "../errors.ts";
import type { Expr, Stmt } from "./tree.ts";

/** A piece of text: an expression, or statements. It means what it says in the scope where it stands. */
export class KernelText {
  constructor(
    readonly template: Template,
    readonly holes: readonly Hole[],
  ) {}
}

/** Statements, as text or as a tree. */
export type Statements = KernelText | readonly (Stmt | KernelText)[];

/**
 * What a hole takes. A number is a literal, with the suffix that follows it (`${n}u`); a string is a name, or a part of one
 * (`sum${i}_${j}`); `false` and `undefined` stand for no statements.
 */
export type Hole = number | string | Expr | Statements | false | undefined;

/**
 * A token, and where it begins in the text with holes as `HOLE`. `parts` of a name with holes are pieces of it and numbers of
 * holes; `hole` is the number of a hole.
 */
export type Token =
  & { readonly offset: number }
  & (
    | { readonly kind: "name" | "operator"; readonly text: string }
    | {
      readonly kind: "number";
      readonly text: string;
      readonly value: number;
      /** `u`, `i`, `f` (also of decimals without one), or nothing. */
      readonly suffix: string;
    }
    | { readonly kind: "parts"; readonly parts: readonly (string | number)[] }
    | { readonly kind: "hole"; readonly hole: number }
    | { readonly kind: "end" }
  );

/** What does not change between uses of one template: there is one for each place in the source. */
export interface Template {
  /** The text between the holes. */
  readonly strings: readonly string[];
  /** Which template it is: the key of what it says. */
  readonly number: number;
  /** The template's place in its file, where the engine tells it. */
  readonly site: () => Span | undefined;
}

const templates = new WeakMap<TemplateStringsArray, Template>();
let count = 0;

/** Kernel text: WGSL statements or an expression, with holes. */
export function wgsl(
  strings: TemplateStringsArray,
  ...holes: readonly Hole[]
): KernelText {
  let template = templates.get(strings);
  if (!template) {
    template = { strings, number: count++, site: laterCallSite(wgsl) };
    templates.set(strings, template);
  }
  return new KernelText(template, holes);
}

const HOLE = "${…}";

/** Behind space and comments: a name, a number and its suffix, or an operator. Groups have no names: those are slow. */
const TOKEN = new RegExp(
  [
    String.raw`\s*(?:\/\/[^\n]*\s*)*(?:([A-Za-z_]\w*)`,
    String.raw`(0x[0-9a-fA-F]+|\d+(?:\.\d*)?(?:e[-+]?\d+)?)([uif]?)`,
    String.raw`(\|\||&&|[=!<>+*/%&|^-]=|\+\+|<<|>>|[^]))?`,
  ].join("|"),
  "gy",
);

const WORD = /^\w+/;

/** A number as it is written. */
function numberOf(digits: string, suffix: string, offset: number): Token {
  const real = suffix === "" && /^\d+[.e]/.test(digits);
  return {
    kind: "number",
    text: digits + suffix,
    value: Number(digits),
    suffix: real ? "f" : suffix,
    offset,
  };
}

/** The tokens of a template. */
export function tokensOf({ strings }: Template): readonly Token[] {
  const tokens: Token[] = [];
  let offset = 0;
  /** The pieces of a name that goes on behind a hole. */
  let open: (string | number)[] | undefined;
  /** A comment goes on behind a hole. */
  let comment = false;
  strings.forEach((text, hole) => {
    TOKEN.lastIndex = comment ? /^[^\n]*/.exec(text)![0].length : 0;
    const glued = open ? WORD.exec(text)?.[0] : undefined;
    if (glued) {
      open!.push(glued);
      TOKEN.lastIndex = glued.length;
    }
    const continues = TOKEN.lastIndex === text.length;
    if (!continues) open = undefined;
    while (TOKEN.lastIndex < text.length) {
      // A pattern of its own would take apart what is found by an iterator, for each token.
      const found = TOKEN.exec(text)!;
      const word = found[1] ?? found[4];
      const digits = found[2];
      if (word !== undefined) {
        const at = offset + TOKEN.lastIndex - word.length;
        const kind = found[1] === undefined ? "operator" : "name";
        tokens.push({ kind, text: word, offset: at });
      } else if (digits !== undefined) {
        const suffix = found[3]!;
        const at = offset + TOKEN.lastIndex - digits.length - suffix.length;
        tokens.push(numberOf(digits, suffix, at));
      }
    }
    offset += text.length;
    if (hole === strings.length - 1) return;
    const last = tokens.at(-1);
    comment = comment && continues ||
      text.lastIndexOf("//") > text.lastIndexOf("\n");
    if (comment) open = undefined;
    else if (open) open.push(hole);
    else if (
      last?.kind === "name" && last.offset + last.text.length === offset
    ) {
      tokens.pop();
      open = [last.text, hole];
      tokens.push({ kind: "parts", parts: open, offset: last.offset });
    } else if (WORD.test(strings[hole + 1]!)) {
      open = [hole];
      tokens.push({ kind: "parts", parts: open, offset });
    } else tokens.push({ kind: "hole", hole, offset });
    offset += HOLE.length;
  });
  tokens.push({ kind: "end", offset });
  return tokens;
}

/** A mistake in kernel text. The message ends with the line that it is about; lines and columns count from 1 in the text. */
export class KernelTextError extends SyntaxError {
  override name = "KernelTextError";
  readonly line: number;
  readonly column: number;
  /** The template's place in its file, where the engine tells it. */
  readonly site: Span | undefined;

  constructor(sentence: string, template: Template, at: Token) {
    const source = template.strings.join(HOLE);
    const site = template.site();
    const before = source.slice(0, at.offset).split("\n");
    const [line, column] = [before.length, before.at(-1)!.length + 1];
    const gutter = " ".repeat(String(line).length);
    const file = site
      ? `${site.file.split(/[/\\]/).at(-1)}:${site.line}, `
      : "";
    super([
      sentence,
      `${gutter} --> ${file}line ${line}, column ${column} of the text`,
      `${gutter} |`,
      `${line} | ${source.split("\n")[line - 1]}`,
      `${gutter} | ${" ".repeat(column - 1)}^`,
    ].join("\n"));
    this.line = line;
    this.column = column;
    this.site = site;
  }
}
