// Selection of test files: their needs, words, and rotation.
import { spawnSync } from "node:child_process";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";
import { range } from "../spec/range.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));

interface TestFiles {
  readonly TURNS: number;
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
const { TURNS, kindsOf, chooseFiles, sourcesOf, rotateFiles, changedPaths } =
  await import(filesModule.href) as TestFiles;

/** Signs that a test needs something. */
const SIGNS: { readonly [kind: string]: RegExp } = {
  mpi: /helpers\/(mpi|faults|network)\.ts/,
  gpu:
    /helpers\/(run_kernel|references)\.ts|\b(TARGETS|skipWithoutGpu|createGpuDevice)\b/,
  cpu:
    /helpers\/(run_kernel|references)\.ts|\b(TARGETS|createCpuDevice|openCpuPool)\b|\b(runCase|matches)\(|"--adapter", "cpu"/,
};

t.test("every test file states its needs", (t) => {
  const { files } = chooseFiles([]);
  t.ok(files.length > 100);
  for (
    const file of files.filter((file) => file !== "test/test_files.test.ts")
  ) {
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

t.test("all turns run every file, and a change runs the files of its feature", (t) => {
  const { files } = chooseFiles([]);
  const runOf = (seed: number) => rotateFiles(files, { seed, changed: [] });
  const runsOf = (seeds: readonly number[]) =>
    new Map(seeds.map(runOf).map((some) => [some.join(), some]));
  const turns = [...runsOf(range(20)).values()];
  t.equal(turns.length, TURNS, "small seeds");
  const large = range(20).map((n) => -n * 2 ** 16);
  t.equal(runsOf(large).size, TURNS, "multiples of large powers of two");
  const runs = (file: string) =>
    turns.filter((some) => some.includes(file)).length;
  for (const file of files) {
    t.equal(runs(file), sourcesOf(file) === undefined ? TURNS : 1, file);
  }
  for (const file of files) {
    for (const source of sourcesOf(file) ?? []) {
      const folder = dirname(`${source}x`);
      const changed = readdirSync(join(ROOT, folder))
        .map((name) => join(folder, name))
        .filter((path) => path.startsWith(source));
      t.ok(changed.length > 0, `${file}: ${source}`);
      // Each place in the rotation.
      const copies = Array(TURNS).fill(file);
      t.strictSame(rotateFiles(copies, { seed: 0, changed }), copies);
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
