/** Bundles the page of `switchyard view`: one script and one style sheet. `node scripts/bundle.mjs FOLDER` does it by hand. */

import { mkdirSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join, resolve } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("..", import.meta.url));

/** esbuild comes with tsx. */
export function loadEsbuild() {
  const { resolve } = createRequire(import.meta.url);
  return createRequire(resolve("tsx"))("esbuild");
}

/** Bundles the page for a folder. Returns the files to write, `main.js` last. Rejects with what is wrong with its sources. */
export async function bundlePage(folder) {
  const { outputFiles } = await loadEsbuild().build({
    ...{ absWorkingDir: ROOT, outdir: folder, logLevel: "silent" },
    ...{ entryPoints: ["view/page/main.tsx"], tsconfigRaw: "{}" },
    ...{ bundle: true, minify: true, charset: "utf8", format: "iife" },
    ...{ platform: "browser", target: "es2022", legalComments: "inline" },
    ...{ jsx: "automatic", jsxImportSource: "preact", write: false },
  });
  return outputFiles.toSorted((a, b) =>
    Number(a.path.endsWith(".js")) - Number(b.path.endsWith(".js"))
  );
}

/** Whether a source of the page is newer than the bundle in a folder. */
export function pageIsStale(folder) {
  const made = statSync(join(folder, "main.js"), { throwIfNoEntry: false });
  if (!made) return true;
  const sources = ["view", "spec"].flatMap((name) =>
    readdirSync(join(ROOT, name), { recursive: true })
      .filter((file) => /\.(tsx?|css)$/.test(file))
      .map((file) => join(name, file))
  );
  return ["scripts/bundle.mjs", ...sources]
    .some((file) => statSync(join(ROOT, file)).mtimeMs > made.mtimeMs);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const folder = resolve(process.argv[2] ?? "dist/page");
  try {
    for (const { path, contents } of await bundlePage(folder)) {
      mkdirSync(dirname(path), { recursive: true });
      writeFileSync(path, contents);
    }
  } catch (error) {
    console.error(`Cannot bundle the page: ${error.message}`);
    process.exitCode = 1;
  }
}
