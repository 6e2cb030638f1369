/**
 * Loads users' model files: TypeScript or JavaScript, in any folder, with `switchyard-moe` resolved to the running
 * code.
 */

import { statSync } from "node:fs";
import module from "node:module";
import { basename, dirname, extname, resolve, sep } from "node:path";
import process from "node:process";
import { pathToFileURL } from "node:url";
import { MessageChannel } from "node:worker_threads";
import {
  DataError,
  LowerError,
  ModelError,
  type Span,
} from "../../spec/errors.ts";
import { exampleOf, hasExample, isModel, type Model } from "../dsl/model.ts";
import { codeFrame } from "./frame.ts";
import {
  hooksFile,
  IMPORTED_AS,
  packageFolders,
  runningModules,
} from "./package_paths.ts";
import { isUnsaved, readSource, useUnsaved } from "./unsaved.ts";

/** A model file, and the name of an export, if given. */
export interface ModelReference {
  readonly path: string;
  readonly name: string | undefined;
}

/** Parses `file.ts` or `file.ts#export`. */
export function parseReference(reference: string): ModelReference {
  const hash = reference.lastIndexOf("#");
  return hash < 0
    ? { path: reference, name: undefined }
    : { path: reference.slice(0, hash), name: reference.slice(hash + 1) };
}

/**
 * The model of `file.ts#export`; `file.ts` refers to its only exported model. Throws a `DataError` if the file does not
 * exist, and a `ModelError` if it has no such model. `version` as for `loadModels`.
 */
export async function resolveModel(
  reference: string,
  version?: number,
): Promise<Model> {
  const { path, name } = parseReference(reference);
  return chooseModel(await loadModels(path, version), { path, name });
}

/**
 * The export of a kind named by `file.ts#export`; `file.ts` refers to the only one of that kind. Throws as
 * `resolveModel`.
 */
export async function resolveExport<T>(
  reference: string,
  kind: ExportKind<T>,
): Promise<T> {
  const { path, name } = parseReference(reference);
  return choose(only(await importFile(path), kind.is), { path, name }, kind);
}

/** The model of a reference among the models of its file. */
function chooseModel(
  models: Readonly<Record<string, Model>>,
  reference: ModelReference,
): Model {
  return choose(models, reference, MODEL);
}

/** A kind of export: its name, the op that creates it, and its test. */
export interface ExportKind<T> {
  readonly noun: string;
  readonly op: string;
  readonly is: (value: unknown) => value is T;
}

/** A model, as an export. */
export const MODEL: ExportKind<Model> = {
  noun: "model",
  op: "model(…)",
  is: isModel,
};

function choose<T>(
  found: Readonly<Record<string, T>>,
  { path, name }: ModelReference,
  { noun, op }: Pick<ExportKind<T>, "noun" | "op">,
): T {
  const file = basename(path);
  const names = Object.keys(found);
  const list = names.map((known) => `'${known}'`).join(", ");
  const [first] = names;
  if (first === undefined) {
    throw new ModelError(
      `Cannot find a ${noun} in '${file}': it exports none. Export what '${op}' returns`,
    );
  }
  if (name === undefined && names.length > 1) {
    throw new ModelError(
      `Cannot choose a ${noun} of '${file}': it exports ${list}. Name one, as in '${file}#${first}'`,
    );
  }
  const chosen = name ?? first;
  if (!Object.hasOwn(found, chosen)) {
    throw new ModelError(
      `Cannot find ${noun} '${chosen}' in '${file}': it exports ${list}. Name one of those`,
    );
  }
  return found[chosen]!;
}

function only<T>(
  exported: object,
  is: (value: unknown) => value is T,
): Record<string, T> {
  return Object.fromEntries(
    Object.entries(exported).filter((entry): entry is [string, T] =>
      is(entry[1])
    ),
  );
}

/**
 * Imports a model file and returns the exported models by name. Importing executes the file: once per `version`, with
 * its imports.
 */
export async function loadModels(
  path: string,
  version = 0,
): Promise<Record<string, Model>> {
  return only(await importFile(path, version), isModel);
}

/**
 * `loadModels`, or only the named export, with the example of each other export that builds models, such as a family.
 * Throws as `resolveModel`.
 */
export async function loadExamples(
  { path, name }: ModelReference,
  version = 0,
): Promise<Model[]> {
  const found = only(await importFile(path, version), hasExample);
  const chosen = name !== undefined || Object.keys(found).length === 0
    ? [choose(found, { path, name }, MODEL)]
    : Object.values(found);
  return chosen.flatMap((value) => exampleOf(value) ?? []);
}

async function importFile(path: string, version = 0): Promise<object> {
  if (!isUnsaved(resolve(path))) requireModelFile(path);
  await useHooks();
  const { href } = pathToFileURL(resolve(path));
  const query = version === 0 ? "" : `?version=${version}`;
  try {
    return await import(`switchyard-model:${href}${query}`);
  } catch (error) {
    throw loadError(error, path);
  }
}

/** Throws a `DataError` unless the path is a file that could be a model file. */
export function requireModelFile(path: string): void {
  const file = basename(path);
  const found = statSync(path, { throwIfNoEntry: false });
  if (!found) {
    throw new DataError(
      `Cannot read '${path}': there is no such file or folder. Check the path`,
    );
  }
  if (!found.isFile() || !/^\.m?[jt]s$/.test(extname(path))) {
    throw new DataError(
      `Cannot load '${file}': it is no TypeScript or JavaScript file. Give a file that ends in '.ts' or '.js'`,
    );
  }
}

/** Sets unsaved texts by path for files loaded from now on; other files are read from disk. */
export async function loadUnsaved(
  texts: ReadonlyMap<string, string>,
): Promise<void> {
  useUnsaved(texts);
  const { useTexts } = await useHooks();
  await useTexts(texts);
}

/** Registered hooks. `useTexts` sets unsaved texts. */
interface Hooks {
  useTexts(texts: ReadonlyMap<string, string>): void | Promise<void>;
}

/** Exports of `model_hooks.mjs`. */
interface ModelHooks extends Hooks {
  readonly resolve: unknown;
  readonly load: unknown;
  usePaths(paths: object): void;
}

/** Hooks apply to the entire process, so they are registered once. */
let registered: Promise<Hooks> | undefined;

async function useHooks(): Promise<Hooks> {
  registered ??= registerAll();
  try {
    return await registered;
  } catch (error) {
    registered = undefined;
    throw error;
  }
}

async function registerAll(): Promise<Hooks> {
  const { href } = pathToFileURL(hooksFile());
  const { registerHooks } = module as unknown as {
    registerHooks?(hooks: object): void;
  };
  const entries = [...runningModules()].map((
    [name, file],
  ) => [name, pathToFileURL(file).href]);
  const paths = {
    entries: Object.fromEntries(entries),
    importedAs: IMPORTED_AS,
    inPackage: packageFolders().map((folder) => pathToFileURL(folder).href),
  };
  // Call sites are read from stack traces, which must refer to the original source.
  process.setSourceMapsEnabled(true);
  if (!registerHooks) return registerThread(href, paths);
  const hooks: ModelHooks = await import(href);
  hooks.usePaths(paths);
  registerHooks({ resolve: hooks.resolve, load: hooks.load });
  return hooks;
}

/** Registers hooks on Node's loader thread, the only kind before Node.js 22.15. */
function registerThread(href: string, paths: object): Hooks {
  const { port1, port2 } = new MessageChannel();
  module.register(href, {
    data: { ...paths, port: port2 },
    transferList: [port2],
  });
  return {
    useTexts: (texts) =>
      new Promise((resolve) => {
        port1.once("message", resolve);
        port1.postMessage(texts);
      }),
  };
}

/** An import error of a file as one of our errors. */
function loadError(error: unknown, path: string): Error {
  if (!(error instanceof Error)) {
    return new ModelError(
      `Cannot load '${basename(path)}': it throws ${
        String(error)
      }. Correct the file`,
    );
  }
  if (
    error instanceof ModelError || error instanceof DataError ||
    error instanceof LowerError
  ) return error;
  const syntax = /\bswitchyard-syntax (.*)$/m.exec(error.message)?.[1];
  if (syntax !== undefined) {
    const { path: file, line, column, text } = JSON.parse(syntax);
    const span = { file, line, column };
    const frame = codeFrame(span, readSource(file) ?? "");
    return new ModelError(
      `Cannot load '${basename(file)}': ${
        lowerFirst(text)
      }. Correct the syntax\n${frame}`,
      span,
    );
  }
  const span = spanInStack(error, path);
  // Without a position in the file, a parser has exhausted the call stack.
  if (!span && isStackOverflow(error)) {
    return new ModelError(
      `Cannot load '${
        basename(path)
      }': its expressions are nested too deeply. Use fewer nested parentheses, brackets or calls`,
    );
  }
  const folder = dirname(resolve(path)) + sep;
  const what = error.message.split("\n")[0]!.replaceAll(folder, "");
  // Errors thrown by the file itself have a position in it; errors of Node.js about the file do not.
  const state = span && !(error instanceof SyntaxError)
    ? `it throws '${what}'`
    : lowerFirst(what);
  return new ModelError(
    `Cannot load '${basename(path)}': ${state}. Correct the file`,
    span,
  );
}

/** Returns whether an error reports an exhausted call stack. */
export function isStackOverflow(error: unknown): boolean {
  return error instanceof RangeError && /call stack/.test(error.message);
}

/** Converts a message to the middle of a sentence. */
export function lowerFirst(text: string): string {
  const plain = text.replace(/\.$/, "");
  return /^[A-Z][a-z]/.test(plain)
    ? plain[0]!.toLowerCase() + plain.slice(1)
    : plain;
}

/** The innermost position of an error's stack in the given file. */
export function spanInStack(error: Error, path: string): Span | undefined {
  const file = resolve(path);
  for (const line of (error.stack ?? "").split("\n")) {
    const match = /\(?((?:file:\/\/)?\/[^()]*):(\d+):(\d+)\)?$/.exec(line);
    if (!match) continue;
    const [, where, row, column] = match;
    if (where === file || where === pathToFileURL(file).href) {
      return { file, line: Number(row), column: Number(column) };
    }
  }
  return undefined;
}
