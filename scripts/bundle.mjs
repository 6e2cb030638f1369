/**
 * Bundles what runs as few files, because a process takes most of its start to find and read each one: the program, and
 * the page of `switchyard view`. `node scripts/bundle.mjs FOLDER` does it by hand, for a package.
 */

import { mkdirSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, resolve } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("..", import.meta.url));

/** Modules of the program that others load by name. Each has a file of its own; what they share is in `chunks`. */
const ENTRIES = [
  ...["cli/main.ts", "cli/start.ts", "cli/files.ts"],
  ...["compiler/mod.ts", "spec/mod.ts", "runtime/mod.ts"],
  ...["engine/mod.ts", "engine/compiled_from.ts"],
];

/** esbuild comes with tsx. */
export function loadEsbuild() {
  const { resolve } = createRequire(import.meta.url);
  return createRequire(resolve("tsx"))("esbuild");
}

/** Bundles the program for a folder. Returns `outputFiles` to write, and `metafile`. Rejects with what is wrong with sources. */
export async function bundleProgram(folder) {
  return await loadEsbuild().build({
    ...{ absWorkingDir: ROOT, outdir: folder, outbase: ROOT, write: false },
    ...{ entryPoints: ENTRIES, bundle: true, packages: "external" },
    // Nodes of a graph have the names of the functions that are mapped.
    ...{ splitting: true, chunkNames: "chunks/[name]-[hash]", keepNames: true },
    ...{ format: "esm", platform: "node", target: "node20" },
    ...{ sourcemap: "linked", sourcesContent: false, metafile: true },
    ...{ logLevel: "silent", tsconfigRaw: "{}" },
  });
}

/** As `bundleProgram`, of the page: one script and one style sheet. */
export async function bundlePage(folder) {
  return await loadEsbuild().build({
    ...{ absWorkingDir: ROOT, outdir: folder, logLevel: "silent" },
    ...{ entryPoints: ["view/page/main.tsx"], tsconfigRaw: "{}" },
    ...{ bundle: true, minify: true, charset: "utf8", format: "iife" },
    ...{ platform: "browser", target: "es2022", legalComments: "inline" },
    ...{ jsx: "automatic", jsxImportSource: "preact", write: false },
    metafile: true,
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const folder = resolve(process.argv[2] ?? "dist");
  try {
    const bundles = await Promise.all([
      bundleProgram(folder),
      bundlePage(resolve(folder, "page")),
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
