/** Kernels as compiled modules, shared by successive devices for one model. */

import type { Kernel } from "../../spec/kernel/tree.ts";
import { type PrintedModule, printKernels } from "./print.ts";
import { type CompiledModule, webAssembly } from "./web_assembly.ts";

/** Maximum number of cached modules; the least recently used are evicted. */
const MAX_CACHED = 8;

/** Printed and compiled kernels. */
export interface CompiledKernels {
  readonly module: CompiledModule;
  /** Bytes of scratch memory that each kernel needs, in order. */
  readonly scratch: readonly number[];
}

/** Persistent cache of printed modules. */
export interface ModuleStore {
  /** The module of kernels with these texts; prints it on a cache miss. */
  module(texts: string, print: () => PrintedModule): Promise<PrintedModule>;
}

const cached = new Map<string, CompiledKernels>();

/** Prints and compiles kernels, in the order of their texts, unless they are cached. */
export async function compileKernels(
  kernels: ReadonlyMap<string, Kernel>,
  store?: ModuleStore,
): Promise<CompiledKernels> {
  const key = [...kernels.keys()].join("\n");
  const print = () => printKernels([...kernels.values()]);
  const compile = async () => {
    const { bytes, scratch } = await store?.module(key, print) ?? print();
    return { module: await webAssembly.compile(bytes), scratch };
  };
  const compiled = cached.get(key) ?? await compile();
  cached.delete(key);
  cached.set(key, compiled);
  for (const oldest of cached.keys()) {
    if (cached.size <= MAX_CACHED) break;
    cached.delete(oldest);
  }
  return compiled;
}
