// Where the machine has too little of something for the program to start, it says so in a sentence.
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

t.test("too few files may be open", { skip: SKIP }, (t) => {
  // As it is: what is compiled is there, and what is needed is found.
  const wanted = spawnSync(process.execPath, [PROGRAM, "verify", PLAN], {
    encoding: "utf8",
  });
  t.equal(wanted.status, 1);
  t.match(wanted.stderr, /^Cannot read '.*package\.json': .*\n$/);
  const seen = new Set<number | null>();
  const major = Number.parseInt(process.versions.node);
  // Below 19 Node.js does not start, or cannot open the program.
  for (const limit of [19, 20, 22, 24, 28, 32, 40, 64, 200]) {
    const { status, stderr } = spawnSync("sh", [
      ...["-c", `ulimit -n ${limit}; exec "$@"`, "sh"],
      ...[process.execPath, PROGRAM, "verify", PLAN],
    ], { encoding: "utf8" });
    // Later versions of Node.js itself may need more.
    if (major >= 22 && (status === null || /^node:/.test(stderr))) continue;
    seen.add(status);
    if (status === 1) t.equal(stderr, wanted.stderr, `${limit} files do`);
    else {
      t.equal(status, 3, `${limit} files`);
      t.match(
        stderr,
        /^Cannot (start switchyard|go on): too many files are open\. Raise the limit \(ulimit -n\)\n$/,
        `${limit} files`,
      );
    }
  }
  // Later versions of Node read one file after another: where they start, those are enough.
  const few = major < 22 ? [3] : [];
  t.strictSame([...seen].sort(), [1, ...few], "some are too few, some enough");
  t.end();
});

t.test("there may be too little memory", { skip: SKIP }, (t) => {
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

t.test("what is wrong besides is named", { skip: SKIP }, (t) => {
  const says: { readonly [error: string]: string } = {
    "first line\\nsecond": "'first line'. Install the package again (npm ci)",
    "Array buffer allocation failed":
      "there is too little memory. Free some, or raise the limit (ulimit -v)",
  };
  for (const [error, sentence] of Object.entries(says)) {
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

t.test("the bundled program prints the plan that modules print", async (t) => {
  const model = fileURLToPath(new URL("../examples/demo-lm", import.meta.url));
  const argv = ["plan", model, "--full"];
  const { stdout } = spawnSync(process.execPath, [PROGRAM, ...argv], {
    encoding: "utf8",
  });
  const { out } = await switchyard(argv);
  // Functions of these names are in other modules too.
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
