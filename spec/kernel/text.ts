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

/** A token. `parts` of a name with holes are pieces of it and numbers of holes; `hole` is the number of a hole. */
export type Token =
  & { readonly line: number; readonly column: number }
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
  /** The template's place in its file, where the engine tells it. */
  readonly site: () => Span | undefined;
}

const templates = new WeakMap<TemplateStringsArray, Template>();

/** Kernel text: WGSL statements or an expression, with holes. */
export function wgsl(
  strings: TemplateStringsArray,
  ...holes: readonly Hole[]
): KernelText {
  let template = templates.get(strings);
  if (!template) {
    template = { strings, site: laterCallSite(wgsl) };
    templates.set(strings, template);
  }
  return new KernelText(template, holes);
}

const HOLE = "${…}";

/** Space, a name, a number, or an operator. Groups have no names: those are slow. */
const TOKEN = new RegExp(
  [
    String.raw`(\s+|\/\/[^\n]*)`,
    String.raw`([A-Za-z_]\w*)`,
    String.raw`(0x[0-9a-fA-F]+[ui]?|\d+(?:\.\d*)?(?:e[-+]?\d+)?[uif]?)`,
    String.raw`(\|\||&&|[=!<>+*/%&|^-]=|\+\+|<<|>>|[^])`,
  ].join("|"),
  "gy",
);

/** A number as it is written. */
function numberOf(
  text: string,
): {
  readonly kind: "number";
  readonly text: string;
  readonly value: number;
  readonly suffix: string;
} {
  const hex = text.startsWith("0x");
  const suffix = (hex ? /[ui]$/ : /[uif]$/).exec(text)?.[0] ?? "";
  const digits = text.slice(0, text.length - suffix.length);
  const real = !hex && suffix === "" && /[.e]/.test(digits);
  return {
    kind: "number",
    text,
    value: Number(digits),
    suffix: real ? "f" : suffix,
  };
}

/** The tokens of a template. */
export function tokensOf({ strings }: Template): readonly Token[] {
  const tokens: Token[] = [];
  let line = 1, column = 1;
  const advance = (text: string) => {
    let end = text.indexOf("\n");
    if (end < 0) column += text.length;
    for (; end >= 0; end = text.indexOf("\n", end + 1)) {
      line++;
      column = text.length - end;
    }
  };
  /** The pieces of a name that goes on behind a hole. */
  let open: (string | number)[] | undefined;
  /** A comment goes on behind a hole. */
  let comment = false;
  strings.forEach((text, hole) => {
    let rest = text;
    if (comment) {
      const skipped = /^[^\n]*/.exec(text)![0];
      advance(skipped);
      rest = text.slice(skipped.length);
    }
    const glued = hole > 0 ? /^\w+/.exec(rest)?.[0] ?? "" : "";
    if (open && glued) {
      open.push(glued);
      advance(glued);
      rest = text.slice(glued.length);
    }
    const continues = open !== undefined && rest === "";
    if (!continues) open = undefined;
    TOKEN.lastIndex = 0;
    while (TOKEN.lastIndex < rest.length) {
      const [found, , name, number, operator] = TOKEN.exec(rest)!;
      const at = { line, column };
      if (name) tokens.push({ kind: "name", text: name, ...at });
      if (number) tokens.push({ ...numberOf(number), ...at });
      if (operator) tokens.push({ kind: "operator", text: operator, ...at });
      advance(found);
    }
    if (hole === strings.length - 1) return;
    const last = tokens.at(-1);
    comment = comment && rest === "" || /\/\/[^\n]*$/.test(rest);
    if (comment) open = undefined;
    else if (open) open.push(hole);
    else if (last?.kind === "name" && /\w$/.test(rest)) {
      tokens.pop();
      open = [last.text, hole];
      tokens.push({ ...last, kind: "parts", parts: open });
    } else if (/^\w/.test(strings[hole + 1]!)) {
      open = [hole];
      tokens.push({ kind: "parts", parts: open, line, column });
    } else tokens.push({ kind: "hole", hole, line, column });
    advance(HOLE);
  });
  tokens.push({ kind: "end", line, column });
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
    const { line, column } = at;
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
