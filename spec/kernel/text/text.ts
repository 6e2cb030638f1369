/**
 * Kernel text: WGSL statements and expressions in a tagged template. This file splits it into tokens; `parse.ts` parses
 * them once per template, and `resolve.ts` creates a kernel tree at each use, because names have types only there. See
 * spec/kernels.md.
 */

import { laterCallSite } from "../../call_site.ts";
import type { Span } from "../../errors.ts";
import type { Expr, Stmt } from "../tree.ts";

/** A piece of text: an expression or statements, resolved in the scope of its use. */
export class KernelText {
  constructor(
    readonly template: Template,
    readonly holes: readonly Hole[],
  ) {}
}

/** Statements, as text or as a tree. */
export type Statements = KernelText | readonly (Stmt | KernelText)[];

/**
 * Contents of a hole. A number is a literal, with the suffix after it (`${n}u`); a string is a name, or a part of one
 * (`sum${i}_${j}`); `false` and `undefined` are no statements.
 */
export type Hole = number | string | Expr | Statements | false | undefined;

/**
 * A token, and its start in the text with holes as `HOLE`. `parts` of a name with holes are its pieces and hole
 * numbers; `hole` is the number of a hole.
 */
export type Token =
  & { readonly offset: number }
  & (
    | { readonly kind: "name" | "operator"; readonly text: string }
    | {
      readonly kind: "number";
      readonly text: string;
      readonly value: number;
      /** `u`, `i`, `f` (also for decimals without suffix), or empty. */
      readonly suffix: string;
    }
    | { readonly kind: "parts"; readonly parts: readonly (string | number)[] }
    | { readonly kind: "hole"; readonly hole: number }
    | { readonly kind: "end" }
  );

/** Constant parts of a template, one per source position. */
export interface Template {
  /** The text between the holes. */
  readonly strings: readonly string[];
  /** Number of the template: the key of its syntax tree. */
  readonly number: number;
  /** The template's source position, if the engine reports it. */
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

/** After spaces and comments: a name, a number and its suffix, or an operator. Named groups would be slow. */
const TOKEN = new RegExp(
  [
    String.raw`\s*(?:\/\/[^\n]*\s*)*(?:([A-Za-z_]\w*)`,
    String.raw`(0x[0-9a-fA-F]+|\d+(?:\.\d*)?(?:e[-+]?\d+)?)([uif]?)`,
    String.raw`(\|\||&&|[=!<>+*/%&|^-]=|\+\+|<<|>>|[^]))?`,
  ].join("|"),
  "gy",
);

const WORD = /^\w+/;

/** The value of a number. */
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
  /** The pieces of a name that continues after a hole. */
  let open: (string | number)[] | undefined;
  /** Whether a comment continues after a hole. */
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
      // Destructuring would use an iterator for each token.
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

/** An error in kernel text. The message ends with its line; lines and columns count from 1 in the text. */
export class KernelTextError extends SyntaxError {
  override name = "KernelTextError";
  readonly line: number;
  readonly column: number;
  /** The template's source position, if the engine reports it. */
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
