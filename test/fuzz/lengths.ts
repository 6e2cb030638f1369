/**
 * Class `lengths`: caches of compiled kernels ignore damaged files. A case truncates each file of both caches to every
 * length and flips 1,000 bits, or to each n-th length, with fewer bits. Class `cache` tests the rebuild.
 */

import {
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  symlinkSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import path from "node:path";
import fc from "fast-check";
import { ModuleCache } from "../../runtime/cpu/module_cache.ts";
import { type Compiler, findCompiler } from "../../runtime/native/mod.ts";
import { ObjectCache } from "../../runtime/native/objects.ts";
import { temporaryFolder } from "../helpers/cli.ts";
import { Finding, type FuzzClass } from "./fuzz.ts";

/** Flipped bits per file and case. */
const FLIPS = 1000;

/** Seed of the flipped bits. */
interface Case {
  readonly seed: number;
}

/** Thrown on a cache miss. */
class Unused extends Error {}

function unused(): never {
  throw new Unused();
}

async function used(found: Promise<unknown>): Promise<boolean> {
  return await found.then(() => true, (error) => {
    if (error instanceof Unused) return false;
    throw error;
  });
}

interface Kind {
  /** Pattern of its file names. */
  readonly name: RegExp;
  /** Whether the cache uses the file. Nothing is printed or compiled if not. */
  isUsed(folder: string): Promise<boolean>;
}

const FUNCTION = {
  prelude: "typedef unsigned u;\n#define KERNEL void",
  text: "(u *x) { *x = 7; }",
  scratch: 7,
};

/** Files of compiled C: an object, a link to it named after its function, and an index of the functions of a plan. */
function nativeKinds(compiler: Compiler): readonly Kind[] {
  const byNote = (folder: string) =>
    used(
      new ObjectCache(compiler, folder)
        .functions(unused, { of: "plan", progress: () => {} }),
    );
  const byLink = (folder: string) =>
    used(
      new ObjectCache(compiler, folder).functions(() => [FUNCTION], {
        of: undefined,
        progress: (done) => {
          if (done === 0) unused();
        },
      }),
    );
  return [
    { name: /\.so$/, isUsed: byNote },
    { name: /\.json$/, isUsed: byNote },
    { name: /^f_/, isUsed: byLink },
  ];
}

const MODULE: Kind = {
  name: /\.kernels$/,
  isUsed: (folder) => used(new ModuleCache(folder).module("texts", unused)),
};

/** Returns the bytes of a file, or the target of a link, with functions that change them. */
function contentOf(file: string) {
  if (lstatSync(file).isSymbolicLink()) {
    const bytes = Buffer.from(readlinkSync(file));
    const put = (content: Buffer) => {
      unlinkSync(file);
      symlinkSync(content, file);
    };
    // A link cannot be empty.
    const cut = (length: number) => put(bytes.subarray(0, length));
    return { bytes, put, cut, min: 1 };
  }
  const bytes = readFileSync(file);
  const put = (content: Buffer) => writeFileSync(file, content);
  const cut = (length: number) => truncateSync(file, length);
  return { bytes, put, cut, min: 0 };
}

/** Truncates a file to each `every`-th length and flips bits. Returns the number of variants. */
async function damage(
  file: string,
  isUsed: () => Promise<boolean>,
  { seed, every }: Case & { readonly every: number },
): Promise<number> {
  const { bytes, put, cut, min } = contentOf(file);
  const check = async (expected: boolean, state: string) => {
    if (await isUsed() === expected) return;
    throw new Finding(
      `'${path.basename(file)}' is ${expected ? "not " : ""}used: ${state}`,
    );
  };
  await check(true, "it is intact");
  let cuts = 0;
  const longest = bytes.length - 1 - Math.abs(seed) % every;
  for (let length = longest; length >= min; length -= every) {
    cuts++;
    cut(length);
    await check(false, `it is truncated to ${length} of ${bytes.length} bytes`);
  }
  const bits = fc.sample(fc.nat(8 * bytes.length - 1), {
    numRuns: Math.ceil(FLIPS / every),
    seed,
  });
  for (const bit of bits) {
    const flipped = Buffer.from(bytes);
    flipped[bit >> 3]! ^= 1 << (bit & 7);
    put(flipped);
    await check(false, `bit ${bit} is flipped`);
  }
  put(bytes);
  await check(true, "it is restored");
  return cuts + bits.length;
}

/** Damages every file of both caches. `every`: truncates to each length of that distance, from a random one. */
export function lengthsClass({ every = 1 } = {}): FuzzClass<Case> {
  const cleanups: (() => void)[] = [];
  const t = { teardown: (clean: () => void) => cleanups.push(clean) };
  const scratch = temporaryFolder(t);
  let cases = 0;
  return {
    name: "lengths",
    count: 2,
    cases: fc.record({ seed: fc.integer() }),
    async judge({ seed }) {
      const folder = path.join(scratch, `case${cases++}`);
      mkdirSync(folder);
      const compiler = await findCompiler();
      if (compiler) {
        await new ObjectCache(compiler, folder)
          .functions(() => [FUNCTION], { of: "plan", progress: () => {} });
      }
      await new ModuleCache(folder).module("texts", () => ({
        bytes: Uint8Array.from({ length: 5000 }, (_, i) => i * 7),
        scratch: [4, 256],
      }));
      const names = readdirSync(folder);
      let ways = 0;
      for (const kind of [...compiler ? nativeKinds(compiler) : [], MODULE]) {
        const isUsed = () => kind.isUsed(folder);
        const files = names.filter((name) => kind.name.test(name));
        if (files.length !== 1) throw new Error(`no file ${kind.name}`);
        const file = path.join(folder, files[0]!);
        ways += await damage(file, isUsed, { seed, every });
      }
      return `damaged in ${ways} ways${compiler ? "" : ", without C"}`;
    },
    close: () => {
      for (const clean of cleanups) clean();
      return Promise.resolve();
    },
  };
}
