/** Kernels as compiled modules. Devices that are opened one after the other, of one model, share them. */

import type { Kernel } from "../../spec/kernel/tree.ts";
import { type PrintedModule, printKernels } from "./print.ts";
import { type CompiledModule, webAssembly } from "./web_assembly.ts";

/** Modules that are kept: those which were used last. */
const MAX_CACHED = 8;

/** Kernels that were printed and compiled. */
export interface CompiledKernels {
  readonly module: CompiledModule;
  /** Bytes of scratch memory that each kernel needs, in order. */
  readonly scratch: readonly number[];
}

/** Where printed modules are kept from process to process. */
export interface ModuleStore {
  /** The module of kernels with these texts, printed where it is not kept. */
  module(texts: string, print: () => PrintedModule): Promise<PrintedModule>;
}

const cached = new Map<string, CompiledKernels>();

/** Print and compile kernels, in the order of their JSON texts, unless that was done lately. */
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
