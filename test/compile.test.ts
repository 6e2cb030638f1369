// scripts/compile.mjs in a small clone: which sources it compiles, and when.
import {
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  symlinkSync,
  unlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import t, { type Test } from "tap";
import { temporaryFolder } from "./helpers/cli.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));

interface Compile {
  compile(paths: readonly string[]): Promise<Map<string, string>>;
  compiledFile(source: string): string;
  bundle(): Promise<Map<string, string>>;
  bundledFile(source: string): string;
}

const { ENTRIES } = await import(
  new URL("../scripts/bundle.mjs", import.meta.url).href
) as { readonly ENTRIES: readonly string[] };

/** Creates a clone that contains only the compile scripts. */
async function emptyClone(t: Test) {
  const root = temporaryFolder(t);
  const script = join(root, "scripts/compile.mjs");
  mkdirSync(dirname(script));
  for (const name of ["compile.mjs", "bundle.mjs", "validators.mjs"]) {
    cpSync(join(ROOT, "scripts", name), join(root, "scripts", name));
  }
  symlinkSync(join(ROOT, "node_modules"), join(root, "node_modules"));
  writeFileSync(join(root, "package.json"), '{ "type": "module" }');
  const url = pathToFileURL(script).href;
  const clone = await import(url) as Compile;
  const { compiledFile } = clone;
  /** Writes a source with a modification time. */
  const write = (path: string, text: string, second: number): void => {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), text);
    utimesSync(join(root, path), second, second);
  };
  /** Returns the compiled text of a source, or undefined. */
  const compiled = (path: string): string | undefined => {
    const file = compiledFile(path);
    return existsSync(file) ? readFileSync(file, "utf8") : undefined;
  };
  const run = (path: string): Promise<{ value: unknown }> =>
    import(pathToFileURL(compiledFile(path)).href);
  return { ...clone, root, write, compiled, run };
}

t.test("sources run compiled, with their imports", async (t) => {
  const { root, compile, write, run } = await emptyClone(t);
  write("compiler/mod.ts", "export const one: number = 1;", 1);
  write("spec/a.mjs", "export const two = 2;", 1);
  write(
    "test/a.ts",
    `import { one } from "switchyard-moe";
import type { None } from "../spec/types.ts";
import { two } from "../spec/a.mjs";
const { three } = await import("./b.ts");
export const value: (number | string)[] = [one, two, three, import.meta.url];`,
    1,
  );
  write("test/b.ts", "export const three = 3 as number;", 1);
  t.equal((await compile(["compiler", "spec", "test"])).size, 0);
  t.strictSame((await run("test/a.ts")).value, [
    ...[1, 2, 3],
    pathToFileURL(join(root, "test/a.ts")).href,
  ]);
});

t.test("a file is compiled again when its source has changed", async (t) => {
  const { root, compile, compiledFile, write, compiled } = await emptyClone(t);
  write("spec/a.ts", "export const a = 1;", 1.0004);
  write("spec/b.ts", "export const b = 1;", 1);
  await compile(["spec"]);
  // Detects compilation of an unchanged file.
  writeFileSync(compiledFile("spec/a.ts"), "untouched");
  utimesSync(compiledFile("spec/a.ts"), 1.0004, 1.0004);
  write("spec/b.ts", "export const b = 2;", 0.5);
  await compile(["spec"]);
  t.equal(compiled("spec/a.ts"), "untouched");
  t.match(compiled("spec/b.ts"), "2");
  unlinkSync(join(root, "spec/b.ts"));
  await compile(["spec"]);
  t.equal(compiled("spec/b.ts"), undefined, "its source is deleted");
});

t.test("output of another compiler version is not used", async (t) => {
  const { root, compile, write, compiled } = await emptyClone(t);
  write("spec/a.ts", "export const a = 1;", 1);
  await compile(["spec"]);
  writeFileSync(join(root, ".compiled/spec/b.js"), "old");
  writeFileSync(join(root, ".compiled/compile.mjs"), "another");
  await compile([]);
  t.equal(compiled("spec/a.ts"), undefined);
});

t.test("a mistake is reported with its position; other files compile", async (t) => {
  const { compile, write, compiled } = await emptyClone(t);
  write("spec/a.ts", "export const a = 1;", 1);
  write("spec/b.ts", "export const b = 1;", 1);
  write("spec/c.ts", "export const c = 1;", 1);
  await compile(["spec"]);
  write("spec/a.ts", "export const a = 2;", 2);
  write("spec/b.ts", "\nexport const = 1;", 2);
  write("spec/c.ts", 'import "./none.ts";', 2);
  t.strictSame([...await compile(["spec"])].toSorted(), [
    [
      "spec/b.ts",
      `Cannot compile 'spec/b.ts:2:14': Expected identifier but found "="`,
    ],
    [
      "spec/c.ts",
      "Cannot compile 'spec/c.ts:1:8': there is no file './none.ts'",
    ],
  ]);
  t.match(compiled("spec/a.ts"), "2");
  t.equal(compiled("spec/b.ts"), undefined);
  t.equal(compiled("spec/c.ts"), undefined);
});

t.test("the program and its page are bundled again when a source has changed", async (t) => {
  const { root, bundle, bundledFile, write } = await emptyClone(t);
  const main = bundledFile("cli/main.ts");
  const page = join(root, ".compiled/dist/page/main.js");
  for (const entry of ENTRIES) {
    const up = "../".repeat(entry.split("/").length - 1);
    write(entry, `export { a } from "${up}spec/a.ts";`, 1);
  }
  write("spec/a.ts", "export const a = new URL('../', import.meta.url);", 1);
  write("view/page/style.css", "body { margin: 0 }", 1);
  write(
    "view/page/main.tsx",
    'import { b } from "../../spec/b.ts"; import "./style.css"; alert(b);',
    1,
  );
  write("spec/b.ts", "export const b = 1;", 1);
  write("browser/mod.ts", 'export { b } from "../spec/b.ts";', 1);
  t.equal((await bundle()).size, 0);
  const { a } = await import(pathToFileURL(main).href) as { a: URL };
  t.equal(a.href, pathToFileURL(join(root, ".compiled/dist/")).href);
  t.match(readFileSync(page, "utf8"), "alert(1)");
  t.match(
    readFileSync(join(root, ".compiled/dist/page/main.css"), "utf8"),
    "body",
  );
  // Detects bundling of unchanged files.
  writeFileSync(page, "untouched");
  await bundle();
  t.equal(readFileSync(page, "utf8"), "untouched");
  write("spec/b.ts", "export const b = 2;", 0.5);
  await bundle();
  t.match(readFileSync(page, "utf8"), "alert(2)");
  write("spec/a.ts", "\nexport const = 1;", 2);
  t.strictSame([...await bundle()], [[
    "spec/a.ts",
    `Cannot compile 'spec/a.ts:2:14': Expected identifier but found "="`,
  ]]);
});
