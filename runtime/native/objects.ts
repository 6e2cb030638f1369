/** Shared objects of C, kept in a cache folder by what they are made of. */

import { createHash } from "node:crypto";
import { readFile, readlink, symlink, writeFile } from "node:fs/promises";
import { availableParallelism } from "node:os";
import path from "node:path";
import process from "node:process";
import { sum } from "../../spec/sum.ts";
import { compileObject, type Compiler } from "./compiler.ts";
import { cacheFolder, isThere, putFile, tidy } from "../cache/used_files.ts";

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
  /** Called when some are there. */
  readonly progress: (done: number) => void;
}

/** Characters of functions that one process of the compiler is given at most, unless one function has more. */
const MOST_CHARACTERS = 1 << 16;

/**
 * Compiles C, each text once. In the folder are objects (`HASH.so`), links to them by the names of functions that they
 * have, and notes of where the functions of a program are (`HASH.json`). What was not used for longest is removed when
 * there is too much.
 */
export class ObjectCache {
  readonly compiler: Compiler;
  readonly #folder: string;

  constructor(compiler: Compiler, folder: string = cacheFolder("native")) {
    this.compiler = compiler;
    this.#folder = folder;
  }

  /** The path of the object of a whole text. Throws MachineError where it cannot be compiled. */
  async library(text: string): Promise<string> {
    const hash = this.#hash(text);
    const file = this.#at(`${hash}.so`);
    if (await isThere(file)) return file;
    await putFile(file, (part) =>
      compileObject(this.compiler, text, {
        to: part,
        failed: this.#at(`${hash}.c`),
      }));
    void tidy(this.#folder);
    return file;
  }

  /**
   * Where functions are, in order. They are printed where nothing is noted, and those that are not there are compiled: several
   * in one process, as many processes at a time as the machine runs. Throws MachineError where one cannot be compiled.
   */
  async functions(
    print: () => readonly CFunction[],
    { of, progress }: FunctionsOptions,
  ): Promise<CompiledFunction[]> {
    const note = of && this.#at(`${this.#hash(of)}.json`);
    const noted = note && await this.#noted(note);
    if (noted) {
      progress(noted.length);
      return noted;
    }
    const found = await this.#compiled(print(), progress);
    if (note) {
      const text = JSON.stringify(
        found.map((one) => ({ ...one, path: path.basename(one.path) })),
      );
      // Without the note, functions are printed again.
      await putFile(note, (part) => writeFile(part, text)).catch(() => {});
    }
    return found;
  }

  /** What is noted in a file; undefined where there is none, or an object is gone. */
  async #noted(file: string): Promise<CompiledFunction[] | undefined> {
    try {
      const found = JSON.parse(
        await readFile(file, "utf8"),
      ) as CompiledFunction[];
      const objects = new Set(found.map(({ path }) => this.#at(path)));
      const there = await Promise.all([file, ...objects].map(isThere));
      return there.every(Boolean)
        ? found.map((one) => ({ ...one, path: this.#at(one.path) }))
        : undefined;
    } catch {
      return undefined;
    }
  }

  async #compiled(
    functions: readonly CFunction[],
    progress: (done: number) => void,
  ): Promise<CompiledFunction[]> {
    const names = functions.map(({ prelude, text }) =>
      `f_${this.#hash(prelude, text)}`
    );
    const paths = new Map<string, string>();
    const missing = new Map(names.map((name, i) => [name, functions[i]!]));
    const look = async (wanted: readonly string[]) => {
      for (const [name, object] of await this.#linked(wanted)) {
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
        const object = await this.#together(left, missing);
        for (const name of left) {
          paths.set(name, object);
          missing.delete(name);
        }
        progress(names.length - missing.size);
      }
    };
    await Promise.all(
      Array.from(
        { length: availableParallelism() },
        () =>
          worker().catch((error) => {
            failed = true;
            throw error;
          }),
      ),
    );
    return names.map((name, i) => ({
      path: paths.get(name)!,
      name,
      scratch: functions[i]!.scratch,
    }));
  }

  /** The objects that links lead to, where these are there. */
  async #linked(
    names: readonly string[],
  ): Promise<(readonly [name: string, object: string])[]> {
    const links = await Promise.all(names.map(async (name) => {
      const object = await readlink(this.#at(name)).catch(() => undefined);
      return object === undefined ? [] : [[name, this.#at(object)] as const];
    }));
    const objects = [...new Set(links.flat().map(([, object]) => object))];
    const there = await Promise.all(objects.map(isThere));
    const gone = new Set(objects.filter((_, i) => !there[i]));
    return links.flat().filter(([, object]) => !gone.has(object));
  }

  /** The path of one object of several functions, and a link to it for each. */
  async #together(
    names: readonly string[],
    functions: ReadonlyMap<string, CFunction>,
  ): Promise<string> {
    const { prelude } = functions.get(names[0]!)!;
    const texts = names.map((name) =>
      `void ${name}${functions.get(name)!.text}`
    );
    const object = await this.library([prelude, ...texts].join("\n"));
    await Promise.all(names.map((name) =>
      putFile(
        this.#at(name),
        (part) => symlink(path.basename(object), part),
      )
    ));
    return object;
  }

  #at(name: string): string {
    return path.join(this.#folder, name);
  }

  /** A hash of texts and of what makes objects of them. */
  #hash(...texts: readonly string[]): string {
    const hash = createHash("sha256").update(this.compiler.identity);
    for (const text of texts) hash.update(text);
    return hash.digest("hex");
  }
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
