// @ts-check
/**
 * Node's module hooks for loading users' model files. They run on Node's own loader thread, before any TypeScript
 * loader that the process may have, so this file is plain JavaScript. See `load.ts` for the other side.
 *
 * Only files that are reached from a model file by `MODEL_SCHEME` and relative imports are touched. They are ES
 * modules whatever the nearest package.json says, and `switchyard-moe` in them is the package that runs.
 */

import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";

/** What a model file is imported by: this, and its URL. */
const MODEL_SCHEME = "switchyard-model:";

/** @type {{ entries: Record<string, string>, importedAs: [RegExp, string][], own: string[] }} */
let places = { entries: {}, importedAs: [], own: [] };

/** URLs of users' files. @type {Set<string>} */
const users = new Set();

/** Texts that an editor has not saved, by path. @type {Map<string, string>} */
let unsaved = new Map();

/** Leads to the side of `load.ts`. @type {import("node:worker_threads").MessagePort} */
let side;

/** Who waits for a text of JavaScript, by the number of what was asked. @type {Map<number, (answer: any) => void>} */
const waiting = new Map();

/**
 * `entries`: what the package's names resolve to. `importedAs`: what a relative import may mean. `own`: URLs of the folders with this package's own code. `port` brings
 * texts that are not saved, and is answered when they are known; and it brings JavaScript for the TypeScript that was sent.
 * @param {typeof places & { port: import("node:worker_threads").MessagePort }} given
 */
export function initialize({ port, ...given }) {
  places = given;
  side = port;
  port.on("message", ({ texts, id, answer }) => {
    if (texts) {
      unsaved = texts;
      port.postMessage({});
      return;
    }
    waiting.get(id)?.(answer);
    waiting.delete(id);
    if (waiting.size === 0) port.unref();
  });
  port.unref();
}

/** @type {import("node:module").ResolveHook} */
export async function resolve(specifier, context, nextResolve) {
  if (specifier.startsWith(MODEL_SCHEME)) {
    return claim(specifier.slice(MODEL_SCHEME.length));
  }
  if (context.parentURL !== undefined && users.has(context.parentURL)) {
    const entry = places.entries[specifier];
    // The rest of the chain knows how this package is loaded; from no parent, so that no query is inherited.
    if (entry !== undefined) {
      return await nextResolve(entry, { ...context, parentURL: undefined });
    }
    const url = relative(specifier, context.parentURL);
    // What a file of some version imports is of that version too.
    const { search } = new URL(context.parentURL);
    if (url !== undefined) return claim(url + search);
  }
  return await nextResolve(specifier, context);
}

/** @type {import("node:module").LoadHook} */
export async function load(url, context, nextLoad) {
  if (!users.has(url)) return await nextLoad(url, context);
  const path = fileURLToPath(url);
  const text = unsaved.get(path) ?? await readFile(path, "utf8");
  const { code, mistake } = await transpile(path, text);
  // Errors cross the thread as text, so the place is sent in it.
  if (mistake) {
    throw new SyntaxError(`switchyard-syntax ${JSON.stringify(mistake)}`);
  }
  return { format: "module", source: code, shortCircuit: true };
}

let asked = 0;

/**
 * The JavaScript of a text of TypeScript. The other side has TypeScript loaded, or will have.
 * @param {string} path
 * @param {string} text
 * @returns {Promise<{ code?: string, mistake?: object }>}
 */
function transpile(path, text) {
  const id = asked++;
  side.ref();
  return new Promise((resolve) => {
    waiting.set(id, resolve);
    side.postMessage({ id, path, text });
  });
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
