/**
 * Bundles programs into few files, because a process spends most of its start finding and reading files. The bundles
 * are the program, the page of `switchyard view`, `switchyard-moe/browser` and `switchyard-moe/editor`. `node
 * scripts/bundle.mjs FOLDER` creates them for a package.
 */

import { mkdirSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, resolve } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { VALIDATORS } from "./validators.mjs";

const ROOT = fileURLToPath(new URL("..", import.meta.url));

/**
 * Modules of the program with one file each; shared code is in `chunks`. Most are loaded by name. `models` has a
 * separate source map, which every command with a model from it reads. Printers have separate files, because their
 * output is cached until one of these files changes.
 */
export const ENTRIES = [
  ...["cli/main.ts", "cli/start.ts", "cli/files.ts"],
  ...["cli/http_program.ts", "cli/search_program.ts", "cli/encode_program.ts"],
  ...["compiler/mod.ts", "spec/mod.ts", "runtime/mod.ts"],
  ...["engine/mod.ts", "engine/untrusted/program.ts"],
  ...["compiler/editor/tracer.ts", "models/mod.ts", "models/published.ts"],
  ...["runtime/cpu/print.ts", "runtime/native/print.ts"],
];

/** The modules of the package's names, as in tsconfig.json. */
export const MODULES = {
  "switchyard-moe": "compiler/mod.ts",
  "switchyard-moe/models": "models/mod.ts",
  "switchyard-moe/spec": "spec/mod.ts",
  "switchyard-moe/runtime": "runtime/mod.ts",
  "switchyard-moe/engine": "engine/mod.ts",
  "switchyard-moe/files": "cli/files.ts",
};

/** esbuild is a dependency of tsx. */
export function loadEsbuild() {
  const { resolve } = createRequire(import.meta.url);
  return createRequire(resolve("tsx"))("esbuild");
}

/** esbuild options of programs. */
export const PROGRAM = {
  absWorkingDir: ROOT,
  outbase: ROOT,
  write: false,
  metafile: true,
  bundle: true,
  packages: "external",
  // Built-in families import the package by its names, as user families do.
  alias: Object.fromEntries(
    Object.entries(MODULES).map(([name, file]) => [name, ROOT + file]),
  ),
  tsconfigRaw: "{}",
  plugins: [VALIDATORS],
  splitting: true,
  chunkNames: "chunks/[name]-[hash]",
  format: "esm",
  platform: "node",
  target: "node20",
  sourcemap: "linked",
  sourcesContent: false,
  logLevel: "silent",
};

/**
 * Bundles the program for a folder. Returns `outputFiles` to write, and `metafile`. Rejects with the errors in sources.
 */
export async function bundleProgram(folder) {
  return await loadEsbuild().build({
    ...PROGRAM,
    entryPoints: ENTRIES,
    outdir: folder,
  });
}

const BROWSER = {
  absWorkingDir: ROOT,
  logLevel: "silent",
  tsconfigRaw: "{}",
  bundle: true,
  minify: true,
  charset: "utf8",
  write: false,
  platform: "browser",
  target: "es2022",
  legalComments: "inline",
  metafile: true,
  plugins: [VALIDATORS],
};

/** Bundles the page, in the same way as `bundleProgram`: one script and one style sheet. */
export async function bundlePage(folder) {
  return await loadEsbuild().build({
    ...BROWSER,
    outdir: folder,
    format: "iife",
    entryPoints: ["view/page/main.tsx"],
    jsx: "automatic",
    jsxImportSource: "preact",
  });
}

/**
 * Bundles the module that pages import, in the same way as `bundleProgram`. Rejects if it uses a built-in module of
 * Node.
 */
export async function bundleBrowser(folder) {
  return await loadEsbuild().build({
    ...BROWSER,
    outfile: resolve(folder, "browser/mod.js"),
    format: "esm",
    entryPoints: ["browser/mod.ts"],
  });
}

/**
 * Bundles the plugin of TypeScript's server, in the same way as `bundleProgram`. The server loads plugins with
 * `require`.
 */
export async function bundleEditor(folder) {
  return await loadEsbuild().build({
    ...PROGRAM,
    splitting: false,
    format: "cjs",
    sourcemap: false,
    outfile: resolve(folder, "compiler/editor/plugin.cjs"),
    entryPoints: ["compiler/editor/mod.ts"],
    define: { "import.meta.url": "pluginUrl" },
    banner: {
      js:
        'const pluginUrl = require("node:url").pathToFileURL(__filename).href;',
    },
    footer: { js: "module.exports = module.exports.init;" },
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const folder = resolve(process.argv[2] ?? "dist");
  try {
    const bundles = await Promise.all([
      bundleProgram(folder),
      bundlePage(resolve(folder, "page")),
      bundleBrowser(folder),
      bundleEditor(folder),
    ]);
    for (const { path, contents } of bundles.flatMap((b) => b.outputFiles)) {
      mkdirSync(dirname(path), { recursive: true });
      writeFileSync(path, contents);
    }
  } catch (error) {
    console.error(`Cannot bundle the program: ${error.message}`);
    process.exitCode = 1;
  }
}
