/**
 * The package as it is installed, compiled: for tests that start many processes, because each then takes a third of the
 * time to start. The programs of ranks in test/helpers are compiled with it.
 */

import {
  copyFileSync,
  cpSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  symlinkSync,
} from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));

/** What is used of esbuild, which comes with tsx. */
interface Esbuild {
  build(options: {
    readonly entryPoints: readonly string[];
    readonly outdir: string;
    readonly outbase: string;
    readonly [option: string]: unknown;
  }): Promise<unknown>;
}

/** What esbuild tells a plugin of an import. */
interface Import {
  readonly kind: string;
  readonly path: string;
}

/** Sources that are compiled, and that lie in the package as they are too. */
const SOURCES = ["spec", "compiler", "runtime", "models", "engine", "cli"];

/** Leaves relative imports where they are, by the names of the compiled files. */
const OUTSIDE = {
  name: "outside",
  setup(build: {
    onResolve(
      options: { readonly filter: RegExp },
      resolve: (found: Import) => { path: string; external: true } | undefined,
    ): void;
  }) {
    build.onResolve(
      { filter: /^\./ },
      ({ kind, path }) =>
        kind === "entry-point"
          ? undefined
          : { path: path.replace(/\.ts$/, ".js"), external: true },
    );
  },
};

/** Where the package lies. It is removed when this process ends. */
const FOLDER = await compilePackage();

/** The command, compiled. */
export const COMMAND = path.join(FOLDER, "bin/switchyard.mjs");

/** The compiled program of a rank: that of a TypeScript file in test/helpers. */
export function rankProgram(name: string): string {
  return path.join(FOLDER, "dist/test/helpers", name.replace(/\.ts$/, ".js"));
}

async function compilePackage(): Promise<string> {
  const folder = mkdtempSync(path.join(tmpdir(), "switchyard-compiled-"));
  process.on("exit", () => rmSync(folder, { recursive: true, force: true }));
  for (const name of ["package.json", "tsconfig.json"]) {
    copyFileSync(path.join(ROOT, name), path.join(folder, name));
  }
  cpSync(path.join(ROOT, "bin"), path.join(folder, "bin"), { recursive: true });
  for (const name of [...SOURCES, "examples", "node_modules"]) {
    symlinkSync(path.join(ROOT, name), path.join(folder, name));
  }
  const tsx = createRequire(import.meta.url).resolve("tsx");
  const esbuild = createRequire(tsx)("esbuild") as Esbuild;
  await esbuild.build({
    entryPoints: [...SOURCES, "test/helpers"].flatMap(typescriptFiles),
    ...{ outdir: path.join(folder, "dist"), outbase: ROOT },
    ...{ format: "esm", platform: "node", target: "node20" },
    // Each file by itself: all that it imports stays outside.
    ...{ bundle: true, packages: "external", plugins: [OUTSIDE] },
    tsconfigRaw: "{}",
  });
  return folder;
}

function typescriptFiles(folder: string): string[] {
  const names = readdirSync(path.join(ROOT, folder), { recursive: true });
  return (names as string[]).filter((name) => name.endsWith(".ts"))
    .map((name) => path.join(ROOT, folder, name));
}
