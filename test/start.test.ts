// If the machine lacks a resource that the program needs to start, it prints a message.
import { spawnSync } from "node:child_process";
import { syncBuiltinESMExports } from "node:module";
import os from "node:os";
import process from "node:process";
import { fileURLToPath } from "node:url";
import t from "tap";
import { userCache } from "../runtime/cache/folders.ts";
import { switchyard } from "./helpers/cli.ts";

const PROGRAM = fileURLToPath(
  new URL("../bin/switchyard.mjs", import.meta.url),
);
const PLAN = fileURLToPath(new URL("../package.json", import.meta.url));

const SKIP = process.platform !== "linux" && "limits of other systems differ";

t.test("limits of open files", { skip: SKIP }, (t) => {
  // Compiles before the limits apply.
  const expected = spawnSync(process.execPath, [PROGRAM, "verify", PLAN], {
    encoding: "utf8",
  });
  t.equal(expected.status, 1);
  t.match(expected.stderr, /^Cannot read '.*package\.json': .*\n$/);
  const seen = new Set<number | null>();
  const major = Number.parseInt(process.versions.node);
  // With a limit below 19, Node.js does not start or cannot open the program.
  for (const limit of [19, 20, 22, 24, 28, 32, 40, 64, 200]) {
    const { status, stderr } = spawnSync("sh", [
      ...["-c", `ulimit -n ${limit}; exec "$@"`, "sh"],
      ...[process.execPath, PROGRAM, "verify", PLAN],
    ], { encoding: "utf8" });
    // Later versions of Node.js themselves may need more.
    if (major >= 22 && (status === null || /^node:/.test(stderr))) continue;
    seen.add(status);
    if (status === 1) {
      t.equal(stderr, expected.stderr, `${limit} files suffice`);
    } else {
      t.equal(status, 3, `${limit} files`);
      t.match(
        stderr,
        /^Cannot (start switchyard|go on): too many files are open\. Raise the limit \(ulimit -n\)\n$/,
        `${limit} files`,
      );
    }
  }
  // Later versions of Node.js read one file after another, so that no limit is too small for the program.
  const few = major < 22 ? [3] : [];
  t.strictSame(
    [...seen].sort(),
    [1, ...few],
    "small limits fail, larger ones suffice",
  );
  t.end();
});

t.test("a limit of memory", { skip: SKIP }, (t) => {
  const { status, stderr } = spawnSync("sh", [
    ...["-c", `ulimit -v 1500000; exec "$@"`, "sh"],
    ...[process.execPath, PROGRAM, "verify", PLAN],
  ], { encoding: "utf8" });
  t.equal(status, 3);
  t.equal(
    stderr,
    "Cannot start switchyard: there is too little memory. Free some, or raise the limit (ulimit -v)\n",
  );
  t.end();
});

t.test("other errors are named", (t) => {
  const messages: { readonly [error: string]: string } = {
    "first line\\nsecond": "'first line'. Install the package again (npm ci)",
    "Array buffer allocation failed":
      "there is too little memory. Free some, or raise the limit (ulimit -v)",
  };
  for (const [error, sentence] of Object.entries(messages)) {
    const { status, stderr } = spawnSync(process.execPath, [
      "--import",
      `data:text/javascript,import fs from 'node:fs'; import { syncBuiltinESMExports } from 'node:module'; fs.existsSync = () => { throw new Error('${error}'); }; syncBuiltinESMExports();`,
      ...[PROGRAM, "verify", PLAN],
    ], { encoding: "utf8" });
    t.equal(status, 3);
    t.equal(stderr, `Cannot start switchyard: ${sentence}\n`);
  }
  t.end();
});

t.test("the bundled program prints the same plan as the modules", async (t) => {
  const model = fileURLToPath(new URL("../examples/demo-lm", import.meta.url));
  const argv = ["plan", model, "--full"];
  const { stdout } = spawnSync(process.execPath, [PROGRAM, ...argv], {
    encoding: "utf8",
  });
  const { out } = await switchyard(argv);
  // Other modules also have functions of these names.
  for (const op of ["add", "swiglu"]) t.match(out, `${op} : f32[`);
  t.equal(stdout, out);
});

t.test("code and kernels are cached in one folder, or none without a home", async (t) => {
  const { href } = new URL("../bin/code_cache.mjs", import.meta.url);
  const { cacheFolder } = await import(href) as {
    cacheFolder(): string | undefined;
  };
  const { env } = process;
  const { homedir } = os;
  const { XDG_CACHE_HOME: named } = env;
  const setHome = (get: () => string) => {
    os.homedir = get;
    syncBuiltinESMExports();
  };
  t.teardown(() => {
    setHome(homedir);
    if (named === undefined) delete env["XDG_CACHE_HOME"];
    else env["XDG_CACHE_HOME"] = named;
  });
  const homes = {
    "/home/a": () => "/home/a",
    "an empty name": () => "",
    "an unknown user": () => {
      throw new Error("ENOENT");
    },
  };
  const expected: { readonly [xdg: string]: (string | undefined)[] } = {
    "": ["/home/a/.cache", undefined, undefined],
    "relative": ["/home/a/.cache", undefined, undefined],
    "/cache": ["/cache", "/cache", "/cache"],
  };
  for (const [xdg, folders] of Object.entries(expected)) {
    env["XDG_CACHE_HOME"] = xdg;
    for (const [i, [home, get]] of Object.entries(homes).entries()) {
      setHome(get);
      t.equal(cacheFolder(), folders[i], `code: '${xdg}', home ${home}`);
      t.equal(userCache(), folders[i], `kernels: '${xdg}', home ${home}`);
    }
  }
});
