/**
 * Compiles the TypeScript of a clone into the folder `.compiled`, so that processes start without compiling. The
 * `switchyard` program is bundled in `.compiled/dist`, as for a package. Tests, benchmarks and examples import any
 * module, so each source has one JavaScript file. A file is compiled again if the modification time of its source
 * differs.
 *
 * The package declarations that `check` reads are in `.compiled/declared` until a source changes.
 *
 * `.compiled` has the folder structure of the clone. Package code finds its location from there, as from `dist` in an
 * installed package. In tests, benchmarks and examples `import.meta` is that of the source, so that they find their
 * data.
 */

import { spawnSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { dirname, extname, join, relative, resolve, sep } from "node:path";
import process from "node:process";
import { fileURLToPath, pathToFileURL } from "node:url";
import {
  bundleBrowser,
  bundlePage,
  bundleProgram,
  ENTRIES,
  loadEsbuild,
  MODULES,
  PROGRAM,
} from "./bundle.mjs";
import { VALIDATOR, VALIDATORS } from "./validators.mjs";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const COMPILED = join(ROOT, ".compiled");
/** The bundled program, as in a package. */
const DIST = join(COMPILED, "dist");
/** The declarations of the public language, as in a package. */
const DECLARED = join(COMPILED, "declared");
/** V8's compiled code; see bin/code_cache.mjs. */
const CODE = join(COMPILED, "code");
/** The bundled programs that tests start, by their paths in the clone. */
const STARTED = join(COMPILED, "started");
/** The bundled test files, by their paths in the clone. */
const TESTS = join(COMPILED, "tests");

/**
 * The test library. As a single file it loads in a third of the time, for each test file. It omits stack lines inside
 * packages.
 */
const TAP = join(COMPILED, "node_modules", "@tapjs");

/** Folders of the package's own code. */
export const LIBRARY = [
  ...["spec", "compiler", "runtime", "models", "engine", "view", "cli"],
];

/** Folders of code that runs only in a clone. */
export const PROGRAMS = ["examples", "bench", "test"];

/** Folders of sources that are test data or not part of this clone. */
const DATA = /^test.fixtures.|^test.references.|node_modules/;

/** Test data files that tests import. */
const IMPORTED = [
  join("test", "fixtures", "source", "mathx.ts"),
  join("test", "fixtures", "types", "negative.ts"),
];

/** Programs that tests start as processes, and the programs that these start. */
const STARTED_PROGRAMS = [
  "engine/untrusted/program.ts",
  ...["exchange", "memory", "run", "stages"].map((name) =>
    `test/helpers/${name}_rank.ts`
  ),
  ...["train_child", "lock_contender"].map((name) => `test/helpers/${name}.ts`),
  "test/fuzz/fresh_runs.ts",
];

/** Returns the compiled file of a source, by its path in the clone. */
export function compiledFile(source) {
  return join(COMPILED, source.replace(/\.ts$/, ".js"));
}

/**
 * Compiles changed files among folders of the clone and source files. Returns the errors by source file; a file with
 * errors has no compiled file.
 */
export async function compile(paths) {
  forgetOtherVersions();
  const sources = paths.flatMap(sourceFiles);
  const stale = sources.filter((file) =>
    !isSameTime(changeOf(ROOT + file), changeOf(compiledFile(file)))
  );
  if (stale.length === 0) return new Map();
  if (stale.every(isProgram)) return await compileFiles(stale);
  forgetDeclarations();
  // A compiled validator contains schemas, which are in other files.
  const validators = sources.filter((file) => VALIDATOR.test(file));
  return await compileFiles([...new Set([...stale, ...validators])]);
}

/** Returns the bundled file of a module that is loaded by name, by its path in the clone. */
export function bundledFile(source) {
  return join(DIST, source.replace(/\.ts$/, ".js"));
}

/**
 * Bundles the program and the page of 'view' if a source has changed. Returns the errors in sources of the program by
 * file. Only 'view' needs the page, and reports if it could not be built.
 */
export async function bundle() {
  return await bundleStale(DIST, () => {
    forgetDeclarations();
    removeFolder(CODE);
    return [
      bundleProgram(DIST),
      bundlePage(join(DIST, "page")).catch(() => undefined),
      bundleBrowser(DIST).catch(() => undefined),
    ];
  });
}

/** Bundles the programs that tests start, in the same way as `bundle`. */
export async function bundleStarted() {
  return await bundleStale(STARTED, () => [
    bundlePrograms(STARTED_PROGRAMS, STARTED, [placed(() => true)]),
  ]);
}

/** Returns the bundled file of a test, by its path in the clone. */
export function bundledTest(source) {
  return join(TESTS, source.replace(/\.ts$/, ".js"));
}

/**
 * Sources whose separately compiled file is used: kernel printers, as part of the key of cached kernels, and the
 * editor.
 */
const SEPARATE_FILE = /^(runtime.\w+.print|compiler.editor.mod)\.ts$/;

/**
 * Bundles all test files, in the same way as `bundle`: a process finds and reads a fifth of the files.
 */
export async function bundleTests() {
  const files = filesOf("test", ".test.ts").filter((file) => !DATA.test(file));
  return await bundleStale(TESTS, () => [
    bundlePrograms([...ENTRIES, ...files], TESTS, [
      SHARED_TAP,
      SCRIPTS,
      placed((source) => isProgram(source) || SEPARATE_FILE.test(source)),
    ]),
  ], files);
}

function bundlePrograms(entryPoints, outdir, plugins) {
  return loadEsbuild().build({
    ...PROGRAM,
    entryPoints,
    outdir,
    plugins: [...PROGRAM.plugins, ...plugins],
  });
}

/** Bundles the test library, in the same way as `bundle`. */
export async function bundleTap() {
  // Its CommonJS parts require modules of Node.
  const require = [
    "import { createRequire as requireOf } from 'node:module';",
    "const require = requireOf(import.meta.url);",
  ];
  return await bundleStale(TAP, () => [
    loadEsbuild().build({
      ...PROGRAM,
      packages: "bundle",
      sourcemap: false,
      entryPoints: [{ in: "scripts/tap.mjs", out: "mod" }],
      outdir: TAP,
      banner: { js: require.join(" ") },
    }),
  ]);
}

/**
 * Creates missing declarations. Checking models works without them, but is twice as fast with them. Sources with errors
 * have no declarations.
 */
export function declare() {
  if (existsSync(DECLARED)) return;
  const fresh = `${DECLARED}.${process.pid}`;
  const tsc = join(ROOT, "node_modules/typescript-7/bin/tsc");
  const { status } = spawnSync(process.execPath, [
    ...[tsc, "-p", join(ROOT, "tsconfig.build.json"), "--noCheck"],
    ...["--outDir", fresh],
  ]);
  if (status === 0) takePlace(fresh, DECLARED);
  rmSync(fresh, { recursive: true, force: true });
}

/**
 * Bundles into a folder if a source has changed or is not one of the bundled. A failed bundle is built again the next
 * time.
 */
async function bundleStale(folder, make, entries = []) {
  forgetOtherVersions();
  const sources = join(folder, "sources.json");
  if (!isStale(sources, entries)) return new Map();
  const start = Date.now();
  try {
    const wanted = await Promise.all(make());
    const made = wanted.filter((bundles) => bundles !== undefined);
    write(made.flatMap(({ outputFiles }) => outputFiles), new Map());
    forgetOldChunks(folder, start);
    if (made.length === wanted.length) noteSources(sources, made, start);
    return new Map();
  } catch (error) {
    return mistakesIn(error);
  }
}

/** Bundles as `bundle` does. Errors in sources are printed and end the process. */
export async function bundleOrExit() {
  const mistakes = await bundle();
  if (mistakes.size === 0) return;
  for (const text of mistakes.values()) console.error(text);
  process.exit(1);
}

/** Returns whether the modification time of a source has changed since bundling, or an entry is not bundled. */
function isStale(sources, entries) {
  if (!existsSync(sources)) return true;
  const bundled = JSON.parse(readFileSync(sources, "utf8"));
  return entries.some((file) => !(file in bundled)) ||
    Object.entries(bundled)
      .some(([file, change]) => !isSameTime(changeOf(ROOT + file), change));
}

/**
 * Records the bundled sources with modification times. A source that changed after `start` may have been read before or
 * after the change.
 */
function noteSources(sources, bundles, start) {
  const files = bundles.flatMap(({ metafile }) => Object.keys(metafile.inputs));
  const scripts = ["scripts/bundle.mjs", "scripts/validators.mjs"];
  const changes = [...scripts, ...files].map((file) => {
    const change = changeOf(ROOT + file);
    return [file, change < start ? change : "later"];
  });
  const text = JSON.stringify(Object.fromEntries(changes));
  replaceFile(sources, text, new Date());
}

/** Removes chunks older than a day. A running process may still load chunks of an earlier bundle. */
function forgetOldChunks(folder, now) {
  for (const file of filesOf(relative(ROOT, join(folder, "chunks")), ".js")) {
    if (now - changeOf(join(ROOT, file)) > 86_400_000) remove(join(ROOT, file));
  }
}

/**
 * Removes the output of other versions of this file. Folders are renamed atomically: other processes may start at the
 * same time, and find either the output or an empty folder.
 */
function forgetOtherVersions() {
  const key = join(COMPILED, "compile.mjs");
  const text = readFileSync(fileURLToPath(import.meta.url), "utf8");
  if (existsSync(key) && readFileSync(key, "utf8") === text) return;
  const fresh = `${COMPILED}.fresh.${process.pid}`;
  replaceFile(join(fresh, "compile.mjs"), text, new Date());
  removeFolder(COMPILED);
  takePlace(fresh, COMPILED);
  rmSync(fresh, { recursive: true, force: true });
}

function forgetDeclarations() {
  removeFolder(DECLARED);
}

/** Removes a folder that other processes may be writing to. */
function removeFolder(folder) {
  const old = `${COMPILED}.old.${process.pid}`;
  takePlace(folder, old);
  rmSync(old, { recursive: true, force: true });
}

/** Renames a folder, unless it does not exist or another process has created the target. */
function takePlace(folder, name) {
  try {
    renameSync(folder, name);
  } catch (error) {
    if (!["ENOENT", "ENOTEMPTY", "EEXIST"].includes(error.code)) throw error;
  }
}

/** Returns the TypeScript files of a folder, or a single file. Compiled files of deleted sources are removed. */
function sourceFiles(path) {
  if (extname(path) !== "") return existsSync(ROOT + path) ? [path] : [];
  const files = filesOf(path, ".ts")
    .filter((file) => !DATA.test(file) || IMPORTED.includes(file));
  const expected = new Set(files.map(compiledFile));
  for (const file of filesOf(relative(ROOT, join(COMPILED, path)), ".js")) {
    if (!expected.has(join(ROOT, file))) remove(join(ROOT, file));
  }
  return files;
}

/** Returns the files below a folder of the clone, by their paths in it. */
function filesOf(folder, extension) {
  if (!existsSync(join(ROOT, folder))) return [];
  return readdirSync(join(ROOT, folder), { recursive: true })
    .filter((name) => name.endsWith(extension))
    .map((name) => join(folder, name));
}

/** Returns the modification time of a file in integer milliseconds. A compiled file has the time of its source. */
function changeOf(file) {
  const found = statSync(file, { throwIfNoEntry: false });
  return found && Math.round(found.mtimeMs);
}

/**
 * Returns whether two modification times are equal. Node.js returns rounded fractions of a millisecond, and Deno none.
 */
function isSameTime(a, b) {
  return a === b || Math.abs(a - b) <= 1;
}

async function compileFiles(files) {
  const esbuild = loadEsbuild();
  const mistakes = new Map();
  // A file with errors fails the whole build, so the remaining files are compiled again.
  for (let left = files; left.length > 0;) {
    const dates = new Map(
      left.map((file) => [file, new Date(changeOf(ROOT + file))]),
    );
    const { outputs, error } = await build(esbuild, left);
    if (outputs) {
      write(outputs, dates);
      break;
    }
    for (const [file, text] of mistakesIn(error)) {
      mistakes.set(file, text);
      remove(compiledFile(file));
    }
    left = left.filter((file) => !mistakes.has(file));
  }
  return mistakes;
}

/** Returns the errors by source file. Throws any other error. */
function mistakesIn(error) {
  const { errors = [] } = error;
  if (errors.length === 0 || errors.some(({ location }) => !location?.file)) {
    throw error;
  }
  return new Map(errors.map(({ location: { file, line, column }, text }) => [
    file,
    `Cannot compile '${file}:${line}:${column + 1}': ${text}`,
  ]));
}

function isProgram(file) {
  return PROGRAMS.includes(file.split(sep)[0]);
}

async function build(esbuild, files) {
  const options = {
    absWorkingDir: ROOT,
    outdir: COMPILED,
    outbase: ROOT,
    write: false,
    format: "esm",
    platform: "node",
    target: "node20",
    sourcemap: "linked",
    sourcesContent: false,
    logLevel: "silent",
    // Each file separately: all its imports are external.
    bundle: true,
    packages: "external",
    tsconfigRaw: "{}",
  };
  const [validators, others] = [true, false].map((wanted) =>
    files.filter((file) => VALIDATOR.test(file) === wanted)
  );
  const results = await Promise.allSettled([
    esbuild.build({
      ...options,
      entryPoints: validators,
      plugins: [SEPARATE, VALIDATORS],
      sourcemap: false,
      minifyWhitespace: true,
    }),
    esbuild.build({
      ...options,
      entryPoints: others.filter((file) => !isProgram(file)),
      plugins: [SEPARATE],
    }),
    esbuild.build({
      ...options,
      entryPoints: others.filter(isProgram),
      plugins: [SEPARATE, placed(() => true)],
    }),
  ]);
  const failed = results.filter(({ status }) => status === "rejected");
  if (failed.length > 0) {
    const errors = failed.flatMap(({ reason }) => reason.errors ?? []);
    return { error: Object.assign(failed[0].reason, { errors }) };
  }
  return { outputs: results.flatMap(({ value }) => value.outputFiles) };
}

/** Imports of the test library become imports of its bundle. */
const SHARED_TAP = {
  name: "shared tap",
  setup(build) {
    build.onResolve(
      { filter: /^tap$/ },
      () => ({ path: pathToFileURL(join(TAP, "mod.js")).href, external: true }),
    );
  },
};

/** Scripts are not part of bundles: they run in their place. */
const SCRIPTS = {
  name: "scripts",
  setup(build) {
    build.onResolve({ filter: /^\..*\.mjs$/ }, ({ path, importer }) => ({
      path: pathToFileURL(resolve(dirname(importer), path)).href,
      external: true,
    }));
  },
};

/** Imports of TypeScript become imports of the compiled files. */
const SEPARATE = {
  name: "separate",
  setup(build) {
    const external = (importer, target) => {
      const from = dirname(compiledFile(relative(ROOT, importer)));
      const url = relative(from, target).replaceAll(sep, "/");
      return { path: url.startsWith(".") ? url : `./${url}`, external: true };
    };
    SHARED_TAP.setup(build);
    build.onResolve({ filter: /^(\.|switchyard-moe)/ }, (found) => {
      const { kind, path, importer } = found;
      if (kind === "entry-point") return undefined;
      const module = MODULES[path];
      const source = module
        ? join(ROOT, module)
        : resolve(dirname(importer), path);
      if (!existsSync(source)) {
        return { errors: [{ text: `there is no file '${path}'` }] };
      }
      // Other files stay in their place.
      const target = source.endsWith(".ts")
        ? compiledFile(relative(ROOT, source))
        : source;
      return external(importer, target);
    });
  },
};

/**
 * Defines the location of a program's source, and of its separately compiled file for a library source. It is on the
 * first line, so that line numbers do not change. Files without a place are located where they run.
 */
function placed(hasPlace) {
  return {
    name: "placed",
    setup(build) {
      build.initialOptions.define = {
        "import.meta.url": "sourceMeta.url",
        "import.meta.dirname": "sourceMeta.dirname",
      };
      build.onLoad({ filter: /\.ts$/ }, ({ path }) => {
        const source = relative(ROOT, path);
        const file = isProgram(source) ? path : compiledFile(source);
        const place = { url: pathToFileURL(file), dirname: dirname(file) };
        const meta = hasPlace(source) ? JSON.stringify(place) : "import.meta";
        const first = `const sourceMeta = ${meta};`;
        return { contents: first + readFileSync(path, "utf8"), loader: "ts" };
      });
    },
  };
}

/** Writes compiled files with the times of their sources. Maps are first, so that every existing file has its map. */
function write(outputs, dates) {
  const sorted = outputs.toSorted((a, b) =>
    Number(b.path.endsWith(".map")) - Number(a.path.endsWith(".map"))
  );
  const dateOf = new Map(
    [...dates].map(([file, date]) => [compiledFile(file), date]),
  );
  for (const { path, contents } of sorted) {
    replaceFile(path, contents, dateOf.get(path) ?? new Date());
  }
}

/** Replaces a file atomically: other processes may do the same. */
function replaceFile(path, contents, date) {
  mkdirSync(dirname(path), { recursive: true });
  const fresh = `${path}.${process.pid}`;
  writeFileSync(fresh, contents);
  utimesSync(fresh, date, date);
  renameSync(fresh, path);
}

function remove(file) {
  rmSync(file, { force: true });
  rmSync(`${file}.map`, { force: true });
}
