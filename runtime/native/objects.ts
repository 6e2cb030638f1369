/** Shared objects of C, kept in a cache folder by what they are made of. */

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
import { availableParallelism, tmpdir } from "node:os";
import path from "node:path";
import process from "node:process";
import { MachineError } from "../../spec/errors.ts";
import { sum } from "../../spec/sum.ts";
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

/** A kernel as a function in C that has no name yet. */
export interface CFunction {
  /** What stands before it. Functions before which the same stands may be in one object. */
  readonly prelude: string;
  /** Its parameters and its body. */
  readonly text: string;
  /** Bytes of scratch memory that a thread needs. */
  readonly scratch: number;
}

/** Where a function is. */
export interface CompiledFunction {
  /** The path of an object. */
  readonly path: string;
  /** What it is called there. */
  readonly name: string;
  readonly scratch: number;
}

/** Options of `functions`. */
export interface FunctionsOptions {
  /** All that decides what is printed; undefined where that is not known. */
  readonly of: string | undefined;
  /** Called with the number of functions that are ready. */
  readonly progress: (done: number) => void;
  /** Ends compilation. */
  readonly signal?: AbortSignal;
}

/** Characters of functions that one process of the compiler is given at most, unless one function has more. */
const MOST_CHARACTERS = 1 << 16;

/** Bytes of a large object. */
const OBJECT_BYTES = 1 << 18;

/** The name of an object: the hash of its bytes. */
const OBJECT = /^([0-9a-f]{64})\.so$/;

/**
 * Compiles C, each text once. The folder has objects (`HASH.so`, by the hash of their bytes), links to them by the names of
 * functions, and notes of where the functions of a program are (`HASH.json`). What is not whole is made again. A folder that
 * cannot be used is left for a private one, which is removed at the end of the process.
 */
export class ObjectCache {
  readonly compiler: Compiler;
  #folder: string | undefined;
  /** A private folder, once it is used. */
  #private: Promise<string> | undefined;
  #unkept: string | undefined;
  /** Bytes of objects that are whole. */
  readonly #whole = new Map<string, Buffer>();

  constructor(compiler: Compiler, folder = cacheFolder("native")) {
    this.compiler = compiler;
    this.#folder = folder;
    if (folder === undefined) this.#unkept = "this user has no home";
  }

  /** Why objects are not kept, if they are not. */
  get unkept(): string | undefined {
    return this.#unkept;
  }

  /** The path of the object of a whole text. Throws MachineError where it cannot be compiled. */
  async library(text: string): Promise<string> {
    const name = `l_${this.#hash(text)}`;
    return await this.#inFolder(async (folder) => {
      const [found] = await this.#linked(folder, [name]);
      return found
        ? found[1]
        : await this.#compile(folder, text, { names: [name] });
    });
  }

  /**
   * Where functions are, in order. They are printed where nothing is noted, and those that are not there are compiled: several
   * in one process, as many processes at a time as the machine runs. Throws MachineError where one cannot be compiled.
   */
  async functions(
    print: () => readonly CFunction[],
    { of, ...options }: FunctionsOptions,
  ): Promise<CompiledFunction[]> {
    const note = of && `${this.#hash(of)}.json`;
    return await this.#inFolder(async (folder) => {
      const noted = note && await this.#noted(folder, note);
      if (noted) {
        options.progress(noted.length);
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

  /** Leave the folder for a private one: for a system that does not load what is in it, say. */
  leave(reason: string): void {
    this.#unkept ??= reason;
    this.#folder = undefined;
  }

  /** Do something in the folder; what fails because of the folder is done again in a private one. */
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

  /** What is noted in a file; undefined where there is none, or an object is not whole. */
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

  /** Whether objects have the bytes that their names say, and functions of these names. */
  async #haveAll(
    wanted: readonly Pick<CompiledFunction, "path" | "name">[],
  ): Promise<boolean[]> {
    const objects = new Set(wanted.map(({ path }) => path));
    await Promise.all(Array.from(objects, (object) => this.#open(object)));
    return wanted.map(({ path, name }) =>
      this.#whole.get(path)?.includes(`${name}\0`) ?? false
    );
  }

  async #open(object: string): Promise<void> {
    if (this.#whole.has(object)) return;
    const hash = OBJECT.exec(path.basename(object))?.[1];
    const bytes = await readUsed(object);
    if (bytes && hashOf(bytes).toString("hex") === hash) {
      this.#whole.set(object, bytes);
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
      progress(names.length - missing.size);
    };
    await look([...missing.keys()]);
    const batches = batchesOf(missing);
    // Processes that start together begin at different batches, so that each finds what others have compiled.
    const first = process.pid * 7;
    let next = 0;
    let failed = false;
    const worker = async () => {
      while (next < batches.length && !failed) {
        const batch = batches[(first + next++) % batches.length]!;
        await look(batch.filter((name) => missing.has(name)));
        const left = batch.filter((name) => missing.has(name));
        if (left.length === 0) continue;
        const { prelude } = missing.get(left[0]!)!;
        const texts = left.map((name) =>
          `void ${name}${missing.get(name)!.text}`
        );
        const text = [prelude, ...texts].join("\n");
        const object = await this.#compile(folder, text, {
          names: left,
          ...options,
        });
        for (const name of left) {
          paths.set(name, object);
          missing.delete(name);
        }
        progress(names.length - missing.size);
      }
    };
    const ended = await Promise.allSettled(
      Array.from(
        { length: availableParallelism() },
        () =>
          worker().catch((error) => {
            failed = true;
            throw error;
          }),
      ),
    );
    for (const end of ended) if (end.status === "rejected") throw end.reason;
    return names.map((name, i) => ({
      path: paths.get(name)!,
      name,
      scratch: functions[i]!.scratch,
    }));
  }

  /** The objects that links lead to, where these are whole. */
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

  /** The path of the object of a text, and links to it by these names. */
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
    this.#whole.set(object, bytes);
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

  /** A hash of texts and of what makes objects of them. */
  #hash(...texts: readonly string[]): string {
    const hash = createHash("sha256").update(this.compiler.identity);
    for (const text of texts) hash.update(text);
    return hash.digest("hex");
  }
}

/** A folder of this process alone, which is removed at its end. */
async function privateFolder(): Promise<string> {
  const folder = await mkdtemp(path.join(tmpdir(), "switchyard-"));
  process.on("exit", () => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** Whether a folder takes a file of the size of an object. */
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

/** Names of functions that are compiled together: those with one prelude, of about equally long texts for all cores. */
function batchesOf(functions: ReadonlyMap<string, CFunction>): string[][] {
  const all = sum(Array.from(functions.values(), ({ text }) => text.length));
  const most = Math.min(MOST_CHARACTERS, all / availableParallelism());
  const batches: string[][] = [];
  const open = new Map<string, { names: string[]; length: number }>();
  for (const [name, { prelude, text }] of functions) {
    let batch = open.get(prelude);
    if (!batch || batch.length + text.length > most) {
      open.set(prelude, batch = { names: [], length: 0 });
      batches.push(batch.names);
    }
    batch.names.push(name);
    batch.length += text.length;
  }
  return batches;
}
