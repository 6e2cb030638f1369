/** Printed modules, cached in a folder by their inputs: a model is started much more often than it is changed. */

import { createHash } from "node:crypto";
import path from "node:path";
import { moduleHash } from "../cache/module_hash.ts";
import {
  cacheFolder,
  putSealed,
  readSealed,
  tidy,
} from "../cache/used_files.ts";
import { type PrintedModule, PRINTER } from "./print.ts";

const printer = moduleHash(PRINTER);

/** Modules by the texts of their kernels. Modules that cannot be read or written are printed again. */
export class ModuleCache {
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
    const file = await this.#file(texts);
    const cached = file && decoded(await readSealed(file));
    if (cached) return cached;
    const module = print();
    if (file) {
      const folder = path.dirname(file);
      await putSealed(folder, path.basename(file), encode(module))
        .then(() => void tidy(folder)).catch(() => {});
    }
    return module;
  }

  /** The file of a module. Undefined if its printer cannot be read, or if the user has no home. */
  async #file(texts: string): Promise<string | undefined> {
    const version = await printer;
    const folder = this.#folder ?? cacheFolder("wasm");
    if (version === undefined || folder === undefined) return undefined;
    const name = createHash("sha256").update(version).update(texts);
    return path.join(folder, `${name.digest("hex")}.kernels`);
  }
}

/** Scratch bytes as a line of JSON, then the module. */
function encode({ bytes, scratch }: PrintedModule): Uint8Array {
  return Buffer.concat([Buffer.from(`${JSON.stringify(scratch)}\n`), bytes]);
}

function decoded(bytes: Buffer | undefined): PrintedModule | undefined {
  if (bytes === undefined) return undefined;
  const end = bytes.indexOf("\n");
  return {
    scratch: JSON.parse(bytes.toString("utf8", 0, end)) as number[],
    bytes: new Uint8Array(bytes.subarray(end + 1)),
  };
}
