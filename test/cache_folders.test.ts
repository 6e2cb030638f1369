// Unusable cache folders and damaged cache files: commands print the same output as without a cache.
// needs: cpu
// rotates with: runtime/cache/
import { spawnSync } from "node:child_process";
import {
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import t, { type Test } from "tap";
import { findCompiler } from "../runtime/native/mod.ts";
import { temporaryFolder } from "./helpers/cli.ts";
import { skipUnasked } from "./helpers/needs.ts";
import { NODES } from "./helpers/nodes.ts";
import { ableInTurn, isInTurn, repeatWith, SEED } from "./helpers/seed.ts";

const skip = skipUnasked("cpu") ||
  (await findCompiler() ? false : "there is no C compiler");
const PROGRAM = fileURLToPath(
  new URL("../bin/switchyard.mjs", import.meta.url),
);
const MODEL = `import { dot, model } from "switchyard-moe";
export const m = model({ a: 4, b: 3 }, (m) =>
  ({ y: dot(m.input("x", "a b"), m.param("w", "a b"), "b") }));
`;

/** Creates a folder with a model; returns a function that runs the model in an environment. */
function modelIn(t: Test) {
  const folder = temporaryFolder(t);
  const file = path.join(folder, "m.ts");
  writeFileSync(file, MODEL);
  const run = (
    adapter: "native" | "cpu",
    environment: { readonly [name: string]: string },
    before: readonly string[] = [],
  ) => {
    const argv = [
      ...before,
      ...[process.execPath, PROGRAM, "run", file, "--random"],
      ...["--adapter", adapter],
    ];
    const { status, stdout, stderr } = spawnSync(argv[0]!, argv.slice(1), {
      encoding: "utf8",
      env: { ...process.env, ...environment },
    });
    return { status, stdout, stderr };
  };
  return { folder, run };
}

t.test("unusable cache folders", { skip }, (t) => {
  const { folder, run } = modelIn(t);
  const expected = run("cpu", { XDG_CACHE_HOME: path.join(folder, "good") });
  t.equal(expected.status, 0);
  const at = (name: string) => path.join(folder, name);
  writeFileSync(at("file"), "");
  const tunings = (file: string) =>
    `Cannot read '${file}/switchyard/tunings.json': a part of the path is not a folder. Check the path. This run does without tunings\n`;
  const notCached = (reason: string) =>
    `Cannot keep compiled kernels: ${reason}. Each run compiles them again\n`;
  const states: {
    readonly [title: string]: readonly [
      environment: { readonly [name: string]: string },
      stderr: string,
    ];
  } = {
    "no home": [
      { XDG_CACHE_HOME: "", HOME: "" },
      notCached("this user has no home"),
    ],
    "a file": [
      { XDG_CACHE_HOME: at("file") },
      tunings(at("file")) +
      notCached(
        `ENOTDIR: not a directory, mkdir '${at("file/switchyard/native")}'`,
      ),
    ],
    "a folder that cannot be created": [
      { XDG_CACHE_HOME: "/proc/x" },
      notCached("ENOENT: no such file or directory, mkdir '/proc/x'"),
    ],
  };
  for (const [title, [environment, stderr]] of Object.entries(states)) {
    t.strictSame(run("native", environment), { ...expected, stderr }, title);
  }
  t.strictSame(
    run("cpu", { XDG_CACHE_HOME: "/proc/x" }),
    expected,
    "WebAssembly modules are generated again",
  );
  t.end();
});

const unshared = spawnSync("unshare", ["-rm", "true"]).status === 0;

t.test("a full disk", {
  skip: skip || !unshared && "this system has no namespaces of mounts",
}, (t) => {
  const { folder, run } = modelIn(t);
  const full = path.join(folder, "full");
  mkdirSync(full);
  const mounted = [
    ...["unshare", "-rm", "sh", "-c"],
    `mount -t tmpfs -o size=16k none ${full}; exec "$@"`,
    "sh",
  ];
  const good = { XDG_CACHE_HOME: path.join(folder, "good") };
  const expected = run("cpu", good, mounted);
  t.equal(expected.status, 0);
  const { stderr, ...rest } = run("native", { XDG_CACHE_HOME: full }, mounted);
  t.strictSame({ ...rest, stderr: "" }, expected);
  t.match(stderr, /^Cannot keep compiled kernels: .*\n$/);
  const nowhere = { XDG_CACHE_HOME: full, TMPDIR: full };
  const { status, stderr: sentence } = run("native", nowhere, mounted);
  t.equal(status, 3);
  t.match(
    sentence,
    /^Cannot keep .*\nCannot compile .*\n$|^Cannot compile .*\n$/,
  );
  t.end();
});

t.test("all files damaged at once", { skip }, (t) => {
  const { folder, run } = modelIn(t);
  const cache = path.join(folder, "cache");
  const expected = run("cpu", { XDG_CACHE_HOME: cache });
  t.strictSame(run("native", { XDG_CACHE_HOME: cache }), expected);
  const files = ["native", "wasm"].flatMap((device) => {
    const inside = path.join(cache, "switchyard", device);
    return readdirSync(inside).map((name) => path.join(inside, name));
  });
  t.ok(files.length > 5);
  const damage: { readonly [title: string]: (file: string) => void } = {
    "truncated": (file) => truncateSync(file, 5000),
    "replaced by folders": (file) => {
      rmSync(file);
      mkdirSync(file);
    },
  };
  for (const [i, [title, change]] of Object.entries(damage).entries()) {
    for (const file of files) if (lstatSync(file).isFile()) change(file);
    const adapters = ["native", "cpu"] as const;
    for (const adapter of adapters.filter((_, at) => isInTurn(i + at, 2))) {
      t.strictSame(
        run(adapter, { XDG_CACHE_HOME: cache }),
        expected,
        `${adapter}: ${title}`,
      );
    }
  }
  t.end();
});

/** Node.js 22 and later cache compiled code; one of them runs. */
const CACHING = NODES.filter(({ name }) => Number(/\d+/.exec(name)) >= 22);

for (const { name, program, skip } of ableInTurn(CACHING)) {
  t.test(`${name}: damaged code in the cache of the program`, {
    skip,
  }, (t) => {
    const folder = temporaryFolder(t);
    const at = (file: string) => path.join(folder, file);
    writeFileSync(at("imported.mjs"), "export const f = (x) => x * x;\n");
    writeFileSync(
      at("program.mjs"),
      `import { keepCode } from ${
        JSON.stringify(
          String(new URL("../bin/code_cache.mjs", import.meta.url)),
        )
      };
keepCode(${JSON.stringify(folder)});
const { f } = await import("./imported.mjs");
console.log(f(7));
`,
    );
    const run = () => {
      const { status, stdout, stderr } = spawnSync(
        program,
        [at("program.mjs")],
        { encoding: "utf8" },
      );
      return { status, stdout, stderr };
    };
    const expected = { status: 0, stdout: "49\n", stderr: "" };
    t.strictSame(run(), expected);
    const [inside] = readdirSync(at("code"));
    const [name] = readdirSync(at(`code/${inside}`));
    const file = at(`code/${inside}/${name}`);
    const bytes = readFileSync(file);
    const lengths = [0, 1, 20, bytes.length >> 1, bytes.length - 1];
    const bits = fc.sample(fc.nat(8 * bytes.length - 1), {
      numRuns: 10,
      seed: SEED,
    });
    for (const length of lengths) {
      writeFileSync(file, bytes.subarray(0, length));
      t.strictSame(run(), expected, `truncated to ${length} bytes`);
    }
    for (const bit of bits) {
      const flipped = Buffer.from(bytes);
      flipped[bit >> 3]! ^= 1 << (bit & 7);
      writeFileSync(file, flipped);
      t.strictSame(run(), expected, repeatWith());
    }
    rmSync(file);
    mkdirSync(file);
    t.strictSame(run(), expected, "replaced by a folder");
    rmSync(file, { recursive: true });
    spawnSync("mkfifo", [file]);
    t.strictSame(run(), expected, "replaced by a pipe");
    t.end();
  });
}
