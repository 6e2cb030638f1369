/** Class `cache`: caches of compiled kernels rebuild damaged files and return only correct entries. */

import {
  cpSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import path from "node:path";
import { spawnSync } from "node:child_process";
import fc from "fast-check";
import type { PrintedModule } from "../../runtime/cpu/mod.ts";
import { ModuleCache } from "../../runtime/cpu/module_cache.ts";
import { findCompiler } from "../../runtime/native/mod.ts";
import { ObjectCache } from "../../runtime/native/objects.ts";
import { temporaryFolder } from "../helpers/cli.ts";
import { Finding, type FuzzClass } from "./fuzz.ts";

/** Numbers are taken modulo the number of choices. */
interface Case {
  readonly native: boolean;
  readonly file: number;
  readonly kind: keyof typeof DAMAGE;
  readonly at: number;
}

/** Damage to a file: a flipped bit, truncation, or another object with its name. */
const DAMAGE: {
  readonly [
    kind in
      | "flip"
      | "cut"
      | "longer"
      | "folder"
      | "pipe"
      | "link"
      | "other"
      | "gone"
  ]: (
    file: string,
    at: number,
    names: readonly string[],
  ) => void;
} = {
  flip: (file, at) => {
    const bytes = readFileSync(file);
    const bit = at % Math.max(1, 8 * bytes.length);
    if (bytes.length > 0) bytes[bit >> 3]! ^= 1 << (bit & 7);
    put(file, bytes);
  },
  cut: (file, at) => {
    const bytes = readFileSync(file);
    put(file, bytes.subarray(0, at % Math.max(1, bytes.length)));
  },
  longer: (file, at) =>
    put(file, Buffer.concat([readFileSync(file), Buffer.alloc(1 + at % 9999)])),
  folder: (file) => {
    rmSync(file);
    mkdirSync(path.join(file, "inside"), { recursive: true });
  },
  pipe: (file) => {
    rmSync(file);
    spawnSync("mkfifo", [file]);
  },
  link: (file, at, names) => {
    rmSync(file);
    symlinkSync(names[at % names.length]!, file);
  },
  other: (file, at, names) => {
    const other = path.join(path.dirname(file), names[at % names.length]!);
    put(file, readFileSync(other));
  },
  gone: (file) => rmSync(file),
};

/** Replaces a file. Does not write through links or to mapped files. */
function put(file: string, bytes: Uint8Array): void {
  rmSync(file);
  writeFileSync(file, bytes);
}

const MODULE: PrintedModule = {
  bytes: Uint8Array.from({ length: 300 }, (_, i) => i * 7),
  scratch: [4, 256],
};
const VALUES = [7, 8, 9];

/** Looks up both caches after damage to a file. */
export function cacheClass(): FuzzClass<Case> {
  const cleanups: (() => void)[] = [];
  const t = { teardown: (clean: () => void) => cleanups.push(clean) };
  const scratch = temporaryFolder(t);
  // Each case has a new folder: background scans of earlier ones may still run.
  let [here, folders] = ["", 0];
  const enter = (from?: string) => {
    here = path.join(scratch, `here${folders++}`);
    if (from) cpSync(from, here, { recursive: true, verbatimSymlinks: true });
  };
  const wasm = async (): Promise<boolean> => {
    const found = await new ModuleCache(here).module("texts", () => MODULE);
    return Buffer.compare(found.bytes, MODULE.bytes) === 0 &&
      found.scratch.join() === MODULE.scratch.join();
  };
  const native = async (): Promise<boolean> => {
    const koffi = await import("koffi");
    const cache = new ObjectCache((await findCompiler())!, here);
    const functions = () =>
      VALUES.map((value) => ({
        prelude: `typedef unsigned ${
          value < 9 ? "" : "int "
        }u;\n#define KERNEL void`,
        text: `(u *x) { *x = ${value}; }`,
        scratch: value,
      }));
    await cache.library("int one(void) { return 1; }");
    for (const plan of [undefined, "all"]) {
      const found = await cache.functions(functions, {
        of: plan,
        progress: () => {},
      });
      for (const [i, { path, name, scratch }] of found.entries()) {
        const word = new Uint32Array(1);
        koffi.load(path).func(`void ${name}(void *x)`)(word);
        if (word[0] !== VALUES[i] || scratch !== VALUES[i]) return false;
      }
    }
    return cache.unkept === undefined;
  };
  const templates: { [device: string]: Promise<string> } = {};
  const make = async (device: "native" | "wasm"): Promise<string> => {
    const folder = path.join(scratch, device);
    enter();
    if (!await (device === "native" ? native() : wasm())) {
      throw new Error("the cache does not work");
    }
    rmSync(path.join(here, "looked"), { force: true });
    cpSync(here, folder, { recursive: true, verbatimSymlinks: true });
    return folder;
  };
  return {
    name: "cache",
    count: 2500,
    cases: fc.record({
      native: fc.boolean(),
      file: fc.nat(1000),
      // Of 2,500 cases, 1,000 flip a bit and 1,000 truncate a file.
      kind: fc.oneof(
        { weight: 2, arbitrary: fc.constant("flip" as const) },
        { weight: 2, arbitrary: fc.constant("cut" as const) },
        {
          weight: 1,
          arbitrary: fc.constantFrom(
            ...Object.keys(DAMAGE) as (keyof typeof DAMAGE)[],
          ),
        },
      ),
      at: fc.nat(1_000_000),
    }),
    async judge({ native: isNative, file: number, kind, at }) {
      const device = isNative && await findCompiler() ? "native" : "wasm";
      const template = await (templates[device] ??= make(device));
      enter(template);
      const names = readdirSync(here).sort();
      const name = names[number % names.length]!;
      const file = path.join(here, name);
      const isLink = lstatSync(file).isSymbolicLink();
      DAMAGE[kind](file, at, names);
      const title = `${device}: '${name}', ${kind} ${at}`;
      for (const lookup of ["first", "second"]) {
        const good = await (device === "native" ? native() : wasm());
        if (!good) {
          throw new Finding(`${title}: wrong function in the ${lookup} lookup`);
        }
      }
      const of = isLink ? "link" : path.extname(name).slice(1);
      return `${device} ${of} ${kind}`;
    },
    close: () => {
      for (const clean of cleanups) clean();
      return Promise.resolve();
    },
  };
}
