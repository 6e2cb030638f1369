/** Printed modules, kept in a cache folder by what they are made of: a model is started much more often than it is changed. */

import { createHash } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import path from "node:path";
import { moduleHash } from "../cache/module_hash.ts";
import { cacheFolder, isThere, putFile, tidy } from "../cache/used_files.ts";
import { type PrintedModule, PRINTER } from "./print.ts";

const printer = moduleHash(PRINTER);

/** Bytes of a SHA-256 hash, which a file begins with. */
const HASH_BYTES = 32;

/** Modules by the texts of their kernels; what cannot be read or written is printed again. */
export class KeptModules {
  readonly #folder: string | undefined;

  /** Default: the user's cache folder. */
  constructor(folder?: string) {
    this.#folder = folder;
  }

  /** The module of kernels with these texts, in order. */
  async module(
    texts: string,
    print: () => PrintedModule,
  ): Promise<PrintedModule> {
    const file = await this.#file(texts).catch(() => undefined);
    const kept = file && await isThere(file) && await read(file);
    if (kept) return kept;
    const module = print();
    if (file) {
      const put = putFile(file, (part) => writeFile(part, encode(module)));
      await put.then(() => void tidy(path.dirname(file))).catch(() => {});
    }
    return module;
  }

  /** Where a module is or would be; undefined where its printer cannot be read. Rejects where the user has no folder. */
  async #file(texts: string): Promise<string | undefined> {
    const version = await printer;
    if (version === undefined) return undefined;
    const name = createHash("sha256").update(version).update(texts);
    const folder = this.#folder ?? cacheFolder("wasm");
    return path.join(folder, `${name.digest("hex")}.kernels`);
  }
}

/** The hash of what follows: scratch bytes as a line of JSON, and the module. */
function encode({ bytes, scratch }: PrintedModule): Uint8Array {
  const rest = Buffer.concat([
    Buffer.from(`${JSON.stringify(scratch)}\n`),
    bytes,
  ]);
  return Buffer.concat([hashOf(rest), rest]);
}

/** The module in a file; undefined where the file is not whole. */
async function read(file: string): Promise<PrintedModule | undefined> {
  const all = await readFile(file).catch(() => Buffer.of());
  const rest = all.subarray(HASH_BYTES);
  if (!hashOf(rest).equals(all.subarray(0, HASH_BYTES))) return undefined;
  const end = rest.indexOf("\n");
  return {
    scratch: JSON.parse(rest.toString("utf8", 0, end)) as number[],
    bytes: new Uint8Array(rest.subarray(end + 1)),
  };
}

function hashOf(bytes: Uint8Array): Buffer {
  return createHash("sha256").update(bytes).digest();
}
