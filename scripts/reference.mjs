/**
 * Generates the pages of docs/reference, one per op, from doc comments, signatures and options. `npm run docs` writes
 * them; `test/docs.test.ts` compares them.
 */

import { mkdirSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import ts from "typescript";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const FOLDER = join(ROOT, "docs/reference");

/** The parts of a page in order, from the doc comment. "as `add`" refers to the part of another op. */
const PARTS = ["Axes", "Dtype", "Defaults", "Errors", "Gradient", "Sharding"];

const FENCE = "`".repeat(3);

const HEADINGS = {
  model: "The model",
  arithmetic: "Elementwise",
  activations: "Activations",
  choose: "Choices",
  contraction: "Contractions",
  reduce: "Reductions and norms",
  layer_norm: "Reductions and norms",
  shape: "Shapes",
  position: "Positions and sequences",
  attention: "Positions and sequences",
  select_keys: "Positions and sequences",
  sequences: "Positions and sequences",
  route: "Mixture of experts",
  moe: "Mixture of experts",
  losses: "Losses",
  cross_entropy: "Losses",
  recompute: "Training",
};

/** Returns the text of each page by its name: `add.md`. */
export function referencePages() {
  const program = ts.createProgram([join(ROOT, "compiler/dsl/mod.ts")], {
    noLib: true,
    types: [],
    target: ts.ScriptTarget.ES2022,
    module: ts.ModuleKind.ESNext,
    allowImportingTsExtensions: true,
    moduleResolution: ts.ModuleResolutionKind.Bundler,
    noEmit: true,
  });
  const checker = program.getTypeChecker();
  const entry = program.getSourceFile(join(ROOT, "compiler/dsl/mod.ts"));
  const exported = checker.getExportsOfModule(
    checker.getSymbolAtLocation(entry),
  )
    .map((symbol) =>
      symbol.flags & ts.SymbolFlags.Alias
        ? checker.getAliasedSymbol(symbol)
        : symbol
    );
  const declared = exported.map((symbol) => symbol.declarations[0]);
  const known = new Map(
    declared.filter(ts.isInterfaceDeclaration).map((d) => [d.name.text, d]),
  );
  const ops = declared.filter((d) =>
    ts.isFunctionDeclaration(d) && exampleOf(d) !== undefined
  );
  const pages = new Map(
    ops.map((op) => [`${op.name.text}.md`, pageOf(op, known)]),
  );
  pages.set("README.md", indexOf(ops));
  return pages;
}

/** Returns the doc comment of a declaration, up to its first tag. */
function commentOf(node) {
  const [doc] = ts.getJSDocCommentsAndTags(node);
  return ts.getTextOfJSDocComment(doc?.comment) ?? "";
}

function exampleOf(node) {
  const tag = ts.getJSDocTags(node)
    .find(({ tagName }) => tagName.text === "example");
  const text = ts.getTextOfJSDocComment(tag?.comment) ?? "";
  return /```ts\n(.*?)```/s.exec(text)?.[1];
}

/** Splits a comment into its first sentences and its parts. */
function partsOf(comment) {
  const text = comment.replace(/\n\n/g, " ¶ ").replace(/\s+/g, " ").trim();
  const names = new RegExp(
    `(?:^|[ .])((?:${
      PARTS.join("|")
    })(?:(?:,| and) (?:axes|dtype|errors|gradient))*): `,
    "g",
  );
  const found = [...text.matchAll(names)];
  const about = text.slice(0, found[0]?.index ?? text.length);
  const parts = found.map((match, i) => [
    match[1],
    text.slice(match.index + match[0].length, found[i + 1]?.index).replaceAll(
      "¶",
      "",
    ).trim()
      .replace(/\.?$/, "."),
  ]);
  return {
    about: about.replaceAll(" ¶ ", "\n\n").replace(/ ?¶/g, "").trim(),
    parts,
  };
}

/** Returns the declaration without its body and without `NoInfer`, which only affects type inference. */
function signatureOf(node) {
  const text = node.getSourceFile().text;
  return text.slice(node.getStart(), node.body.getStart()).trim()
    .replace(/^export /, "").replace(/NoInfer<([^<>]*)>/g, "$1");
}

function block(code) {
  return `${FENCE}ts\n${code}${FENCE}`;
}

function pageOf(op, known) {
  const name = op.name.text;
  const { about, parts } = partsOf(commentOf(op));
  const options = [...signatureOf(op).matchAll(/\b(\w+Options)\b/g)]
    .map((match) => known.get(match[1])).filter((d) => d);
  return [
    `# ${name}`,
    about,
    block(`${signatureOf(op)};\n`),
    parts.map(([part, text]) => `- **${part}**: ${text}`).join("\n"),
    ...options.flatMap((each) => optionsOf(each, known)),
    "## Example",
    block(exampleOf(op)),
    `[All ops](README.md)`,
    "",
  ].join("\n\n").replace(/\n+$/, "\n");
}

/** Returns the members of an options interface, including inherited ones. */
function optionsOf(declared, known) {
  const bases = (declared.heritageClauses ?? [])
    .flatMap(({ types }) => types)
    .map(({ expression }) => known.get(expression.getText()))
    .filter((base) => base !== undefined);
  const rows = [declared, ...bases].flatMap(({ members }) =>
    [...members].map((member) => {
      const said = commentOf(member).replace(/\s+/g, " ");
      return `- \`${member.name.getText()}${
        member.questionToken ? "?" : ""
      }\`: ${said}`;
    })
  );
  return ["## Options", rows.join("\n")];
}

function indexOf(ops) {
  const groups = new Map();
  for (const op of ops) {
    const file = op.getSourceFile().fileName.split("/").at(-1).replace(
      ".ts",
      "",
    );
    const heading = HEADINGS[file];
    if (heading === undefined) {
      throw new Error(
        `Cannot index '${op.name.text}': '${file}' has no heading. Give it one`,
      );
    }
    groups.set(heading, [...(groups.get(heading) ?? []), op]);
  }
  const lists = [...groups].map(([heading, members]) =>
    `## ${heading}\n\n${
      members.map((op) => {
        const [first] = partsOf(commentOf(op)).about.split(/(?<=[.:]) /);
        return `- [\`${op.name.text}\`](${op.name.text}.md): ${first}`;
      }).join("\n")
    }`
  );
  return [
    "# Reference",
    "One page per op. `npm run docs` generates these pages from doc comments; their examples are tests. [The language](../../spec/language.md) describes common rules, [names](../names.md) the names in other libraries.",
    ...lists,
    "",
  ].join("\n\n").replace(/\n+$/, "\n");
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  rmSync(FOLDER, { recursive: true, force: true });
  mkdirSync(FOLDER, { recursive: true });
  for (const [name, text] of referencePages()) {
    writeFileSync(join(FOLDER, name), text);
  }
  console.log(`${readdirSync(FOLDER).length} pages in docs/reference`);
}
