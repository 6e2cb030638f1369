/** Every export of the language is documented, and the examples of the documentation run. */
// rotates with: compiler/dsl/, docs/, scripts/reference.mjs, cli/program.ts, cli/flags/

import { readdirSync, readFileSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import type { Command } from "commander";
import t from "tap";
import ts from "typescript";
import { createProgram } from "../cli/program.ts";
import { processIo } from "../cli/io.ts";
import * as dsl from "../compiler/dsl/mod.ts";
import { evaluate } from "../compiler/graph/evaluate/evaluate.ts";
import { trace } from "../compiler/graph/trace.ts";
import { errorsOf, programOf } from "./helpers/type_errors.ts";

const ROOT = resolve(dirname(fileURLToPath(import.meta.url)), "..");

const { referencePages } = await import(
  new URL("../scripts/reference.mjs", import.meta.url).href
) as { referencePages(): ReadonlyMap<string, string> };

const { cliPage } = await import(
  new URL("../scripts/cli_page.mjs", import.meta.url).href
) as { cliPage(program: Command): string };

interface Documented {
  readonly file: string;
  readonly name: string;
  readonly comment: string;
  readonly examples: readonly string[];
}

/** Exported functions of a file with their doc comments. */
function documented(file: string): Documented[] {
  const text = readFileSync(resolve(ROOT, file), "utf8");
  const source = ts.createSourceFile(file, text, ts.ScriptTarget.ES2022, true);
  return source.statements.filter(ts.isFunctionDeclaration).filter((f) =>
    f.modifiers?.some((m) => m.kind === ts.SyntaxKind.ExportKeyword)
  ).map((f) => {
    const comment = (ts.getLeadingCommentRanges(text, f.getFullStart()) ?? [])
      .map(({ pos, end }) => text.slice(pos, end)).join("\n");
    const plain = comment.replace(/^ *\* ?/gm, "");
    const examples = [...plain.matchAll(/```ts\n(.*?)```/gs)]
      .map((match) => match[1]!);
    return { file, name: f.name?.text ?? "", comment, examples };
  });
}

const ops = readdirSync(resolve(ROOT, "compiler/dsl"))
  .flatMap((name) => documented(`compiler/dsl/${name}`))
  .filter(({ name }) => name in dsl && name !== "isModel");

/** Names available to examples. */
const scope: { readonly [name: string]: unknown } = { ...dsl, evaluate, trace };

t.test("docs/cli.md lists the commands of the program: npm run docs", (t) => {
  const nothing = { finish: () => {}, print: () => {} };
  t.equal(
    cliPage(createProgram(processIo(), nothing)),
    readFileSync(resolve(ROOT, "docs/cli.md"), "utf8"),
  );
  t.end();
});

t.test("docs/reference matches the doc comments: npm run docs", (t) => {
  const folder = resolve(ROOT, "docs/reference");
  const pages = referencePages();
  t.strictSame(readdirSync(folder).sort(), [...pages.keys()].sort());
  for (const [name, text] of pages) {
    t.equal(readFileSync(resolve(folder, name), "utf8"), text, name);
  }
  const missing = ops.filter(({ name }) => !pages.has(`${name}.md`));
  t.strictSame(missing.map(({ name }) => name), []);
  t.end();
});

t.test("docs/troubleshooting.md quotes existing messages", (t) => {
  const sources = ["compiler", "engine", "cli", "bin", "test"].flatMap((
    folder,
  ) =>
    readdirSync(resolve(ROOT, folder), { recursive: true })
      .filter((name) => /\.m?[jt]s$/.test(String(name)))
      .map((name) => readFileSync(resolve(ROOT, folder, String(name)), "utf8"))
  ).join("\n");
  const text = readFileSync(resolve(ROOT, "docs/troubleshooting.md"), "utf8");
  const rows = [...text.matchAll(/^\| (Cannot .*?) +\|/gm)];
  t.ok(rows.length >= 12, `${rows.length} messages`);
  for (const [, message] of rows) {
    const parts = message!.split("…")
      .map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    t.ok(new RegExp(parts.join(".*")).test(sources), message!);
  }
  t.end();
});

t.test("every op documents its axes, dtype, errors and sharding, with an example", (t) => {
  t.ok(ops.length >= 35, `${ops.length} ops`);
  for (const { name, comment, examples } of ops) {
    t.match(comment, /[Ee]rrors:\s/, name);
    if (name !== "model" && name !== "upTo") {
      t.match(comment, /[Aa]xes/, name);
      t.match(comment, /[Dd]type/, name);
      t.match(comment, /Sharding:\s/, name);
      t.match(comment, /Gradient:\s/, name);
    }
    t.ok(examples.length > 0, `${name} has an example`);
  }
  t.end();
});

t.test("every example type-checks", (t) => {
  const names = Object.keys(scope).filter((name) => name !== "evaluate")
    .filter((name) => name !== "trace");
  const text = [
    `import { ${names.join(", ")} } from "../compiler/dsl/mod.ts";`,
    `import { evaluate } from "../compiler/graph/evaluate/evaluate.ts";`,
    `import { trace } from "../compiler/graph/trace.ts";`,
    `void [${Object.keys(scope).join(", ")}];`,
    ...ops.flatMap(({ examples }) => examples.map((code) => `{\n${code}\n}`)),
  ].join("\n");
  t.strictSame(errorsOf(programOf("test/examples.ts", () => text)), []);
  t.end();
});

t.test("the model in spec/language.md type-checks", (t) => {
  const text = readFileSync(resolve(ROOT, "spec/language.md"), "utf8");
  const code = /```ts\n(.*?)```/s.exec(text)?.[1] ?? "";
  t.match(code, /export const layer/);
  t.strictSame(errorsOf(programOf("test/examples.ts", () => code)), []);
  t.end();
});

for (const { name, examples } of ops) {
  t.test(`${name}() matches its example`, (t) => {
    for (const code of examples) {
      const failed: unknown[] = [];
      let asserted = 0;
      const watched = {
        assert: (ok: unknown, ...rest: unknown[]) => {
          asserted++;
          if (!ok) failed.push(rest);
        },
      };
      const javascript = ts.transpileModule(code, {
        compilerOptions: { target: ts.ScriptTarget.ES2022 },
      }).outputText;
      const names = [...Object.keys(scope), "console"];
      new Function(...names, javascript)(...Object.values(scope), watched);
      t.strictSame(failed, [], code);
      t.ok(asserted > 0, "the example asserts something");
    }
    t.end();
  });
}

t.test("spec/security.md names existing tests", (t) => {
  const text = readFileSync(resolve(ROOT, "spec/security.md"), "utf8");
  const rows = [...text.matchAll(/\| `([\w/]+)`: (.*?) +\|$/gm)];
  t.ok(rows.length > 20, `${rows.length} rows`);
  for (const [, file, title] of rows) {
    const test = readFileSync(resolve(ROOT, `test/${file}.test.ts`), "utf8");
    t.ok(test.includes(title!), `${file}: ${title}`);
  }
  t.end();
});
