/**
 * Compiles the TypeScript of a clone into the folder `.compiled`, one JavaScript file for each source, so that no
 * process compiles at its start. A file is compiled again when its source has another time of change.
 *
 * `.compiled` has the same folders as the clone. Code of the package finds its place from there, as from `dist` in an
 * installed package; in tests, benchmarks and examples `import.meta` is that of the source, so that they find their
 * data.
 */

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
import { bundlePage, loadEsbuild, pageIsStale } from "./bundle.mjs";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const COMPILED = join(ROOT, ".compiled");
/** Beside what is compiled of folders: there, files without a source of their name are removed. */
const PAGE = join(COMPILED, "page");

/** Folders of the package's own code. */
export const LIBRARY = [
  ...["spec", "compiler", "runtime", "models", "engine", "view", "cli"],
];

/** Folders of code that runs in a clone only. */
export const PROGRAMS = ["examples", "bench", "test"];

/** Folders of sources that are data of tests or no part of this clone. */
const DATA = /^test.fixtures.|^test.references.|node_modules/;

/** Files among the data that tests import. */
const IMPORTED = [
  join("test", "fixtures", "source", "mathx.ts"),
  join("test", "fixtures", "types", "negative.ts"),
];

/** What the package's names mean, as in tsconfig.json. */
const MODULES = {
  "switchyard-moe": "compiler/mod.ts",
  "switchyard-moe/spec": "spec/mod.ts",
  "switchyard-moe/runtime": "runtime/mod.ts",
  "switchyard-moe/engine": "engine/mod.ts",
  "switchyard-moe/files": "cli/files.ts",
};

/** The compiled file of a source, by its path in the clone. */
export function compiledFile(source) {
  return join(COMPILED, source.replace(/\.ts$/, ".js"));
}

/**
 * Compiles what has changed among folders of the clone and source files. Returns what is wrong with sources, by file;
 * such a file has nothing compiled.
 */
export async function compile(paths) {
  forgetOtherVersions();
  const stale = paths.flatMap(sourceFiles).filter((file) =>
    changeOf(ROOT + file) !== changeOf(compiledFile(file))
  );
  const mistakes = stale.length > 0 ? await compileFiles(stale) : new Map();
  if (paths.includes("view") && pageIsStale(PAGE)) await compilePage();
  return mistakes;
}

/** Bundles the page of 'view'. Only that command needs it, and says so where it could not be made. */
async function compilePage() {
  // Sources that change meanwhile are newer.
  const date = new Date();
  const outputs = await bundlePage(PAGE).catch(() => []);
  for (const { path, contents } of outputs) replaceFile(path, contents, date);
}

/** As `compile`, of paths in the clone. Mistakes in sources are printed and end the process. */
export async function compileOrExit(paths) {
  const mistakes = await compile(paths);
  if (mistakes.size === 0) return;
  for (const text of mistakes.values()) console.error(text);
  process.exit(1);
}

/** The version of this file that compiled what is there; nothing is kept of another one. */
function forgetOtherVersions() {
  const key = join(COMPILED, "compile.mjs");
  const text = readFileSync(fileURLToPath(import.meta.url), "utf8");
  if (existsSync(key) && readFileSync(key, "utf8") === text) return;
  rmSync(COMPILED, { recursive: true, force: true });
  replaceFile(key, text, new Date());
}

/** The TypeScript files of a folder, or a file. What was compiled from sources that are gone is removed. */
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

/** Files below a folder of the clone, by their paths in it. */
function filesOf(folder, extension) {
  if (!existsSync(join(ROOT, folder))) return [];
  return readdirSync(join(ROOT, folder), { recursive: true })
    .filter((name) => name.endsWith(extension))
    .map((name) => join(folder, name));
}

/** When a file was changed, in whole milliseconds. A compiled file has the time of its source. */
function changeOf(file) {
  const found = statSync(file, { throwIfNoEntry: false });
  return found && Math.round(found.mtimeMs);
}

async function compileFiles(files) {
  const esbuild = loadEsbuild();
  const mistakes = new Map();
  // A file with mistakes leaves a build without any output, so the others are compiled again.
  for (let left = files; left.length > 0;) {
    const dates = new Map(
      left.map((file) => [file, new Date(changeOf(ROOT + file))]),
    );
    const { outputs, errors } = await build(esbuild, left);
    if (outputs) {
      write(outputs, dates);
      break;
    }
    for (const { location: { file, line, column }, text } of errors) {
      const where = `${file}:${line}:${column + 1}`;
      mistakes.set(file, `Cannot compile '${where}': ${text}`);
      remove(compiledFile(file));
    }
    left = left.filter((file) => !mistakes.has(file));
  }
  return mistakes;
}

async function build(esbuild, files) {
  const isProgram = (file) => PROGRAMS.includes(file.split(sep)[0]);
  const options = {
    ...{ absWorkingDir: ROOT, outdir: COMPILED, outbase: ROOT, write: false },
    ...{ format: "esm", platform: "node", target: "node20" },
    ...{ sourcemap: "linked", sourcesContent: false, logLevel: "silent" },
    // Each file by itself: all that it imports stays outside.
    ...{ bundle: true, packages: "external", tsconfigRaw: "{}" },
  };
  const results = await Promise.allSettled([
    esbuild.build({
      ...options,
      entryPoints: files.filter((file) => !isProgram(file)),
      plugins: [SEPARATE],
    }),
    esbuild.build({
      ...options,
      entryPoints: files.filter(isProgram),
      plugins: [SEPARATE, PLACED],
      define: SOURCE_META,
    }),
  ]);
  const failed = results.filter(({ status }) => status === "rejected");
  if (failed.length > 0) {
    const errors = failed.flatMap(({ reason }) => reason.errors ?? []);
    // What has no place is no mistake in a source.
    if (errors.every(({ location }) => location?.file)) return { errors };
    throw failed[0].reason;
  }
  return { outputs: results.flatMap(({ value }) => value.outputFiles) };
}

/** Imports of TypeScript become imports of what is compiled from it. */
const SEPARATE = {
  name: "separate",
  setup(build) {
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
      // What is no TypeScript stays where it is.
      const target = source.endsWith(".ts")
        ? compiledFile(relative(ROOT, source))
        : source;
      const from = dirname(compiledFile(relative(ROOT, importer)));
      const to = relative(from, target);
      const url = to.replaceAll(sep, "/");
      return { path: url.startsWith(".") ? url : `./${url}`, external: true };
    });
  },
};

/** Tells a program where its source is. It stands on the first line, so that all lines stay what they are. */
const PLACED = {
  name: "placed",
  setup(build) {
    build.onLoad({ filter: /\.ts$/ }, ({ path }) => {
      const place = { url: pathToFileURL(path), dirname: dirname(path) };
      const first = `const sourceMeta = ${JSON.stringify(place)};`;
      return { contents: first + readFileSync(path, "utf8"), loader: "ts" };
    });
  },
};

const SOURCE_META = {
  "import.meta.url": "sourceMeta.url",
  "import.meta.dirname": "sourceMeta.dirname",
};

/** Writes what was compiled, with the dates of its sources; maps first, so that a file which is there has its map. */
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

/** Puts a file in its place at once: other processes may do the same. */
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
