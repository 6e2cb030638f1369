// @ts-check
/**
 * Module hooks that load users' model files. They run on the importing thread or, before Node.js 22.15, on Node's
 * loader thread, where TypeScript cannot be loaded; therefore this file is plain JavaScript. Hooks must not wait for
 * the importing thread. See `load.ts` for the other side.
 *
 * Only files imported by `MODEL_SCHEME`, and their relative imports, are affected. They are ES modules whatever the
 * nearest package.json says, and `switchyard-moe` in them is the running package.
 */

import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import process from "node:process";
import { fileURLToPath } from "node:url";

/** Import specifiers of model files: this prefix and the URL. */
const MODEL_SCHEME = "switchyard-model:";

const require = createRequire(import.meta.url);

/**
 * `entries`: URLs of the package's modules, by name. `importedAs`: resolutions of a relative import. `inPackage`: URLs
 * of the folders with this package's code.
 * @type {{ entries: Record<string, string>, importedAs: [RegExp, string][], inPackage: string[] }}
 */
let paths = { entries: {}, importedAs: [], inPackage: [] };

/** URLs of users' files. @type {Set<string>} */
const users = new Set();

/** Unsaved texts of an editor, by path. @type {ReadonlyMap<string, string>} */
let unsaved = new Map();

/** @param {typeof paths} given */
export function usePaths(given) {
  paths = given;
}

/** @param {ReadonlyMap<string, string>} texts */
export function useTexts(texts) {
  unsaved = texts;
}

/**
 * Called on Node's loader thread. `port` receives unsaved texts and acknowledges them.
 * @param {typeof paths & { port: import("node:worker_threads").MessagePort }} given
 */
export function initialize({ port, ...given }) {
  usePaths(given);
  port.on("message", (texts) => {
    useTexts(texts);
    port.postMessage({});
  });
  port.unref();
}

/**
 * Hooks of both kinds: the next hook returns a promise on the loader thread, and a result elsewhere.
 * @typedef {(specifier: string, context: { parentURL?: string }, next: (specifier: string, context: object) => any) =>
 *   any} ResolveHook
 * @typedef {(url: string, context: object, next: (url: string, context: object) => any) => any} LoadHook
 */

/** @type {ResolveHook} */
export function resolve(specifier, context, nextResolve) {
  if (specifier.startsWith(MODEL_SCHEME)) {
    return claim(specifier.slice(MODEL_SCHEME.length));
  }
  if (context.parentURL !== undefined && users.has(context.parentURL)) {
    const entry = paths.entries[specifier];
    // The rest of the chain resolves this package; without a parent, so that no query is inherited.
    if (entry !== undefined) {
      return nextResolve(entry, { ...context, parentURL: undefined });
    }
    const url = relative(specifier, context.parentURL);
    // Imports of a file have the version of the file.
    const { search } = new URL(context.parentURL);
    if (url !== undefined) return claim(url + search);
  }
  return nextResolve(specifier, context);
}

/** @type {LoadHook} */
export function load(url, context, nextLoad) {
  // With hooks, Deno reads addons as text.
  if ("deno" in process.versions && url.endsWith(".node")) {
    const path = JSON.stringify(fileURLToPath(url));
    const source = `process.dlopen(module, ${path})`;
    return { format: "commonjs", source, shortCircuit: true };
  }
  if (!users.has(url)) return nextLoad(url, context);
  const path = fileURLToPath(url);
  const text = unsaved.get(path) ?? readFileSync(path, "utf8");
  return {
    format: "module",
    source: transpile(path, text),
    shortCircuit: true,
  };
}

/**
 * The JavaScript of a text, with a source map. Types are removed without checks. Throws a `SyntaxError` with the first
 * mistake as JSON: errors cross threads as text.
 * @param {string} path
 * @param {string} text
 * @returns {string}
 */
function transpile(path, text) {
  /** @type {typeof import("@ts-morph/common")} */
  const { ts } = require("@ts-morph/common");
  const { outputText, diagnostics = [] } = ts.transpileModule(text, {
    fileName: path,
    reportDiagnostics: true,
    compilerOptions: {
      target: ts.ScriptTarget.ES2022,
      module: ts.ModuleKind.ESNext,
      inlineSourceMap: true,
      allowJs: true,
    },
  });
  const [first] = diagnostics;
  if (first?.file) {
    const { line, character } = first.file.getLineAndCharacterOfPosition(
      first.start ?? 0,
    );
    const mistake = {
      path,
      line: line + 1,
      column: character + 1,
      text: ts.flattenDiagnosticMessageText(first.messageText, "\n"),
    };
    throw new SyntaxError(`switchyard-syntax ${JSON.stringify(mistake)}`);
  }
  return outputText;
}

/** @param {string} path */
function isThere(path) {
  return unsaved.has(path) || existsSync(path);
}

/** @param {string} url */
function claim(url) {
  users.add(url);
  return { url, format: "module", shortCircuit: true };
}

/**
 * The user's file of a relative import. Undefined for anything else, which Node.js resolves.
 * @param {string} specifier
 * @param {string} parent
 */
function relative(specifier, parent) {
  if (!/^\.{0,2}\//.test(specifier)) return undefined;
  const { href } = new URL(specifier, parent);
  const found = paths.importedAs.map(([written, as]) =>
    href.replace(written, as)
  ).find((url) => /\.m?[jt]s$/.test(url) && isThere(fileURLToPath(url)));
  if (
    found === undefined ||
    paths.inPackage.some((folder) => found.startsWith(folder))
  ) {
    return undefined;
  }
  return found;
}
