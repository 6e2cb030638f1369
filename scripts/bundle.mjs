/** Bundles the page of `switchyard view`: one script and one style sheet. `node scripts/bundle.mjs FOLDER` does it by hand. */

import { readdirSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("..", import.meta.url));

/** esbuild comes with tsx. */
export function loadEsbuild() {
  const { resolve } = createRequire(import.meta.url);
  return createRequire(resolve("tsx"))("esbuild");
}

/** Writes `main.js` and `main.css` of the page into a folder. Rejects with what is wrong with its sources. */
export async function bundlePage(folder) {
  await loadEsbuild().build({
    ...{ absWorkingDir: ROOT, outdir: folder, logLevel: "silent" },
    ...{ entryPoints: ["view/page/main.tsx"], tsconfigRaw: "{}" },
    ...{ bundle: true, minify: true, charset: "utf8", format: "iife" },
    ...{ platform: "browser", target: "es2022", legalComments: "inline" },
    ...{ jsx: "automatic", jsxImportSource: "preact" },
  });
}

/** Whether a source of the page is newer than what was bundled of it. */
export function pageIsStale(folder) {
  const made = statSync(join(folder, "main.js"), { throwIfNoEntry: false });
  if (!made) return true;
  return ["view", "spec"].flatMap((name) =>
    readdirSync(join(ROOT, name), { recursive: true })
      .filter((file) => /\.(tsx?|css)$/.test(file))
      .map((file) => join(ROOT, name, file))
  ).some((file) => statSync(file).mtimeMs > made.mtimeMs);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await bundlePage(process.argv[2] ?? "dist/view/page").catch((error) => {
    console.error(`Cannot bundle the page: ${error.message}`);
    process.exitCode = 1;
  });
}
