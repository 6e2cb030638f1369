// House rules, layers, formatting, lint and types of all files.
import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { homedir, tmpdir } from "node:os";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";
import { Project } from "ts-morph";
import {
  fileCycles,
  findings,
  folderCycles,
  type Published,
  publishedNames,
  staleWords,
} from "./helpers/house_rules.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const NONE: Published = new Set();
const PROJECT_OPTIONS = {
  skipLoadingLibFiles: true,
  skipFileDependencyResolution: true,
};

t.test("every file follows the house rules", (t) => {
  const project = new Project(PROJECT_OPTIONS);
  const files = project.addSourceFilesAtPaths(
    [
      ...["spec", "compiler", "runtime", "models", "engine", "view", "cli"],
      ...["browser", "examples", "bench", "test"],
    ].map((folder) => join(ROOT, folder, "**/*.ts")).concat([
      join(ROOT, "view/**/*.tsx"),
      `!${join(ROOT, "test/fixtures")}/**`,
      `!${join(ROOT, "test/references")}/**`,
      `!${join(ROOT, "bench/peers/node_modules")}/**`,
    ]),
  );
  t.ok(files.length > 20, "files are found");
  const placed = files.map((file) => ({
    file,
    path: relative(ROOT, file.getFilePath()),
  }));
  const published = publishedNames(placed);
  const found = placed.flatMap(({ file, path }) =>
    findings(file, path, { published: published.get(path) ?? NONE })
  );
  t.strictSame(found, []);
  t.strictSame(folderCycles(placed), [], "folders have no cycles");
  // Expressions of a lambda contain functions, and functions contain expressions.
  const others = placed.filter(({ path }) =>
    !path.startsWith("compiler/source/")
  );
  t.strictSame(fileCycles(others), [], "files have no cycles of values");
  t.end();
});

t.test("pages use standard terms", (t) => {
  const listed = spawnSync("git", ["ls-files", "*.md"], { cwd: ROOT });
  const pages = listed.stdout.toString().split("\n").filter((name) =>
    /^([A-Z]+\.md|(spec|docs|examples\/[a-z]+)\/.*\.md)$/.test(name) &&
    !name.startsWith("examples/demo-lm/")
  );
  const found = pages.flatMap((name) =>
    staleWords(readFileSync(join(ROOT, name), "utf8"), name)
  );
  t.strictSame(found, []);
  t.end();
});

/** A file that violates a rule, at a path where the rule applies, and the finding. */
const BROKEN: [path: string, text: string, finding: RegExp][] = [
  ["spec/camelCase.ts", "", /not snake_case/],
  ["spec/index.ts", "", /mod\.ts, not index\.ts/],
  ["spec/a.ts", "function f() { return { ...{ a: 1 } }; }", /write its fields/],
  ["spec/a.ts", "\n".repeat(500), /501 lines/],
  ["spec/a.ts", "/** A. */ export default 1;", /default export/],
  ["spec/a.ts", "export default function a(): void {}", /default export/],
  ["spec/a.ts", "const a = () => 1;", /should be a 'function'/],
  ["spec/a.ts", 'import "../compiler/mod.ts";', /'spec' must not import/],
  ["compiler/a.ts", 'import "../runtime/mod.ts";', /must not import 'runtime/],
  [
    "compiler/a/b.ts",
    'await import("../../cli/a.ts");',
    /must not import 'cli/,
  ],
  ["runtime/cpu/a.ts", 'export * from "../../compiler/mod.ts";', /must not/],
  [
    "compiler/kernels/a.ts",
    'import { add, mul, sub, u32 } from "../../spec/kernel/build.ts";',
    /4 constructors of trees/,
  ],
  [
    "compiler/kernels/a.ts",
    'import * as k from "../../spec/kernel/build.ts";',
    /all constructors of trees/,
  ],
  ["models/a.ts", 'import "../compiler/dsl/ops.ts";', /'models' must not/],
  ["cli/a.ts", 'import "../runtime/mod.ts";', /'cli' must not import/],
  ["view/a.ts", 'import "../engine/mod.ts";', /'view' must not import/],
  ["compiler/dsl/a.ts", 'import "../passes/mod.ts";', /'compiler\/dsl' must/],
  ["examples/a.ts", 'import "../compiler/mod.ts";', /'examples' must not/],
  ["spec/a.ts", 'import "./b";', /no extension/],
  [
    "compiler/source/a.ts",
    'import "@ts-morph/common";',
    /'@ts-morph\/common' may not/,
  ],
  ["runtime/a.ts", 'import type { A } from "webgpu";', /'webgpu' may not/],
  ["engine/a.ts", 'import "node:fs";', /below the edge/],
  ["runtime/a.ts", "process.env.X;", /'process.env' below the edge/],
  ["spec/a.ts", "let a: any;", /'any'/],
  ["spec/a.ts", "// Rows are dealt to ranks.", /'dealt': say assign/],
  ["spec/a.ts", "// Where a value lies.", /lies': say is stored/],
  ["cli/a.ts", '"where axes lie"', /lie': say is stored/],
  ["spec/a.ts", "const a = liesAsFiled;", /liesAsFiled': say is stored/],
  ["spec/a.ts", "stepAgain();", /stepAgain': say recompute/],
  ["spec/a.ts", "// A rank's position in its group.", /say group rank/],
  ["bench/a.ts", "takeTurns();", /takeTurns': say interleave/],
  ["spec/a.ts", "// Loops that are written out.", /say iterations, unrolled/],
  ["runtime/a.ts", "to.buffer(step.moved)", /say received counts/],
  ["spec/a.ts", "const meshMend = 1;", /say fix/],
  ["engine/a.ts", "const MOST_TOKENS = 1;", /say max, min/],
  ["runtime/a.ts", "class KeptModules {}", /say cached, saved/],
  ["compiler/a.ts", "placeOf(b);", /say index, slot, location/],
  ["runtime/a.ts", "interface GPUDevice { a: 1 }", /from @webgpu\/types/],
  ["spec/a.ts", "class A { private a = 1; }", /'#private'/],
  ["compiler/a.ts", "f(`@compute ${1}`);", /WGSL outside/],
  ["spec/a.ts", "/** A. */ export function f(a, b, c): void {}", /two arg/],
  ["spec/a.ts", "/** A. */ export function f() {}", /no return type/],
  ["spec/a.ts", "export function f(): void {}", /no doc comment/],
  ["spec/a.ts", "export interface A { a: 1 }", /no doc comment/],
  ["spec/a.ts", "export const A = 1;", /no doc comment/],
  ["spec/a.ts", "const A = 1; export { A };", /'A' has no doc comment/],
  ["spec/a.ts", "function f() {} export { f };", /no return type/],
  ["spec/a.ts", "/** A. */ export class A { f() {} }", /no return type/],
  ["spec/a.ts", 'throw new Error("bad thing")', /begin with 'Cannot'/],
  ["spec/a.ts", "throw new AError(`Cannot a: ${1}.`)", /full stop/],
  ["spec/a.ts", 'f(new AError("Cannot a: b isn\'t c"))', /contraction/],
];

t.test("findings() reports every kind of violation", (t) => {
  const project = new Project({
    ...PROJECT_OPTIONS,
    useInMemoryFileSystem: true,
  });
  for (const [path, text, finding] of BROKEN) {
    const file = project.createSourceFile(path, text, { overwrite: true });
    t.match(
      findings(file, path).join("\n"),
      finding,
      `${path}: ${text.trim()}`,
    );
  }
  const good = project.createSourceFile(
    "spec/good.ts",
    '/** A. */\nexport function f(a: 1, b: 2, options: {}): never {\n  throw new Error("Cannot a: b. Do c");\n}\n',
  );
  t.strictSame(findings(good, "spec/good.ts"), []);

  const inner = project.createSourceFile(
    "spec/inner.ts",
    "/** A. */\nexport function f(a: 1, b: 2, c: 3): void {}\n",
  );
  const entry = project.createSourceFile(
    "spec/mod.ts",
    'export { f } from "./inner.ts";',
  );
  const published = publishedNames([{ path: "spec/mod.ts", file: entry }]);
  const seen = (names: Published) =>
    findings(inner, "spec/inner.ts", { published: names });
  t.match(seen(published.get("spec/inner.ts")!)[0], /two arguments/);
  t.strictSame(seen(NONE), [], "not published");

  const folders = ["a", "b", "c"].map((name, i, all) => ({
    path: `spec/${name}/mod.ts`,
    file: project.createSourceFile(
      `spec/${name}/mod.ts`,
      `export * from "../${all[(i + 1) % 3]}/mod.ts";`,
    ),
  }));
  t.strictSame(folderCycles(folders), ["spec/a -> spec/b -> spec/c -> spec/a"]);
  t.strictSame(folderCycles(folders.slice(1)), []);
  const files = ["import { a }", "import type { b }", "export *"].map((
    text,
    i,
    all,
  ) => ({
    path: `spec/${i}.ts`,
    file: project.createSourceFile(
      `spec/${i}.ts`,
      `${text} from "./${(i + 1) % all.length}.ts";`,
    ),
  }));
  t.strictSame(fileCycles(files), []);
  files[1]!.file.replaceWithText('import { type a, b } from "./2.ts";');
  t.strictSame(fileCycles(files), [
    "spec/0.ts -> spec/1.ts -> spec/2.ts -> spec/0.ts",
  ]);
  t.end();
});

t.test("no file contains a path of this machine", (t) => {
  const listed = spawnSync("git", ["ls-files", "-z"], { cwd: ROOT });
  if (listed.status !== 0) {
    t.pass("a check of the git repository", { skip: "not a git clone" });
    return t.end();
  }
  const prefixes = [dirname(ROOT.replace(/\/$/, "")), homedir()]
    .filter((prefix) => prefix.length > 3 && prefix !== tmpdir())
    .map((prefix) => `${prefix}/`);
  const found = listed.stdout.toString().split("\0").filter((name) => {
    const file = join(ROOT, name);
    if (name === "" || !existsSync(file)) return false;
    const text = readFileSync(file, "latin1");
    return prefixes.some((prefix) => text.includes(prefix));
  });
  t.strictSame(found, []);
  t.end();
});

t.test("the README quotes examples/layer.ts", (t) => {
  const read = (path: string) => readFileSync(join(ROOT, path), "utf8");
  const shown = /```ts\n(.*?)```/s.exec(read("README.md"))?.[1];
  const [, ...code] = read("examples/layer.ts").split("\n");
  t.equal(shown, code.join("\n"));
  t.end();
});

/** Runs a tool of node_modules and reports its output if it fails. */
function tool(name: string, argv: string[]): { ok: boolean; output: string } {
  try {
    execFileSync(
      process.execPath,
      [join(ROOT, "node_modules", name), ...argv],
      { cwd: ROOT, stdio: "pipe", env: { ...process.env, NO_COLOR: "1" } },
    );
    return { ok: true, output: "" };
  } catch (error) {
    const { stdout, stderr } = error as { stdout: Buffer; stderr: Buffer };
    return { ok: false, output: `${stdout}${stderr}` };
  }
}

const CHECKS: [title: string, name: string, argv: string[]][] = [
  ["types are correct", "typescript-7/bin/tsc", ["-p", "."]],
  ["types of the page are correct", "typescript-7/bin/tsc", [
    "-p",
    "view/page",
  ]],
  ["lint", "deno/bin.cjs", ["lint", "--quiet"]],
  ["files are formatted", "deno/bin.cjs", ["fmt", "--check", "--quiet"]],
];
for (const [title, name, argv] of CHECKS) {
  t.test(title, (t) => {
    const { ok, output } = tool(name, argv);
    t.ok(ok, `${name} ${argv.join(" ")}`, { output });
    t.end();
  });
}
