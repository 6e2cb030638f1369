/** Shared objects of C, cached in a folder by their inputs. */

import { createHash } from "node:crypto";
import { rmSync } from "node:fs";
import {
  mkdtemp,
  open,
  readFile,
  readlink,
  rm,
  symlink,
} from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import process from "node:process";
import { cachedIn } from "../../spec/bounded_cache.ts";
import { MachineError } from "../../spec/errors.ts";
import { sum } from "../../spec/sum.ts";
import { availableCores } from "../available_cores.ts";
import { rankIdentity } from "../mpi/world.ts";
import { CompileError, compileObject, type Compiler } from "./compiler.ts";
import { codeOf } from "../cache/folders.ts";
import {
  cacheFolder,
  hashOf,
  putFile,
  putSealed,
  readSealed,
  readUsed,
  tidy,
  writeSynced,
} from "../cache/used_files.ts";
import { groupsOfText, printGroup } from "./shared_text.ts";

/** A kernel as a C function without a name. */
export interface CFunction {
  /** Text before it, with its type as the macro KERNEL. Functions with equal preludes may share an object. */
  readonly prelude: string;
  /** Its parameters and its body. */
  readonly text: string;
  /** Bytes of scratch memory per thread. */
  readonly scratch: number;
  /** Workgroups along y from this on are executed by the next function. Undefined: none are. */
  readonly end?: number | undefined;
}

/** Location of a function. */
export interface CompiledFunction {
  /** The path of an object. */
  readonly path: string;
  /** Its name in the object. */
  readonly name: string;
  readonly scratch: number;
  readonly end?: number | undefined;
}

/** Options of `functions`. */
export interface FunctionsOptions {
  /** Key of everything that determines the printed text. Undefined if unknown. */
  readonly of: string | undefined;
  /** Called with the numbers of ready and of all functions. */
  readonly progress: (done: number, total: number) => void;
  /** Aborts compilation. */
  readonly signal?: AbortSignal;
}

/** Maximum characters of functions per compiler process, unless one function has more. */
const MAX_CHARACTERS = 1 << 16;

/** Bytes of a large object. */
const OBJECT_BYTES = 1 << 18;

/** The name of an object: the hash of its bytes. */
const OBJECT = /^([0-9a-f]{64})\.so$/;

/**
 * Compiles C, each text once. The folder contains objects (`HASH.so`, named by the hash of their bytes), links to them
 * by function name, and notes with the locations of a program's functions (`HASH.json`). Damaged files are regenerated.
 * An unusable folder is replaced by a private one, which is removed when the process exits.
 */
export class ObjectCache {
  readonly compiler: Compiler;
  #folder: string | undefined;
  /** The private folder, if used. */
  #private: Promise<string> | undefined;
  #unkept: string | undefined;
  /** Contents of verified objects. */
  readonly #complete = new Map<string, Buffer>();

  constructor(compiler: Compiler, folder = cacheFolder("native")) {
    this.compiler = compiler;
    this.#folder = folder;
    if (folder === undefined) this.#unkept = "this user has no home";
  }

  /** Why objects are not cached, if so. */
  get unkept(): string | undefined {
    return this.#unkept;
  }

  /** The path of the object of a text. Throws MachineError if it cannot be compiled. */
  async library(text: string): Promise<string> {
    const name = `l_${this.#hash(text)}`;
    // A link is valid if its object contains the name.
    const named = `${text}\nconst char ${name} = 0;\n`;
    return await this.#inFolder(async (folder) => {
      const [found] = await this.#linked(folder, [name]);
      return found
        ? found[1]
        : await this.#compile(folder, named, { names: [name] });
    });
  }

  /**
   * The locations of functions, in order. On a cache miss they are printed and compiled: several per process, with as
   * many processes as cores. Throws MachineError if one cannot be compiled.
   */
  async functions(
    print: () => readonly CFunction[],
    { of, ...options }: FunctionsOptions,
  ): Promise<CompiledFunction[]> {
    const note = of && `${this.#hash(of)}.json`;
    return await this.#inFolder(async (folder) => {
      const noted = note && await this.#noted(folder, note);
      if (noted) {
        options.progress(noted.length, noted.length);
        return noted;
      }
      const found = await this.#compiled(folder, print(), options);
      if (note) {
        const text = JSON.stringify(
          found.map((one) => ({ ...one, path: path.basename(one.path) })),
        );
        await putSealed(folder, note, Buffer.from(text));
      }
      return found;
    });
  }

  /** The bytes that an earlier process saved with `putNote`, for the same compiler and processor. */
  async note(key: string): Promise<Uint8Array | undefined> {
    const folder = this.#folder;
    return folder === undefined
      ? undefined
      : await readSealed(path.join(folder, `${this.#hash(key)}.json`));
  }

  /** Saves bytes next to the objects. */
  async putNote(key: string, bytes: Uint8Array): Promise<void> {
    await this.#inFolder((folder) =>
      putSealed(folder, `${this.#hash(key)}.json`, bytes)
    );
  }

  /** Replaces the folder by a private one, for example if the system does not load files from it. */
  leave(reason: string): void {
    this.#unkept ??= reason;
    this.#folder = undefined;
  }

  /** Executes an action in the folder; if it fails because of the folder, repeats it in a private one. */
  async #inFolder<T>(action: (folder: string) => Promise<T>): Promise<T> {
    const folder = this.#folder;
    if (folder !== undefined) {
      try {
        return await action(folder);
      } catch (error) {
        const ofFolder = error instanceof CompileError
          ? !await isUsable(folder)
          : codeOf(error) !== undefined;
        if (!ofFolder) throw error;
        this.leave(messageOf(error));
      }
    }
    try {
      return await action(await (this.#private ??= privateFolder()));
    } catch (error) {
      if (codeOf(error) === undefined) throw error;
      throw new MachineError(
        `Cannot compile kernels: ${
          messageOf(error)
        }. Give the process a folder to write to (XDG_CACHE_HOME or TMPDIR), or use --adapter cpu`,
      );
    }
  }

  /** The note in a file. Undefined if there is none, or if an object is damaged. */
  async #noted(
    folder: string,
    note: string,
  ): Promise<CompiledFunction[] | undefined> {
    const bytes = await readSealed(path.join(folder, note));
    if (bytes === undefined) return undefined;
    const found = (JSON.parse(bytes.toString()) as CompiledFunction[])
      .map((one) => ({ ...one, path: path.join(folder, one.path) }));
    const there = await this.#haveAll(found);
    return there.every(Boolean) ? found : undefined;
  }

  /** Whether objects match the hashes in their names and have functions of these names. */
  async #haveAll(
    wanted: readonly Pick<CompiledFunction, "path" | "name">[],
  ): Promise<boolean[]> {
    const objects = new Set(wanted.map(({ path }) => path));
    await Promise.all(Array.from(objects, (object) => this.#open(object)));
    return wanted.map(({ path, name }) =>
      this.#complete.get(path)?.includes(`${name}\0`) ?? false
    );
  }

  async #open(object: string): Promise<void> {
    if (this.#complete.has(object)) return;
    const hash = OBJECT.exec(path.basename(object))?.[1];
    const bytes = await readUsed(object);
    if (bytes && hashOf(bytes).toString("hex") === hash) {
      this.#complete.set(object, bytes);
    }
  }

  async #compiled(
    folder: string,
    functions: readonly CFunction[],
    { progress, ...options }: Omit<FunctionsOptions, "of">,
  ): Promise<CompiledFunction[]> {
    const names = functions.map(({ prelude, text }) =>
      `f_${this.#hash(prelude, text)}`
    );
    const paths = new Map<string, string>();
    const missing = new Map(names.map((name, i) => [name, functions[i]!]));
    const look = async (wanted: readonly string[]) => {
      for (const [name, object] of await this.#linked(folder, wanted)) {
        paths.set(name, object);
        missing.delete(name);
      }
      progress(names.length - missing.size, names.length);
    };
    await look([...missing.keys()]);
    const workers = availableCores();
    const batches = batchesOf(missing, workers);
    // Ranks that start together begin with different batches, so that each finds the results of others.
    const first = (rankIdentity()?.rank ?? 0) * workers;
    let next = 0;
    let failed = false;
    const worker = async () => {
      while (next < batches.length && !failed) {
        const batch = batches[(first + next++) % batches.length]!;
        await look(batch.filter((name) => missing.has(name)));
        const left = batch.filter((name) => missing.has(name));
        if (left.length === 0) continue;
        const { prelude } = missing.get(left[0]!)!;
        const texts = new Map(
          left.map((name) => [name, missing.get(name)!.text]),
        );
        const printed = groupsOfText(texts).map((names) =>
          printGroup(names, (name) => texts.get(name)!)
        );
        const text = [prelude, ...printed].join("\n");
        const object = await this.#compile(folder, text, {
          names: left,
          ...options,
        });
        for (const name of left) {
          paths.set(name, object);
          missing.delete(name);
        }
        progress(names.length - missing.size, names.length);
      }
    };
    const ended = await Promise.allSettled(
      Array.from(
        { length: workers },
        () =>
          worker().catch((error) => {
            failed = true;
            throw error;
          }),
      ),
    );
    for (const end of ended) if (end.status === "rejected") throw end.reason;
    return names.map((name, i) => {
      const { scratch, end } = functions[i]!;
      const found = { path: paths.get(name)!, name, scratch };
      return end === undefined ? found : { ...found, end };
    });
  }

  /** The objects of links, if they are intact. */
  async #linked(
    folder: string,
    names: readonly string[],
  ): Promise<(readonly [name: string, object: string])[]> {
    const links = await Promise.all(names.map(async (name) => {
      const object = await readlink(path.join(folder, name))
        .catch(() => undefined);
      return object === undefined
        ? []
        : [[name, path.join(folder, path.basename(object))] as const];
    }));
    const there = await this.#haveAll(
      links.flat().map(([name, path]) => ({ name, path })),
    );
    return links.flat().filter((_, i) => there[i]);
  }

  /** The path of the object of a text, with links to it by these names. */
  async #compile(
    folder: string,
    text: string,
    { names, ...options }: {
      readonly names: readonly string[];
      readonly signal?: AbortSignal;
    },
  ): Promise<string> {
    let bytes = Buffer.of();
    const object = await putFile(folder, async (part) => {
      await compileObject(this.compiler, text, { to: part, ...options });
      const handle = await open(part, "r+");
      try {
        await handle.sync();
      } finally {
        await handle.close();
      }
      bytes = await readFile(part);
      return `${hashOf(bytes).toString("hex")}.so`;
    });
    this.#complete.set(object, bytes);
    await Promise.all(
      names.map((name) =>
        putFile(folder, async (part) => {
          await symlink(path.basename(object), part);
          return name;
        })
      ),
    );
    if (folder === this.#folder) void tidy(folder);
    return object;
  }

  /** A hash of texts and of the compiler and its options. */
  #hash(...texts: readonly string[]): string {
    const hash = createHash("sha256").update(this.compiler.identity);
    for (const text of texts) hash.update(text);
    return hash.digest("hex");
  }
}

/** A folder of this process alone, removed when it exits. */
async function privateFolder(): Promise<string> {
  const folder = await mkdtemp(path.join(tmpdir(), "switchyard-"));
  process.on("exit", () => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** Whether a folder can store a file of the size of an object. */
async function isUsable(folder: string): Promise<boolean> {
  try {
    const file = await putFile(folder, async (part) => {
      await writeSynced(part, new Uint8Array(OBJECT_BYTES));
      return `probe.${crypto.randomUUID()}`;
    });
    await rm(file);
    return true;
  } catch {
    return false;
  }
}

function messageOf(error: unknown): string {
  if (error instanceof CompileError) return error.state;
  return error instanceof Error ? error.message : String(error);
}

/**
 * Names of functions that are compiled together: of equal prelude, with at most an equal share of all text per worker.
 * The longest batch is first: if it started last, it would be compiled alone.
 */
function batchesOf(
  functions: ReadonlyMap<string, CFunction>,
  workers: number,
): string[][] {
  const preludes = new Map<string, Map<string, string>>();
  for (const [name, { prelude, text }] of functions) {
    cachedIn(preludes, prelude, { create: () => new Map() }).set(name, text);
  }
  const groups = Array.from(
    preludes.values(),
    (texts) =>
      groupsOfText(texts).map((names) => ({
        names,
        length: texts.get(names[0]!)!.length,
      })),
  );
  const all = sum(groups.flat().map(({ length }) => length));
  const max = Math.min(MAX_CHARACTERS, all / workers);
  const batches: { readonly names: string[]; length: number }[] = [];
  for (const ofPrelude of groups) {
    let batch = { names: [] as string[], length: Infinity };
    for (const { names, length } of ofPrelude) {
      if (batch.length + length > max) {
        batches.push(batch = { names: [], length: 0 });
      }
      batch.names.push(...names);
      batch.length += length;
    }
  }
  return batches.sort((a, b) => b.length - a.length).map(({ names }) => names);
}
