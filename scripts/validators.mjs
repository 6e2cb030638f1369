/**
 * Writes Ajv's compiled validators of JSON Schemas into compiled code. A process then neither loads Ajv nor compiles
 * schemas, and a page may forbid code generation at run time. Modules named `_validator.ts` export only results of
 * `holdsOf` in `spec/document/hold.ts`.
 */

import { createRequire } from "node:module";
import { dirname, relative } from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const HOLD = fileURLToPath(
  new URL("../spec/document/hold.ts", import.meta.url),
);

/** Sources of validators. */
export const VALIDATOR = /_validator\.ts$/;

/** The plugin of esbuild. */
export const VALIDATORS = {
  name: "validators",
  setup(build) {
    /** The sources of the schemas, which are also dependencies of the bundles. */
    const sources = new Set();
    build.onLoad({ filter: VALIDATOR }, async ({ path }) => {
      const { outputFiles: [made], metafile } = await build.esbuild.build({
        stdin: {
          contents: `export * as validators from ${JSON.stringify(path)};
            export { OPTIONS } from ${JSON.stringify(HOLD)};`,
          resolveDir: ROOT,
        },
        absWorkingDir: ROOT,
        bundle: true,
        write: false,
        metafile: true,
        format: "esm",
        platform: "node",
        tsconfigRaw: "{}",
        logLevel: "silent",
      });
      for (const file of Object.keys(metafile.inputs)) {
        if (file.endsWith(".ts")) sources.add(file);
      }
      const source = Buffer.from(made.contents).toString("base64");
      const loaded = await import(`data:text/javascript;base64,${source}`);
      // Every process parses this code. Without spaces and long names it has 0.7 of the size.
      const { code } = await build.esbuild.transform(write(loaded), {
        minify: true,
      });
      return { contents: code, resolveDir: dirname(path) };
    });
    // The functions that Ajv's code calls become part of the bundle.
    build.onResolve(
      { filter: /^ajv\/dist\/runtime\/|^fast-deep-equal$/ },
      ({ path }) => ({
        path: require.resolve(path),
      }),
    );
    build.onEnd(({ metafile }) => {
      // A bundle with errors has no metafile.
      if (!metafile) return;
      for (const file of sources) {
        metafile.inputs[relative(".", file)] ??= { bytes: 0, imports: [] };
      }
    });
  },
};

const require = createRequire(import.meta.url);

/** Returns the module of some validators as JavaScript. */
function write({ validators, OPTIONS }) {
  const { Ajv } = require("ajv");
  const standalone = require("ajv/dist/standalone").default;
  const names = Object.keys(validators);
  const ajv = new Ajv({
    ...OPTIONS,
    code: { ...OPTIONS.code, source: true, esm: true },
    schemas: Object.fromEntries(
      names.map((name) => [`${name}OfAjv`, validators[name].schema]),
    ),
  });
  const code = standalone(
    ajv,
    Object.fromEntries(names.map((name) => [`${name}OfAjv`, `${name}OfAjv`])),
  );
  return code
    .replaceAll("export const ", "const ")
    .replace(
      /const (\w+) = require\("(ajv\/dist\/runtime\/\w+)"\)\.default;/g,
      'import $1Module from "$2";\nconst $1 = $1Module.default ?? $1Module;',
    ) +
    names.map((name) => `
export const ${name} = (value) =>
  ${name}OfAjv(value) ? [] : ${name}OfAjv.errors ?? [];`).join("");
}
