// The set-up scripts and the test runner itself.
import { spawnSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";

const ROOT = fileURLToPath(new URL("..", import.meta.url));

interface Setup {
  packagesAreCurrent(root?: string): boolean;
}

const setupModule = new URL("../scripts/setup.mjs", import.meta.url);
const { packagesAreCurrent } = await import(setupModule.href) as Setup;

function node(argv: string[], env: { [name: string]: string } = {}) {
  return spawnSync(process.execPath, argv, {
    cwd: ROOT,
    encoding: "utf8",
    env: { ...process.env, ...env },
  });
}

/** What `node scripts/test.mjs` says about files of test/fixtures/runner. */
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

t.test("npm test counts a file that goes wrong as failed", (t) => {
  t.match(runner("crashes"), {
    status: 1,
    last: "1 passed, 1 failed, 0 skipped",
  });
  t.match(runner("empty", "broken"), {
    status: 1,
    last: "0 passed, 2 failed, 0 skipped",
    stdout: /missing\.ts/,
  });
  t.end();
});
