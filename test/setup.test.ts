// The setup scripts and the test runner.
import { execFile, spawnSync } from "node:child_process";
import {
  cpSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import t from "tap";
import { range } from "../spec/range.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));

interface Setup {
  packagesAreCurrent(root?: string): boolean;
}

const setupModule = new URL("../scripts/setup.mjs", import.meta.url);
const { packagesAreCurrent } = await import(setupModule.href) as Setup;

interface TestFiles {
  kindsOf(file: string): string[];
  chooseFiles(words: readonly string[]): { files: string[]; kinds: string[] };
  sourcesOf(file: string): string[] | undefined;
  rotateFiles(
    files: readonly string[],
    options: { readonly seed: number; readonly changed: readonly string[] },
  ): string[];
  changedPaths(since: string | undefined, root: string): string[];
}

const filesModule = new URL("../scripts/test_files.mjs", import.meta.url);
const { kindsOf, chooseFiles, sourcesOf, rotateFiles, changedPaths } =
  await import(filesModule.href) as TestFiles;

/** Test counts of a file. */
interface Counts {
  readonly passed: number;
  readonly failed: readonly unknown[];
  readonly skipped: readonly unknown[];
}

interface TestRuns {
  Group: new (kinds: readonly string[]) => {
    readonly isIdle: boolean;
    run(file: string, compiled: string): Promise<Counts>;
    end(): Promise<Counts | undefined>;
  };
}

const runsModule = new URL("../scripts/test_runs.mjs", import.meta.url);

function node(argv: string[], env: { [name: string]: string } = {}) {
  return spawnSync(process.execPath, argv, {
    cwd: ROOT,
    encoding: "utf8",
    env: { ...process.env, ...env },
  });
}

/** Runs `node scripts/test.mjs` on files of test/fixtures/runner. */
function runner(...names: string[]) {
  const files = names.map((name) => `test/fixtures/runner/${name}.ts`);
  const { status, stdout } = node(["scripts/test.mjs", ...files]);
  return { status, last: stdout.split("\n").at(-2), stdout };
}

t.test("packagesAreCurrent() compares node_modules with the lock", (t) => {
  const root = t.testdir({
    "package-lock.json": JSON.stringify({
      packages: {
        "": {},
        "node_modules/a": { version: "1.0.0" },
        "node_modules/b": { version: "2.0.0", optional: true },
      },
    }),
  });
  t.equal(packagesAreCurrent(root), false, "nothing installed");
  mkdirSync(join(root, "node_modules"));
  const installed = (packages: unknown) =>
    writeFileSync(
      join(root, "node_modules/.package-lock.json"),
      JSON.stringify({ packages }),
    );
  installed({});
  t.equal(packagesAreCurrent(root), false, "a package is missing");
  installed({ "node_modules/a": { version: "0.9.0" } });
  t.equal(packagesAreCurrent(root), false, "a package is old");
  installed({ "node_modules/a": { version: "1.0.0" } });
  t.equal(packagesAreCurrent(root), true, "an optional one may be missing");
  t.end();
});

t.test("npm test counts innermost tests and ends with the counts", (t) => {
  t.match(runner("mixed"), {
    status: 1,
    last: "2 passed, 1 failed, 1 skipped",
    stdout: /skipped .*mixed\.ts > skips: no adapter/,
  });
  t.match(runner("passes"), {
    status: 0,
    last: "1 passed, 0 failed, 0 skipped",
  });
  t.end();
});

t.test("npm test counts a file with an error as failed", (t) => {
  t.match(runner("crashes"), {
    status: 1,
    last: "1 passed, 1 failed, 0 skipped",
  });
  t.match(runner("stray"), {
    status: 1,
    last: "2 passed, 1 failed, 0 skipped",
    stdout: /nobody awaits this/,
  });
  t.match(runner("empty", "broken"), {
    status: 1,
    last: "0 passed, 2 failed, 0 skipped",
    stdout: /missing\.ts/,
  });
  t.end();
});

t.test("files of a process are counted separately", async (t) => {
  // Compiles the files.
  runner("passes", "mixed", "stray", "crashes");
  const { Group } = await import(runsModule.href) as TestRuns;
  const start = () => {
    const group = new Group(["pure"]);
    const run = async (name: string) => {
      const file = `test/fixtures/runner/${name}.ts`;
      const compiled = join(ROOT, ".compiled", file.replace(/ts$/, "js"));
      return await group.run(file, compiled);
    };
    return { group, run };
  };
  const one = start();
  t.match(await one.run("passes"), { passed: 1, failed: [], skipped: [] });
  t.ok(one.group.isIdle);
  t.match(await one.run("mixed"), {
    passed: 2,
    failed: [{ name: "test/fixtures/runner/mixed.ts > outer > inner fails" }],
    skipped: [/no adapter/],
  });
  t.notOk(one.group.isIdle, "no file runs after a failed one");
  t.equal(await one.group.end(), undefined, "the failure is counted");

  const stray = start();
  t.match(await stray.run("stray"), {
    passed: 1,
    failed: [{ details: /nobody awaits this/ }],
  });
  t.equal(await stray.group.end(), undefined);

  const killed = start();
  await killed.run("crashes");
  t.match(await killed.group.end(), {
    failed: [{ name: /^a process of .*crashes\.ts$/ }],
  });
});

/** Signs that a test needs something. */
const SIGNS: { readonly [kind: string]: RegExp } = {
  mpi: /helpers\/(mpi|faults|network)\.ts/,
  gpu:
    /helpers\/(run_kernel|references)\.ts|\b(TARGETS|skipWithoutGpu|createGpuDevice)\b/,
  cpu:
    /helpers\/(run_kernel|references)\.ts|\b(TARGETS|createCpuDevice|openCpuPool)\b|\b(runCase|matches)\(|"--adapter", "cpu"/,
};

t.test("concurrent processes replace files compiled by another version", async (t) => {
  const names = Array.from({ length: 200 }, (_, i) => `f${i}`);
  const root = t.testdir({
    spec: Object.fromEntries(
      names.map((
        name,
      ) => [`${name}.ts`, "export const found: string = 'new';"]),
    ),
    ".compiled": {
      "compile.mjs": "another",
      ...Object.fromEntries(["spec", "cli"].map((folder) => [
        folder,
        Object.fromEntries(names.map((name) => [`${name}.js`, ""])),
      ])),
    },
  });
  cpSync(join(ROOT, "scripts"), join(root, "scripts"), { recursive: true });
  symlinkSync(join(ROOT, "node_modules"), join(root, "node_modules"));
  writeFileSync(
    join(root, "start.mjs"),
    `import { compile, compiledFile } from "./scripts/compile.mjs";
await compile(["spec"]);
console.log((await import(compiledFile("spec/f199.ts"))).found);`,
  );
  const start = () =>
    promisify(execFile)(process.execPath, [join(root, "start.mjs")]);
  const ended = await Promise.all([start(), start(), start(), start()]);
  t.strictSame(ended.map(({ stdout }) => stdout), Array(4).fill("new\n"));
});

t.test("every test file states its needs", (t) => {
  const { files } = chooseFiles([]);
  t.ok(files.length > 100);
  for (const file of files.filter((file) => file !== "test/setup.test.ts")) {
    const text = readFileSync(join(ROOT, file), "utf8");
    const needed = Object.keys(SIGNS).filter((kind) => SIGNS[kind]!.test(text));
    const kinds = kindsOf(file);
    t.strictSame(
      needed.filter((kind) => !kinds.includes(kind)),
      [],
      `missing in the line '// needs: ' of ${file}`,
    );
  }
  t.end();
});

t.test("three turns run every file, and a change runs the files of its feature", (t) => {
  const { files } = chooseFiles([]);
  const runOf = (seed: number) => rotateFiles(files, { seed, changed: [] });
  const runsOf = (seeds: readonly number[]) =>
    new Map(seeds.map(runOf).map((some) => [some.join(), some]));
  const turns = [...runsOf(range(20)).values()];
  t.equal(turns.length, 3, "small seeds");
  const large = range(20).map((n) => -n * 2 ** 16);
  t.equal(runsOf(large).size, 3, "multiples of large powers of two");
  const runs = (file: string) =>
    turns.filter((some) => some.includes(file)).length;
  for (const file of files) {
    t.equal(runs(file), sourcesOf(file) === undefined ? 3 : 1, file);
  }
  for (const file of files) {
    for (const source of sourcesOf(file) ?? []) {
      const folder = dirname(`${source}x`);
      const changed = readdirSync(join(ROOT, folder))
        .map((name) => `${folder}/${name}`)
        .filter((path) => path.startsWith(source));
      t.ok(changed.length > 0, `${file}: ${source}`);
      // Each place in the rotation.
      const three = [file, file, file];
      t.strictSame(rotateFiles(three, { seed: 0, changed }), three);
    }
  }
  t.end();
});

t.test("changed files are those of all commits that the remote lacks", (t) => {
  const [there, here] = ["there", "here"].map((name) =>
    join(t.testdir(), name)
  ) as [string, string];
  const git = (root: string, ...argv: string[]) => {
    const user = ["user.name=a", "user.email=a@b.c", "commit.gpgsign=false"];
    const settings = user.flatMap((setting) => ["-c", setting]);
    const { status, stderr } = spawnSync("git", [
      ...["-C", root, ...settings, ...argv],
    ], { encoding: "utf8" });
    t.equal(status, 0, stderr);
  };
  const commit = (root: string, name: string) => {
    writeFileSync(join(root, name), "");
    git(root, "add", name);
    git(root, "commit", "-qm", name);
  };
  git(t.testdirName, "init", "-q", "there");
  commit(there, "a");
  t.strictSame(changedPaths(undefined, there), [], "the first commit");
  commit(there, "b");
  commit(there, "c");
  git(t.testdirName, "clone", "-q", "there", "here");
  t.strictSame(changedPaths(undefined, here), ["c"], "nothing to push");
  t.strictSame(changedPaths("HEAD~2", here), ["b", "c"], "since a commit");
  commit(here, "d");
  commit(here, "e");
  writeFileSync(join(here, "a"), "changed");
  t.strictSame(changedPaths(undefined, here), ["a", "d", "e"]);
  t.throws(() => changedPaths("none", here), {
    message:
      "Cannot compare with SINCE 'none': the repository has no such commit. Fetch it, or name another",
  });
  t.end();
});

t.test("npm test selects files by kinds and parts of their paths", (t) => {
  const all = chooseFiles([]).files;
  const pure = chooseFiles(["pure"]).files;
  t.ok(pure.includes("test/spec.test.ts"));
  t.notOk(pure.includes("test/kernels.test.ts"));
  const other = chooseFiles(["cpu", "gpu", "mpi", "browser"]);
  t.strictSame(other.kinds, ["cpu", "gpu", "mpi", "browser"]);
  t.strictSame([...pure, ...other.files].toSorted(), all.toSorted());
  t.strictSame(chooseFiles(["cpu", "test/kernels"]).files.toSorted(), [
    "test/kernels.test.ts",
    "test/kernels_attention.test.ts",
    "test/kernels_choices.test.ts",
    "test/kernels_matmul.test.ts",
    "test/kernels_moe.test.ts",
    "test/kernels_rows.test.ts",
    "test/kernels_split.test.ts",
  ]);
  t.strictSame(chooseFiles(["pure", "test/kernels_rows"]).files, []);
  t.end();
});
