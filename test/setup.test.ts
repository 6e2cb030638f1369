// The setup scripts and the test runner.
// rotates with: scripts/, test/fixtures/runner/
import { execFile, spawnSync } from "node:child_process";
import { cpSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import t from "tap";

const ROOT = fileURLToPath(new URL("..", import.meta.url));

interface Setup {
  packagesAreCurrent(root?: string): boolean;
}

const setupModule = new URL("../scripts/setup.mjs", import.meta.url);
const { packagesAreCurrent } = await import(setupModule.href) as Setup;

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
