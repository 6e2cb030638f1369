// @ts-check
/**
 * Module hooks that load users' model files. They run on the thread that imports, or, before Node 22.15, on Node's loader
 * thread, where no TypeScript can be loaded; so this file is plain JavaScript. Every hook returns at once: a hook that waits
 * for the importing thread never ends. See `load.ts` for the other side.
 *
 * Only files that are reached from a model file by `MODEL_SCHEME` and relative imports are touched. They are ES
 * modules whatever the nearest package.json says, and `switchyard-moe` in them is the package that runs.
 */

import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import process from "node:process";
import { fileURLToPath } from "node:url";

/** What a model file is imported by: this, and its URL. */
const MODEL_SCHEME = "switchyard-model:";

const require = createRequire(import.meta.url);

/**
 * `entries`: URLs of the package's modules, by name. `importedAs`: what a relative import may mean. `own`: URLs of the folders with this package's own code.
 * @type {{ entries: Record<string, string>, importedAs: [RegExp, string][], own: string[] }}
 */
let places = { entries: {}, importedAs: [], own: [] };

/** URLs of users' files. @type {Set<string>} */
const users = new Set();

/** Texts that an editor has not saved, by path. @type {ReadonlyMap<string, string>} */
let unsaved = new Map();

/** @param {typeof places} given */
export function usePlaces(given) {
  places = given;
}

/** @param {ReadonlyMap<string, string>} texts */
export function useTexts(texts) {
  unsaved = texts;
}

/**
 * Called on Node's loader thread. `port` sends texts that are not saved, and is answered when they are known.
 * @param {typeof places & { port: import("node:worker_threads").MessagePort }} given
 */
export function initialize({ port, ...given }) {
  usePlaces(given);
  port.on("message", (texts) => {
    useTexts(texts);
    port.postMessage({});
  });
  port.unref();
}

/**
 * Hooks of both kinds: the next of a chain returns a promise on the loader thread, and a result elsewhere.
 * @typedef {(specifier: string, context: { parentURL?: string }, next: (specifier: string, context: object) => any) => any} ResolveHook
 * @typedef {(url: string, context: object, next: (url: string, context: object) => any) => any} LoadHook
 */

/** @type {ResolveHook} */
export function resolve(specifier, context, nextResolve) {
  if (specifier.startsWith(MODEL_SCHEME)) {
    return claim(specifier.slice(MODEL_SCHEME.length));
  }
  if (context.parentURL !== undefined && users.has(context.parentURL)) {
    const entry = places.entries[specifier];
    // The rest of the chain knows how this package is loaded; from no parent, so that no query is inherited.
    if (entry !== undefined) {
      return nextResolve(entry, { ...context, parentURL: undefined });
    }
    const url = relative(specifier, context.parentURL);
    // What a file of some version imports is of that version too.
    const { search } = new URL(context.parentURL);
    if (url !== undefined) return claim(url + search);
  }
  return nextResolve(specifier, context);
}

/** @type {LoadHook} */
export function load(url, context, nextLoad) {
  // Where there are hooks, Deno reads addons as text.
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
 * The JavaScript of a text, with a map to its source. Types are left out, right or wrong. Throws a `SyntaxError` with the
 * first mistake as JSON: errors cross threads as text.
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
 * The user's file that a relative import means. Undefined for anything else, which Node resolves.
 * @param {string} specifier
 * @param {string} parent
 */
function relative(specifier, parent) {
  if (!/^\.{0,2}\//.test(specifier)) return undefined;
  const { href } = new URL(specifier, parent);
  const found = places.importedAs.map(([written, as]) =>
    href.replace(written, as)
  ).find((url) => /\.m?[jt]s$/.test(url) && isThere(fileURLToPath(url)));
  if (found === undefined || places.own.some((own) => found.startsWith(own))) {
    return undefined;
  }
  return found;
}
